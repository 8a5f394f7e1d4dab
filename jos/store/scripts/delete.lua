-- Removes all that is kept of a job, if its record is still the one that the caller looked at.
--
-- KEYS[1]  jos:{JOB}:job  HASH    version is read
-- KEYS[2]  jos:changes    STREAM  job, org
-- KEYS[3…] the indexes that the job is in, then all other keys of the job
--
-- ARGV     1 expected version ("0": there is no record), 2 job id, 3 organisation, 4 most changes to keep, 5 number
--          of indexes; then the members to remove
-- Replies  1: done, 0: the record had changed

if tonumber(redis.call('HGET', KEYS[1], 'version') or '0') ~= tonumber(ARGV[1]) then
  return 0
end
local key = take_out(3, 6, tonumber(ARGV[5]))
for i = key, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if redis.call('UNLINK', KEYS[1]) == 1 then
  tell(KEYS[2], ARGV[4], ARGV[2], ARGV[3])
end
return 1
