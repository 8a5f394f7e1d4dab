-- Takes over what a driver has committed: all of a batch or nothing of it, and never twice.
--
-- KEYS[1]  jos:{JOB}:job          HASH    version, status, token are read; events, progress: numbers given so far;
--                                         inputs:STATUS: how many inputs are in it
-- KEYS[2]  jos:{JOB}:mirror       HASH    token and seq of the latest batch, at: its time, live: JSON for displays
-- KEYS[3]  jos:{JOB}:events       STREAM  <n>-0 => d: EventDraft as JSON
-- KEYS[4]  jos:{JOB}:progress     STREAM  <n>-0 => d: ProgressDraft as JSON
-- KEYS[5]  jos:{JOB}:inputs       HASH    input id => InputState as JSON
-- KEYS[6]  jos:{JOB}:outputs      HASH    output id => Output as JSON
-- KEYS[7]  jos:{JOB}:arrivals     LIST    output ids in the order of their first arrival
-- KEYS[8]  jos:{JOB}:checkpoints  HASH    checkpoint id => Checkpoint as JSON
-- KEYS[9]  jos:checkpoints        HASH    checkpoint id => job id, of all jobs
--
-- ARGV     1 token, 2 seq, 3 time, 4 live ("" leaves it), 5 most events to keep, 6 most progress entries to keep,
--          7 number of events, 8 of progress entries, 9 of inputs, 10 of outputs, 11 of checkpoints, 12 job id; then the
--          events, the progress entries, id and JSON of each input, output and checkpoint
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

local at = append(KEYS[1], 'events', KEYS[3], ARGV[5], 13, tonumber(ARGV[7]))
at = append(KEYS[1], 'progress', KEYS[4], ARGV[6], at, tonumber(ARGV[8]))
at = put_inputs(KEYS[1], KEYS[5], at, tonumber(ARGV[9]))
at = put_in_order(KEYS[6], KEYS[7], at, tonumber(ARGV[10]))
put_checkpoints(KEYS[8], KEYS[9], ARGV[12], at, tonumber(ARGV[11]))
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'seq', ARGV[2], 'at', ARGV[3])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'live', ARGV[4])
end
return {'applied', job[2], version, tonumber(ARGV[2])}
