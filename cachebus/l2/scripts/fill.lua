-- after: prologue usual records guards leases publish
-- Store what was loaded, if nothing came in between. KEYS 3 record, 4 lease. ARGV 6 token, 7 record, 8 px (0 none),
-- 9 version that it may replace ('' any), 10 the key's name in L1, 11 the longest guard that the caller has heard of in ms,
-- 12.. scopes.
local lease = stored(KEYS[4])
if not holds(lease, ARGV[6]) then return {epoch, seq, 0, 0} end
local fits, expires_ms = not hidden(ARGV[7], 12, #ARGV) and not guarded_ms(ARGV[10], 12, #ARGV, ARGV[7]), 0
if fits and ARGV[9] ~= '' then
  -- What is gone, or replaced, is no conflict: it went before the lease was granted, or by itself since.
  local now = stored(KEYS[3])
  fits = not now or string.sub(now, 41, 44) == ARGV[9] or hidden(now, 12, #ARGV)
end
if fits then
  local record, px
  record, px, expires_ms = kept_short(ARGV[7], ARGV[8], ARGV[11])
  store(KEYS[3], record, px) -- before the DEL: once that had gone through, a full server would let this pass
end
redis.call('DEL', KEYS[4])
if is_waited_for(lease) then publish('CBW' .. ARGV[10]) end
return {epoch, seq, fits and 1 or 0, expires_ms}
