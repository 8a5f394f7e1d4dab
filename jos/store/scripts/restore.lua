-- Writes a whole job at once, if there is none with its id: what recovery found in storage.
--
-- KEYS[1]  jos:{JOB}:job          HASH    as in write.lua; events, progress go on after the numbers in the archive
-- KEYS[2]  jos:{JOB}:writes       LIST    ids of the latest writes, newest first
-- KEYS[3]  jos:changes            STREAM  job, org
-- KEYS[4]  jos:{JOB}:events       STREAM  <n>-0 => d: EventDraft as JSON
-- KEYS[5]  jos:{JOB}:progress     STREAM  <n>-0 => d: ProgressDraft as JSON
-- KEYS[6]  jos:{JOB}:inputs       HASH    input id => InputState as JSON
-- KEYS[7]  jos:{JOB}:outputs      HASH    output id => Output as JSON
-- KEYS[8]  jos:{JOB}:arrivals     LIST    output ids in the order of their first arrival
-- KEYS[9]  jos:{JOB}:checkpoints  HASH    checkpoint id => Checkpoint as JSON
-- KEYS[10] jos:{JOB}:mirror       HASH    see mirror.lua; starts empty
-- KEYS[11] jos:checkpoints        HASH    checkpoint id => job id, of all jobs
-- KEYS[12…] the indexes that the job enters
--
-- ARGV     1 id of this write, 2 record, 3 status, 4 token of the attempt, 5 text that searches look at, 6 job id,
--          7 organisation, 8 most changes to keep, 9 most events, 10 most progress entries, 11 numbers of events given
--          before, 12 of progress entries; then the number of indexes, of events, of progress entries, of inputs, of
--          outputs, of checkpoints; then score and member of each index, the events, the progress entries, id and
--          JSON of each input, output and checkpoint
-- Replies  "written" | "repeated" | "exists"

if redis.call('LPOS', KEYS[2], ARGV[1]) then
  return 'repeated'
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 'exists'
end
for i = 4, 10 do
  redis.call('UNLINK', KEYS[i])
end
redis.call('HSET', KEYS[1], 'version', 1, 'record', ARGV[2], 'status', ARGV[3], 'token', ARGV[4], 'search', ARGV[5],
  'events', ARGV[11], 'progress', ARGV[12])
local _, at = put_in(12, 19, tonumber(ARGV[13]))
at = append(KEYS[1], 'events', KEYS[4], ARGV[9], at, tonumber(ARGV[14]))
at = append(KEYS[1], 'progress', KEYS[5], ARGV[10], at, tonumber(ARGV[15]))
at = put_inputs(KEYS[1], KEYS[6], at, tonumber(ARGV[16]))
at = put_in_order(KEYS[7], KEYS[8], at, tonumber(ARGV[17]))
put_checkpoints(KEYS[9], KEYS[11], ARGV[6], at, tonumber(ARGV[18]))
tell(KEYS[3], ARGV[8], ARGV[6], ARGV[7])
redis.call('LPUSH', KEYS[2], ARGV[1])
return 'written'
