-- Steps that several scripts take; put in front of each of them (see jos/store/connection.py).

-- Appends drafts ARGV[at] … ARGV[at + count - 1] under the next numbers of their stream; gives the place after them.
local function append(job, counter, stream, keep, at, count)
  if count == 0 then
    return at
  end
  local n = redis.call('HINCRBY', job, counter, count) - count
  for i = at, at + count - 1 do
    n = n + 1
    redis.call('XADD', stream, 'MAXLEN', '~', keep, string.format('%d-0', n), 'd', ARGV[i])
  end
  return at + count
end

-- Takes a job out of the index KEYS[key], KEYS[key + 1] … as ARGV[at], ARGV[at + 1] …
local function take_out(key, at, count)
  for i = 0, count - 1 do
    redis.call('ZREM', KEYS[key + i], ARGV[at + i])
  end
  return key + count, at + count
end

-- Puts a job into the index KEYS[key] … with score ARGV[at] as ARGV[at + 1] …
local function put_in(key, at, count)
  for i = 0, count - 1 do
    redis.call('ZADD', KEYS[key + i], ARGV[at + 2 * i], ARGV[at + 2 * i + 1])
  end
  return key + count, at + 2 * count
end

-- Puts id and JSON of checkpoints from ARGV[at] on into the job's hash, and whose they are into the index of all.
local function put_checkpoints(hash, index, job, at, count)
  for _ = 1, count do
    redis.call('HSET', hash, ARGV[at], ARGV[at + 1])
    redis.call('HSET', index, ARGV[at], job)
    at = at + 2
  end
  return at
end

-- Puts id and JSON of states of inputs into a hash, and keeps count of them by status, in `inputs:STATUS` of the job's.
-- A status is a field of its own: within a message the quotes around it are escaped.
local function put_inputs(job, hash, at, count)
  local function status_of(state)
    return state and string.match(state, '"status":"(%a+)"')
  end
  local changes = {}
  for _ = 1, count do
    local before = status_of(redis.call('HGET', hash, ARGV[at]))
    local now = status_of(ARGV[at + 1])
    redis.call('HSET', hash, ARGV[at], ARGV[at + 1])
    if before ~= now then
      if before then
        changes[before] = (changes[before] or 0) - 1
      end
      changes[now] = (changes[now] or 0) + 1
    end
    at = at + 2
  end
  for status, change in pairs(changes) do
    redis.call('HINCRBY', job, 'inputs:' .. status, change)
  end
  return at
end

-- Puts pairs of field and value from ARGV[at] on into a hash, and keeps in a list which field came when.
local function put_in_order(hash, arrivals, at, count)
  for _ = 1, count do
    if redis.call('HSET', hash, ARGV[at], ARGV[at + 1]) == 1 then
      redis.call('RPUSH', arrivals, ARGV[at])
    end
    at = at + 2
  end
  return at
end

-- Tells whoever waits on the stream of changes.
local function tell(changes, keep, job, org)
  redis.call('XADD', changes, 'MAXLEN', '~', keep, '*', 'job', job, 'org', org)
end
