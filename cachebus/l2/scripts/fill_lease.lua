-- after: prologue usual row tenure records guards fill_leases
-- A valid record, or the right to fill. Absence never grants a fill: only this fill lease does, and under a guard there is
-- none.
local RECORD, LEASE = KEYS[3], KEYS[4]
local TOKEN = ARGV[7] -- of the fill lease that is asked for
local PX = ARGV[8] -- how long it lasts, in ms
local REFRESH = ARGV[9] -- '1' to load even where there is a valid record, else '0'; or the version of one that can't be read
local FALLBACK = ARGV[10] -- that will do while the source rests: '0' none, '1' an expired record, '2' what the caller has
local L1_NAME = ARGV[11] -- the key's
local SCOPES = ARGV[12] -- their number: they follow, and after them the tags that the load will give its record
local first, last = 13, 12 + tonumber(SCOPES)
local left_ms = guarded_ms(L1_NAME, first, #ARGV)
if left_ms then return {epoch, seq, 'guarded', false, left_ms} end
local record = stored(RECORD)
if record and hidden(record, first, last) then record = nil end
local is_wanted = record and REFRESH ~= '1' and string.sub(record, 41, 44) ~= REFRESH
if is_wanted and not expired(record) then return {epoch, seq, 'hit', record, 0} end
local of_use = record and not says_nothing(record) and record
local lease = stored(LEASE)
if is_fill_lease(lease) and not holds(lease, TOKEN) then
  local left = redis.call('PTTL', LEASE)
  if not rests(lease) then
    if not is_waited_for(lease) then redis.call('SETRANGE', LEASE, 0, 'w') end
    local told = of_use and (FALLBACK == '2' and '' or FALLBACK == '1' and expired(record) and record)
    return {epoch, seq, 'wait', told or false, left}
  end
  if FALLBACK == '2' or (FALLBACK == '1' and of_use) then return {epoch, seq, 'resting', record or false, left} end
end
local ends_ms = lost_guards_end_ms(0)
redis.call('SET', LEASE, 'h' .. epoch .. TOKEN, 'PX', ends_ms and px_until(ends_ms, PX) or PX)
in_contexts(first, last)
return {epoch, seq, 'granted', record or false, 0}
