-- after: prologue usual records guards leases publish
-- Keep a lease for longer, give it back, or let it rest. KEYS 2 lease; ARGV 6 token, 7 px (0: give it back), 8 '1' to let
-- it rest for px, 9 the key's name in L1. Whoever waits is woken unless it is kept.
local lease = stored(KEYS[2])
if not holds(lease, ARGV[6]) then return {epoch, seq, 0} end
if ARGV[8] == '1' then
  redis.call('SET', KEYS[2], 'r' .. epoch .. ARGV[6], 'PX', ARGV[7])
elseif tonumber(ARGV[7]) > 0 then
  local ends_ms = lost_guards_end_ms(0)
  redis.call('PEXPIRE', KEYS[2], ends_ms and px_until(ends_ms, ARGV[7]) or ARGV[7])
  return {epoch, seq, 1}
else
  redis.call('DEL', KEYS[2])
end
if is_waited_for(lease) then publish('CBW' .. ARGV[9]) end
return {epoch, seq, 1}
