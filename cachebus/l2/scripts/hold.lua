-- after: prologue usual records guards fill_leases publish
-- Keep a fill lease for longer, give it back, or let it rest. Whoever waits is woken unless it is kept.
local LEASE = KEYS[2]
local TOKEN = ARGV[6] -- of the fill lease
local PX = ARGV[7] -- for how long, in ms; '0' to give it back
local RESTS = ARGV[8] -- '1' to let it rest for so long
local L1_NAME = ARGV[9] -- the key's
local lease = stored(LEASE)
if not holds(lease, TOKEN) then return {epoch, seq, 0} end
if RESTS == '1' then
  redis.call('SET', LEASE, 'r' .. epoch .. TOKEN, 'PX', PX)
elseif tonumber(PX) > 0 then
  local ends_ms = lost_guards_end_ms(0)
  redis.call('PEXPIRE', LEASE, ends_ms and px_until(ends_ms, PX) or PX)
  return {epoch, seq, 1}
else
  redis.call('DEL', LEASE)
end
if is_waited_for(lease) then publish('CBW' .. L1_NAME) end
return {epoch, seq, 1}
