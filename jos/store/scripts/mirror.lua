-- Takes over what a driver has committed: all of a batch or nothing of it, and never twice.
--
-- KEYS[1]  jos:{JOB}:job       HASH    version, status, token are read; events, progress: numbers given so far
-- KEYS[2]  jos:{JOB}:mirror    HASH    token and seq of the latest batch, at: its time, live: JSON for displays
-- KEYS[3]  jos:{JOB}:events    STREAM  <n>-0 => d: EventDraft as JSON
-- KEYS[4]  jos:{JOB}:progress  STREAM  <n>-0 => d: ProgressDraft as JSON
-- KEYS[5]  jos:{JOB}:inputs    HASH    input id => InputState as JSON
-- KEYS[6]  jos:{JOB}:outputs   HASH    output id => Output as JSON
-- KEYS[7]  jos:{JOB}:arrivals  LIST    output ids in the order of their first arrival
--
-- ARGV     1 token, 2 seq, 3 time, 4 live ("" leaves it), 5 most events to keep, 6 most progress entries to keep,
--          7 number of events, 8 of progress entries, 9 of inputs, 10 of outputs; then the events, the progress
--          entries, id and JSON of each input, id and JSON of each output
-- Replies  {"applied" | "repeated" | "stale" | "missing", status, version, latest seq}

local job = redis.call('HMGET', KEYS[1], 'version', 'status', 'token')
if not job[1] then
  return {'missing', '', 0, 0}
end
local version = tonumber(job[1])
if job[3] ~= ARGV[1] then
  return {'stale', job[2], version, 0}
end
local latest = redis.call('HMGET', KEYS[2], 'token', 'seq')
local seq = 0
if latest[1] == ARGV[1] then
  seq = tonumber(latest[2])
end
if tonumber(ARGV[2]) <= seq then
  return {'repeated', job[2], version, seq}
end

local at = 11
local function append(stream, counter, keep, count)
  for _ = 1, count do
    local n = redis.call('HINCRBY', KEYS[1], counter, 1)
    redis.call('XADD', stream, 'MAXLEN', '~', keep, string.format('%d-0', n), 'd', ARGV[at])
    at = at + 1
  end
end
append(KEYS[3], 'events', ARGV[5], tonumber(ARGV[7]))
append(KEYS[4], 'progress', ARGV[6], tonumber(ARGV[8]))
for _ = 1, tonumber(ARGV[9]) do
  redis.call('HSET', KEYS[5], ARGV[at], ARGV[at + 1])
  at = at + 2
end
for _ = 1, tonumber(ARGV[10]) do
  if redis.call('HSET', KEYS[6], ARGV[at], ARGV[at + 1]) == 1 then
    redis.call('RPUSH', KEYS[7], ARGV[at])
  end
  at = at + 2
end
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'seq', ARGV[2], 'at', ARGV[3])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'live', ARGV[4])
end
return {'applied', job[2], version, tonumber(ARGV[2])}
