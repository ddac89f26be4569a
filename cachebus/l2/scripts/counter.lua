-- Add to a counter; a request id makes it safe to repeat. KEYS 5 counter, 6 request. ARGV 9 amount, 10 '1' if there is
-- a request id, 11 px (0 none).
if ARGV[10] == '1' then
  local answered = stored(KEYS[6])
  if answered then return tonumber(answered) end
end
if ARGV[9] == '0' then return tonumber(stored(KEYS[5]) or '0') or 0 end
local value = redis.call('INCRBY', KEYS[5], ARGV[9])
if ARGV[11] ~= '0' and redis.call('PTTL', KEYS[5]) < 0 then redis.call('PEXPIRE', KEYS[5], ARGV[11]) end
if ARGV[10] == '1' then redis.call('SET', KEYS[6], int(value), 'PX', 60000) end
return value
