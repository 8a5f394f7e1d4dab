-- Removes all that is kept of a job, if its record and its readers are still those that the caller looked at.
--
-- KEYS[1]  jos:{JOB}:job          HASH    version is read
-- KEYS[2]  jos:changes            STREAM  job, org
-- KEYS[3]  jos:{JOB}:checkpoints  HASH    checkpoint id => Checkpoint as JSON
-- KEYS[4]  jos:checkpoints        HASH    checkpoint id => job id, of all jobs
-- KEYS[5]  jos:{JOB}:readers      ZSET    id of a job that reads one of its checkpoints => when it was marked
-- KEYS[6…] the indexes that the job is in, then all keys of the job but the first
--
-- ARGV     1 expected version ("0": there is no record), 2 job id, 3 organisation, 4 most changes to keep, 5 number
--          of indexes, 6 expected readers with spaces between ("*": any); then the members to remove
-- Replies  1: done, 0: the record had changed, -1: the readers had changed

if tonumber(redis.call('HGET', KEYS[1], 'version') or '0') ~= tonumber(ARGV[1]) then
  return 0
end
if ARGV[6] ~= '*' and table.concat(redis.call('ZRANGE', KEYS[5], 0, -1), ' ') ~= ARGV[6] then
  return -1
end
for _, checkpoint in ipairs(redis.call('HKEYS', KEYS[3])) do
  redis.call('HDEL', KEYS[4], checkpoint)
end
local key = take_out(6, 7, tonumber(ARGV[5]))
for i = key, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if redis.call('UNLINK', KEYS[1]) == 1 then
  tell(KEYS[2], ARGV[4], ARGV[2], ARGV[3])
end
return 1
