-- Remove records and leases, move marks, log, publish. KEYS 5.. records and leases; ARGV 9 body, 10.. scopes and tags.
if #KEYS > 4 then
  for i = 5, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
end
announce(10, #ARGV, ARGV[9])
return {epoch, seq, 1, floor}
