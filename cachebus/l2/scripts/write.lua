-- Store a new record and tell everyone. KEYS 5 record, 6 lease, 7.. other records and leases that go. ARGV 9 '1' to
-- store only where there is no valid record, 10 number of its scopes, 11 head before the epoch, 12 rest after the seq,
-- 13 px (0 none), 14 body, 15 the key's name in L1, 16 the longest guard in ms, then its scopes, then the names to mark.
-- Under a guard nothing is stored: what is there goes all the same, but for '1'.
local last = 16 + tonumber(ARGV[10])
local guarded = guarded_ms(ARGV[15], 17, last, ARGV[11] .. epoch .. struct.pack('>I8', seq) .. ARGV[12])
if ARGV[9] == '1' then
  local now = stored(KEYS[5])
  if guarded or (now and not hidden(now, 17, last) and not expired(now)) then return {epoch, seq, 0, floor, 0} end
end
for i = guarded and 5 or 6, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
announce(last + 1, #ARGV, ARGV[14])
if guarded then return {epoch, seq, 0, floor, 0} end
local record, px, expires_ms = kept_short(ARGV[11] .. epoch .. struct.pack('>I8', seq) .. ARGV[12], ARGV[13], ARGV[16])
store(KEYS[5], record, px)
return {epoch, seq, 1, floor, expires_ms}
