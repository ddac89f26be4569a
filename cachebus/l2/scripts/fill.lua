-- Store what was loaded, if nothing came in between. KEYS 5 record, 6 lease. ARGV 9 token, 10 record, 11 px (0 none),
-- 12 version that it may replace ('' any), 13 the key's name in L1, 14.. scopes.
local lease = stored(KEYS[6])
if not holds(lease, ARGV[9]) then return {epoch, seq, 0, floor} end
redis.call('DEL', KEYS[6])
wake(lease, ARGV[13])
if hidden(ARGV[10], 14, #ARGV) then return {epoch, seq, 0, floor} end
if ARGV[12] ~= '' then
  local now = stored(KEYS[5])
  if not now or string.sub(now, 29, 36) ~= ARGV[12] or hidden(now, 14, #ARGV) then return {epoch, seq, 0, floor} end
end
if ARGV[11] == '0' then
  redis.call('SET', KEYS[5], ARGV[10])
else
  redis.call('SET', KEYS[5], ARGV[10], 'PX', ARGV[11])
end
return {epoch, seq, 1, floor}
