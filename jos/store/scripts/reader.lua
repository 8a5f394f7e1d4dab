-- Marks a job as a reader of another job's checkpoint, if that job is still there.
--
-- KEYS[1]  jos:{JOB}:job      HASH  of the job that has the checkpoint
-- KEYS[2]  jos:{JOB}:readers  ZSET  id of a job that reads one of its checkpoints => when it was marked
--
-- ARGV     1 id of the reader, 2 time in Unix seconds
-- Replies  1 marked, 0 there is no such job

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 1
