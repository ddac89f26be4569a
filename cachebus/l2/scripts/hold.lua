-- Extend (px > 0) or release a lease. KEYS 5 lease; ARGV 9 token, 10 px, 11 the key's name in L1.
local lease = stored(KEYS[5])
if not holds(lease, ARGV[9]) then return {epoch, seq, 0} end
if tonumber(ARGV[10]) > 0 then
  redis.call('PEXPIRE', KEYS[5], ARGV[10])
else
  redis.call('DEL', KEYS[5])
  wake(lease, ARGV[11])
end
return {epoch, seq, 1}
