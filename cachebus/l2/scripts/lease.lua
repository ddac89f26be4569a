-- after: prologue usual line tenure records guards leases
-- A valid record, or the right to fill. KEYS 3 record, 4 lease. ARGV 7 token, 8 px, 9 '1' to refresh even a valid record,
-- 10 what would do for the caller while the source rests: '0' nothing, '1' a record that has expired, '2' what it holds,
-- 11 the key's name in L1, 12 number of scopes, then these, then the tags that the load will give its record. Absence
-- never grants a fill: only this lease does, and under a guard there is none.
local first, last = 13, 12 + tonumber(ARGV[12])
local left_ms = guarded_ms(ARGV[11], first, #ARGV)
if left_ms then return {epoch, seq, 'guarded', false, left_ms} end
local record = stored(KEYS[3])
if record and hidden(record, first, last) then record = nil end
if record and ARGV[9] ~= '1' and not expired(record) then return {epoch, seq, 'hit', record, 0} end
local of_use = record and not says_nothing(record) and record
local lease = stored(KEYS[4])
if is_lease(lease) and not holds(lease, ARGV[7]) then
  local left = redis.call('PTTL', KEYS[4])
  if not rests(lease) then
    if not is_waited_for(lease) then redis.call('SETRANGE', KEYS[4], 0, 'w') end
    local told = of_use and (ARGV[10] == '2' and '' or ARGV[10] == '1' and expired(record) and record)
    return {epoch, seq, 'wait', told or false, left}
  end
  if ARGV[10] == '2' or (ARGV[10] == '1' and of_use) then return {epoch, seq, 'resting', record or false, left} end
end
local ends_ms = lost_guards_end_ms(0)
redis.call('SET', KEYS[4], 'h' .. epoch .. ARGV[7], 'PX', ends_ms and px_until(ends_ms, ARGV[8]) or ARGV[8])
in_contexts(first, last)
return {epoch, seq, 'granted', record or false, 0}
