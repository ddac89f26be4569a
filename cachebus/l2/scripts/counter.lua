-- after: prologue usual
-- Add to a counter; a request id makes it safe to repeat. KEYS 2 counter: a hash with its `value`, and what requests of
-- the last minute were answered (`r` and the request's id: deadline in µs, a colon, the value), so that a counter is never
-- evicted without them. Numbers travel as text: Lua's have 53 bits.
local COUNTER = KEYS[2]
local AMOUNT = ARGV[5]
local REQUEST = ARGV[6] -- its id, '' for none
local PX = ARGV[7] -- how long a new counter lives, in ms; '0' for ever
local request = 'r' .. REQUEST
local function field(name) -- pcall: what somebody else wrote there counts as nothing
  local found = redis.pcall('HGET', COUNTER, name)
  return type(found) == 'string' and found or nil
end
local REMEMBERED_US, MANY = 60000000, 32
if REQUEST ~= '' then
  local deadline, answered = string.match(field(request) or '', '^(%d+):(.*)$')
  if deadline and tonumber(deadline) > now_us then return {epoch, seq, answered} end
end
if AMOUNT == '0' then return {epoch, seq, field('value') or '0'} end
local counted = redis.pcall('HINCRBY', COUNTER, 'value', AMOUNT)
if type(counted) == 'table' then
  if string.find(counted.err, 'overflow', 1, true) then return {epoch, seq, false} end
  return counted
end
local value = field('value')
if PX ~= '0' and redis.call('PTTL', COUNTER) < 0 then redis.call('PEXPIRE', COUNTER, PX) end
if REQUEST ~= '' then
  redis.call('HSET', COUNTER, request, int(now_us + REMEMBERED_US) .. ':' .. value)
  -- Now and then some of those that are over go, more than have come since.
  if redis.call('HLEN', COUNTER) > MANY and now_us % 8 == 0 then
    local found = redis.call('HSCAN', COUNTER, field('sweep') or '0', 'COUNT', 256)
    for i = 1, #found[2], 2 do
      local name, over = found[2][i], tonumber(string.match(found[2][i + 1], '^(%d+):') or '')
      if string.byte(name) == 114 and over and over <= now_us then redis.call('HDEL', COUNTER, name) end
    end
    redis.call('HSET', COUNTER, 'sweep', found[1])
  end
end
return {epoch, seq, value}
