-- after: prologue usual records guards leases publish
-- Store what was loaded, if nothing came in between. KEYS 3 record, 4 lease. ARGV 6 token, 7 record, 8 px (0 none),
-- 9 version that it may replace ('' any), 10 the key's name in L1, 11 the longest guard that the caller has heard of in ms,
-- 12.. scopes.
local lease = stored(KEYS[4])
if not holds(lease, ARGV[6]) then return {epoch, seq, 0, 0} end
redis.call('DEL', KEYS[4])
if is_waited_for(lease) then publish('CBW' .. ARGV[10]) end
if hidden(ARGV[7], 12, #ARGV) or guarded_ms(ARGV[10], 12, #ARGV, ARGV[7]) then return {epoch, seq, 0, 0} end
if ARGV[9] ~= '' then
  local now = stored(KEYS[3])
  if not now or string.sub(now, 29, 36) ~= ARGV[9] or hidden(now, 12, #ARGV) then return {epoch, seq, 0, 0} end
end
local record, px, expires_ms = kept_short(ARGV[7], ARGV[8], ARGV[11])
store(KEYS[3], record, px)
return {epoch, seq, 1, expires_ms}
