-- Says which of some jobs hold a text, so that the texts themselves need not cross the wire.
--
-- KEYS     jos:{JOB}:job  HASH  search: the text that is looked at; one key for each job
-- ARGV     1 the text that is looked for
-- Replies  the positions, from 0, of the jobs that have it

local found = {}
for i, key in ipairs(KEYS) do
  local text = redis.call('HGET', key, 'search')
  if text and string.find(text, ARGV[1], 1, true) then
    found[#found + 1] = i - 1
  end
end
return found
