-- Invalidate, and put a token on names, or take it away. KEYS 5.. records and leases; ARGV 9 body, 10 token (16 bytes),
-- 11 for how long it stands at most in ms, 0 to take it away, 12 number of scopes and tags to mark, then these, then the
-- guarded names.
local px_us, last = tonumber(ARGV[11]) * 1000, 12 + tonumber(ARGV[12])
if #KEYS > 4 then
  for i = 5, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
end
local latest = tonumber(redis.call('HGET', META, 'guards') or '0')
if latest <= now_us then
  -- None stands any more: what those have left who were killed is swept here, when somebody begins anew.
  for _, field in ipairs(redis.call('HKEYS', META)) do
    if string.sub(field, 1, 2) == 'g:' then redis.call('HDEL', META, field) end
  end
end
for i = last + 1, #ARGV do
  local field, kept = 'g:' .. ARGV[i], ''
  local tokens = redis.call('HGET', META, field) or ''
  for at = 1, #tokens, 24 do
    local own = string.sub(tokens, at, at + 15) == ARGV[10]
    if not own and struct.unpack('>I8', tokens, at + 16) > now_us then kept = kept .. string.sub(tokens, at, at + 23) end
  end
  if px_us > 0 then kept = kept .. ARGV[10] .. struct.pack('>I8', now_us + px_us) end
  if kept == '' then redis.call('HDEL', META, field) else redis.call('HSET', META, field, kept) end
end
if px_us > 0 then redis.call('HSET', META, 'guards', int(math.max(latest, now_us + px_us))) end
announce(13, last, ARGV[9])
return {epoch, seq, 1, floor}
