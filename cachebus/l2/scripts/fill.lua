-- Store what was loaded, if nothing came in between. KEYS 5 record, 6 lease. ARGV 9 token, 10 record, 11 px (0 none),
-- 12 version that it may replace ('' any), 13 the key's name in L1, 14 the longest guard in ms, 15.. scopes.
local lease = stored(KEYS[6])
if not holds(lease, ARGV[9]) then return {epoch, seq, 0, floor, 0} end
redis.call('DEL', KEYS[6])
wake(lease, ARGV[13])
if hidden(ARGV[10], 15, #ARGV) or guarded_ms(ARGV[13], 15, #ARGV, ARGV[10]) then return {epoch, seq, 0, floor, 0} end
if ARGV[12] ~= '' then
  local now = stored(KEYS[5])
  if not now or string.sub(now, 29, 36) ~= ARGV[12] or hidden(now, 15, #ARGV) then return {epoch, seq, 0, floor, 0} end
end
local record, px, expires_ms = kept_short(ARGV[10], ARGV[11], ARGV[14])
store(KEYS[5], record, px)
return {epoch, seq, 1, floor, expires_ms}
