-- Renews or releases a lease, if it is still the caller's.
--
-- KEYS[1]  jos:lease:NAME  STRING  token of the holder, with an expiry
-- ARGV     1 token, 2 milliseconds to hold it from now on, 0 to let it go
-- Replies  1: done, 0: it is not the caller's

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
