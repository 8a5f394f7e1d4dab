-- Gives an order to the idle driver that was heard last, and takes that driver off the list: one order, one driver.
-- Asked again soon after, it says who has the order instead of giving it twice.
--
-- KEYS[1]  jos:{drivers}:idle           ZSET    driver => when it said so, in ms of the server's clock
-- KEYS[2]  jos:{drivers}:ordered:ORDER  STRING  the driver that was given this order
--
-- ARGV     1 order as JSON, 2 ms after which a silent driver is no longer taken for idle,
--          3 ms for which an order counts as being taken, 4 ms that it lies in an inbox,
--          5 prefix of inboxes (they share the hash tag of the keys above)
-- Replies  the driver's name, or "" when none is idle

local given = redis.call('GET', KEYS[2])
if given then
  return given
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
local name = redis.call('ZREVRANGE', KEYS[1], 0, 0)[1]
if not name then
  return ''
end
redis.call('ZREM', KEYS[1], name)
local inbox = ARGV[5] .. name
redis.call('RPUSH', inbox, ARGV[1])
redis.call('PEXPIRE', inbox, ARGV[4])
redis.call('SET', KEYS[2], name, 'PX', ARGV[3])
return name
