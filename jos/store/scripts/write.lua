-- Writes a job's record and appends the events that tell of the change, both or neither.
--
-- KEYS[1]  jos:{JOB}:job     HASH    record, version, status, token, search; events, progress: numbers given so far
-- KEYS[2]  jos:{JOB}:events  STREAM  <n>-0 => d: EventDraft as JSON
-- KEYS[3]  jos:{JOB}:writes  LIST    ids of the latest writes, newest first
--
-- ARGV     1 expected version ("0": the job must not exist), 2 id of this write, 3 most events to keep,
--          4 record, 5 status, 6 token of the attempt, 7 text that searches look at, 8… events
-- Replies  {"written" | "repeated" | "conflict", version}
--
-- The id of the write is what makes it safe to send again after a lost reply.

local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if redis.call('LPOS', KEYS[3], ARGV[2]) then
  return {'repeated', version}
end
if version ~= tonumber(ARGV[1]) then
  return {'conflict', version}
end

redis.call('HSET', KEYS[1], 'version', version + 1, 'record', ARGV[4], 'status', ARGV[5], 'token', ARGV[6],
  'search', ARGV[7])
for i = 8, #ARGV do
  local n = redis.call('HINCRBY', KEYS[1], 'events', 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], string.format('%d-0', n), 'd', ARGV[i])
end
redis.call('LPUSH', KEYS[3], ARGV[2])
redis.call('LTRIM', KEYS[3], 0, 31)
return {'written', version + 1}
