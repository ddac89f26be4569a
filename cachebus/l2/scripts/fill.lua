-- after: prologue usual records guards fill_leases publish
-- Store what was loaded, if nothing came in between.
local RECORD, LEASE = KEYS[3], KEYS[4]
local TOKEN = ARGV[6] -- of the fill lease
local LOADED = ARGV[7] -- the new record
local PX = ARGV[8] -- how long L2 keeps it, in ms; '0' for ever
local OVER = ARGV[9] -- the version that it may replace, '' for any
local L1_NAME = ARGV[10] -- the key's
local GUARD_MS = ARGV[11] -- the longest guard that the caller has heard of
local FIRST = 12 -- ARGV of its scopes, up to the last
local lease = stored(LEASE)
if not holds(lease, TOKEN) then return {epoch, seq, 0, 0} end
local fits, expires_ms = not hidden(LOADED, FIRST, #ARGV) and not guarded_ms(L1_NAME, FIRST, #ARGV, LOADED), 0
fits = fits and not was_guarded(LOADED)
if fits and OVER ~= '' then
  -- What is gone, or replaced, is no conflict: it went before the fill lease was granted, or by itself since.
  local now = stored(RECORD)
  fits = not now or string.sub(now, 41, 44) == OVER or hidden(now, FIRST, #ARGV)
end
if fits then
  local record, px
  record, px, expires_ms = kept_short(LOADED, PX, GUARD_MS)
  store(RECORD, record, px) -- before the DEL: once that had gone through, a full server would let this pass
end
redis.call('DEL', LEASE)
if is_waited_for(lease) then publish('CBW' .. L1_NAME) end
return {epoch, seq, fits and 1 or 0, expires_ms}
