-- Writes what changes about an organisation's files, if what the change was decided on still holds.
--
-- KEYS     every key that is read or written, see jos/store/files.py
-- ARGV[1]  JSON {checks: [[expected, command, argument…]…], writes: [[command, argument…]…]}
--          a reply that is nothing counts as "", a list as its items joined by spaces
-- Replies  1 written, 0 something had changed

local change = cjson.decode(ARGV[1])
for _, check in ipairs(change.checks) do
  local reply = redis.call(unpack(check, 2))
  if type(reply) == 'table' then
    reply = table.concat(reply, ' ')
  end
  if tostring(reply or '') ~= check[1] then
    return 0
  end
end
for _, write in ipairs(change.writes) do
  redis.call(unpack(write))
end
return 1
