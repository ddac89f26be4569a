-- A valid record, or the right to fill. KEYS 5 record, 6 lease. ARGV 9 token, 10 px, 11 '1' to refresh even a valid
-- record, 12 the key's name in L1, 13 number of scopes, then these, then the tags that the load will give its record.
-- Absence never grants a fill: only this lease does, and under a guard there is none.
local left_ms = guarded_ms(ARGV[12], 14, #ARGV)
if left_ms then return {epoch, seq, 'guarded', false, left_ms} end
local record = stored(KEYS[5])
if record and hidden(record, 14, 13 + tonumber(ARGV[13])) then record = nil end
if record and ARGV[11] ~= '1' and not expired(record) then return {epoch, seq, 'hit', record, 0} end
local lease = stored(KEYS[6])
if lease and string.sub(lease, 1, 16) == epoch and not holds(lease, ARGV[9]) then
  if string.sub(lease, -2) ~= ':w' then redis.call('SET', KEYS[6], lease .. ':w', 'KEEPTTL') end
  return {epoch, seq, 'wait', false, redis.call('PTTL', KEYS[6])}
end
redis.call('SET', KEYS[6], epoch .. ':' .. ARGV[9], 'PX', ARGV[10])
return {epoch, seq, 'granted', record or false, 0}
