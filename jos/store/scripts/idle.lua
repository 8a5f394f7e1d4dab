-- A warm driver says that it is up, and that it waits for an order, unless one lies in its inbox already.
--
-- KEYS[1]  jos:{drivers}:idle          ZSET  driver => when it said so, in ms of the server's clock
-- KEYS[2]  jos:{drivers}:inbox:NAME    LIST  orders as JSON
-- KEYS[3]  jos:{drivers}:known         SET   drivers that came up
--
-- ARGV     1 name
-- Replies  1, or 0 when an order waits

redis.call('SADD', KEYS[3], ARGV[1])
if redis.call('LLEN', KEYS[2]) > 0 then
  return 0
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
return 1
