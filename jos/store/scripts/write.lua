-- Writes a job's record, appends the events that tell of the change, and moves the job in the indexes and the queue:
-- all of it or nothing. What to move is decided by the caller, who knows the record that it is about to replace.
--
-- KEYS[1]  jos:{JOB}:job       HASH    record, version, status, token, search; events, progress: numbers given so far
-- KEYS[2]  jos:{JOB}:events    STREAM  <n>-0 => d: EventDraft as JSON
-- KEYS[3]  jos:{JOB}:writes    LIST    ids of the latest writes, newest first
-- KEYS[4]  jos:changes         STREAM  job, org
-- KEYS[5]  jos:lease:NAME      STRING  token of the holder
-- KEYS[6…] the indexes that the job leaves, then those that it enters (see jos/store/indexes.py)
--
-- ARGV     1 expected version ("0": the job must not exist), 2 id of this write, 3 most events to keep,
--          4 record, 5 status, 6 token of the attempt, 7 text that searches look at, 8 job id, 9 organisation,
--          10 most changes to keep, 11 token of the lease ("": none is asked for), 12 number of indexes to leave,
--          13 to enter; then the members to remove, score and member of each to add, the events
-- Replies  {"written" | "repeated" | "conflict" | "lease_lost", version}
--
-- The id of the write is what makes it safe to send again after a lost reply.

local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if redis.call('LPOS', KEYS[3], ARGV[2]) then
  return {'repeated', version}
end
if ARGV[11] ~= '' and redis.call('GET', KEYS[5]) ~= ARGV[11] then
  return {'lease_lost', version}
end
if version ~= tonumber(ARGV[1]) then
  return {'conflict', version}
end

redis.call('HSET', KEYS[1], 'version', version + 1, 'record', ARGV[4], 'status', ARGV[5], 'token', ARGV[6],
  'search', ARGV[7])
local key, at = take_out(6, 14, tonumber(ARGV[12]))
key, at = put_in(key, at, tonumber(ARGV[13]))
append(KEYS[1], 'events', KEYS[2], ARGV[3], at, #ARGV - at + 1)
tell(KEYS[4], ARGV[10], ARGV[8], ARGV[9])
redis.call('LPUSH', KEYS[3], ARGV[2])
redis.call('LTRIM', KEYS[3], 0, 31)
return {'written', version + 1}
