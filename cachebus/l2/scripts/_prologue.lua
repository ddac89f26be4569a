-- Every script begins with this: it reads the shard's meta and, where the server is not the one that meta speaks of,
-- begins a new epoch in the same step (takeover). After it `epoch`, `seq`, `floor`, `marked`, `now_us` hold.
-- KEYS 1 meta, 2 marks, 3 log, 4 nodes. ARGV 1 node, 2 applied, 3 epoch of the caller, 4 an epoch never used before,
-- 5 facts (protocol, shards, bus), 6 most marks, 7 length of the log, 8 channel, with a
-- '!' in front for sharded pub/sub, '' where another bus carries the events. The script's own follow at KEYS 5, ARGV 9.
local META, MARKS, LOG, NODES = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local MAGIC = '\203\1'
local function publish(message)
  if ARGV[8] == '' then return end
  if string.sub(ARGV[8], 1, 1) == '!' then
    redis.call('SPUBLISH', string.sub(ARGV[8], 2), message)
  else
    redis.call('PUBLISH', ARGV[8], message)
  end
end
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
-- pcall: what somebody else wrote under our names is no meta of ours, and ends in a takeover that removes it.
local meta = redis.pcall('HMGET', META, 'server', 'epoch', 'seq', 'floor', 'marks', 'facts')
if meta.err then meta = {} end
local epoch, seq, floor, marked = meta[2], tonumber(meta[3]), tonumber(meta[4]), tonumber(meta[5])
local function int(number) return string.format('%.0f', number) end

if meta[6] and meta[6] ~= ARGV[5] then
  return redis.error_reply('CACHEBUS ' .. meta[6] .. ' | ' .. ARGV[5])
end
if not seq or meta[1] ~= server or (ARGV[3] == epoch and tonumber(ARGV[2]) > seq)
    or not floor or redis.pcall('ZCARD', MARKS) ~= marked then
  epoch, seq, floor, marked = ARGV[4], math.max(seq or 0, tonumber(ARGV[2])) + 1, 0, 0
  redis.call('DEL', META, MARKS, LOG, NODES)
  redis.call('HSET', META, 'server', server, 'epoch', epoch, 'seq', int(seq), 'floor', 0, 'marks', 0, 'facts', ARGV[5],
    'born', int(now_us))
end
if ARGV[1] ~= '' then
  -- How far it is in *this* epoch: one that stands in an older one, however far there, has applied nothing of this.
  local line = (ARGV[3] == epoch and ARGV[2] or '0') .. ':' .. int(now_us)
  local noted = redis.pcall('HSET', NODES, ARGV[1], line)
  if type(noted) == 'table' then
    -- Refused, as by a server that is full: once a DEL had gone through, it would let the whole script write.
    if not string.find(noted.err, 'WRONGTYPE', 1, true) then return noted end
    redis.call('DEL', NODES)
    noted = redis.call('HSET', NODES, ARGV[1], line)
  end
  -- The first line of a register: it is a new one, in which those who live may be missing. Its name tells that.
  if noted == 1 and redis.call('HLEN', NODES) == 1 then redis.call('HSET', META, 'register', ARGV[4]) end
end

-- Whether a record may not be believed: none at all, not one of this epoch, or replaced by floor, a scope
-- (ARGV first..last) or a tag.
local function hidden(record, first, last)
  if #record < 61 or string.sub(record, 1, 2) ~= MAGIC or string.sub(record, 5, 20) ~= epoch then return true end
  local granted = struct.unpack('>I8', record, 21)
  if granted < floor then return true end
  local tags = string.byte(record, 61)
  if marked == 0 and tags == 0 then return false end
  local names, at = {}, 62
  for _ = 1, tags do
    if at + 1 > #record then return true end
    local after = at + 2 + struct.unpack('>I2', record, at)
    if after > #record + 1 then return true end
    names[#names + 1] = string.sub(record, at + 2, after - 1)
    at = after
  end
  if marked == 0 then return false end
  for i = first, last do names[#names + 1] = ARGV[i] end
  if #names == 0 then return false end
  for _, mark in ipairs(redis.call('ZMSCORE', MARKS, unpack(names))) do
    if mark and tonumber(mark) > granted then return true end
  end
  return false
end

-- Whether a record's hard expiry is over (L2 may keep it longer, for fail-safe).
local function expired(record)
  local at_ms = struct.unpack('>I8', record, 53)
  return at_ms ~= 0 and at_ms * 1000 <= now_us
end

local function stored(key)
  local found = redis.pcall('GET', key)
  return type(found) == 'string' and found or nil
end

-- The next event: names (ARGV first..last) get its seq for a mark, then it is logged and published, in that order.
local function announce(first, last, body)
  seq = redis.call('HINCRBY', META, 'seq', 1)
  if last >= first then
    for i = first, last do redis.call('ZADD', MARKS, int(seq), ARGV[i]) end
    local excess = redis.call('ZCARD', MARKS) - tonumber(ARGV[6])
    if excess > 0 then
      local dropped = redis.call('ZPOPMIN', MARKS, excess)
      floor = math.max(floor, tonumber(dropped[#dropped]))
      redis.call('HSET', META, 'floor', int(floor))
    end
    redis.call('HSET', META, 'marks', redis.call('ZCARD', MARKS))
  end
  local message = 'CB1' .. epoch .. struct.pack('>I8I8I8', seq, floor, now_us) .. body
  local logged = redis.pcall('XADD', LOG, 'MAXLEN', '~', ARGV[7], int(seq) .. '-0', 'e', message)
  if type(logged) == 'table' and logged.err then
    -- An entry that is none of ours stands in the way. Nodes that miss what goes with it flush, as after trimming.
    redis.call('DEL', LOG)
    redis.call('XADD', LOG, int(seq) .. '-0', 'e', message)
  end
  publish(message)
end

-- A lease is `epoch:token`, with `:w` behind it when somebody waits for its end.
-- Compared whole: one token may be the beginning of another.
local function holds(lease, token)
  if not lease then return false end
  if string.sub(lease, -2) == ':w' then lease = string.sub(lease, 1, -3) end
  return lease == epoch .. ':' .. token
end
local function wake(lease, name)
  if string.sub(lease, -2) == ':w' then publish('CBW' .. name) end
end
