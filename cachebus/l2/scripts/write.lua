-- Store a new record and tell everyone. KEYS 5 record, 6 lease, 7.. other records and leases that go. ARGV 9 '1' to
-- store only where there is no valid record, 10 number of its scopes, 11 head before the epoch, 12 rest after the seq,
-- 13 px (0 none), 14 body, then its scopes, then the names to mark.
local scopes = tonumber(ARGV[10])
if ARGV[9] == '1' then
  local now = stored(KEYS[5])
  if now and not hidden(now, 15, 14 + scopes) and not expired(now) then return {epoch, seq, 0, floor} end
end
for i = 6, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
announce(15 + scopes, #ARGV, ARGV[14])
local record = ARGV[11] .. epoch .. struct.pack('>I8', seq) .. ARGV[12]
if ARGV[13] == '0' then
  redis.call('SET', KEYS[5], record)
else
  redis.call('SET', KEYS[5], record, 'PX', ARGV[13])
end
return {epoch, seq, 1, floor}
