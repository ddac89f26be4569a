-- after: prologue usual publish events
-- Invalidate, and put a token on names, or take it away. KEYS from 2 on are the records and fill leases that go.
local TOKEN = ARGV[10] -- 16 bytes
local PX = ARGV[11] -- for how long it stands at most, in ms; '0' to take it away
local MOST_GUARDED = ARGV[12] -- names
local MARKED = ARGV[13] -- the number of scopes and tags to mark: these follow, and after them the guarded names
local MOST_ON_A_NAME = 1000 -- each costs all that look at the name
local GUARDS, px_us, last = prefix .. 'guards', tonumber(PX) * 1000, 13 + tonumber(MARKED)
local cursor, noted = redis.call('HGET', META, 'sweep') or '0', guarded
local swept = number(redis.call('HGET', META, 'swept')) -- the latest end of what was swept
local swept_before = swept
if guarded_until <= now_us then
  if guarded > 0 then swept = math.max(swept, guarded_until) end
  redis.call('UNLINK', GUARDS) -- none stands any more: what those have left who were killed goes at once
  guarded, cursor = 0, '0'
end

-- Those of a name's tokens that stand; without one of them, if that is given.
local function standing(tokens, without)
  local kept = {}
  for at = 1, #tokens, 24 do
    local ends, is_own = struct.unpack('>I8', tokens, at + 16), string.sub(tokens, at, at + 15) == without
    if ends > now_us and not is_own then kept[#kept + 1] = string.sub(tokens, at, at + 23) end
    if ends <= now_us and not is_own then swept = math.max(swept, ends) end
  end
  return table.concat(kept)
end

-- Some of what those have left who were killed while others guard: more than this adds, so it grows no further.
if guarded > 64 then
  local found = redis.call('HSCAN', GUARDS, cursor, 'COUNT', 64 + 2 * (#ARGV - last))
  cursor = found[1]
  for i = 1, #found[2], 2 do
    if standing(found[2][i + 1]) == '' and redis.call('HDEL', GUARDS, found[2][i]) == 1 then guarded = guarded - 1 end
  end
end
local before, kept = {}, {}
local fits = px_us == 0 or guarded + #ARGV - last <= tonumber(MOST_GUARDED)
for i = last + 1, #ARGV do
  local name = ARGV[i]
  before[name] = redis.call('HGET', GUARDS, name)
  kept[name] = standing(before[name] or '', TOKEN)
  fits = fits and (px_us == 0 or #kept[name] < 24 * MOST_ON_A_NAME)
end
if not fits then
  if guarded ~= noted then redis.call('HSET', META, 'guarded', guarded, 'sweep', cursor, 'swept', int(swept)) end
  return {epoch, seq, -1, ''}
end

for name, tokens in pairs(kept) do
  if px_us > 0 then tokens = tokens .. TOKEN .. struct.pack('>I8', now_us + px_us) end
  if tokens ~= '' then
    redis.call('HSET', GUARDS, name, tokens)
    if not before[name] then guarded = guarded + 1 end
  elseif before[name] then
    redis.call('HDEL', GUARDS, name)
    guarded = guarded - 1
  end
end
redis.call('HSET', META, 'guards', int(math.max(guarded_until, now_us + px_us)), 'guarded', guarded, 'sweep', cursor)
if swept ~= swept_before then redis.call('HSET', META, 'swept', int(swept)) end
remove(2)
local header = announce(14, last)
return {epoch, seq, bound_ms, header}
