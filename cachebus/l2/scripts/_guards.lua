-- In front of scripts that grant fill leases or store records. A guard says that what its names cover may change at the
-- source at any moment: while it stands nothing of it is stored. Guards lie in a hash of their own: for each name 24 bytes
-- for each token (16 of its own, 8 of its deadline in µs). Meta has the latest deadline of all, so that where there are
-- none nobody looks further.

-- For how many ms the guard that ends first still stands on a key, on its scopes and tags (ARGV first..last), or on
-- those that a record carries; nil where there is none.
local function guarded_ms(key, first, last, record)
  if guarded_until <= now_us then return nil end
  local fields = record and tags_of(record) or {}
  fields[#fields + 1] = 'K\31' .. key
  for i = first, last do fields[#fields + 1] = ARGV[i] end
  local soonest
  for _, tokens in ipairs(redis.call('HMGET', prefix .. 'guards', unpack(fields))) do
    for at = 17, tokens and #tokens or 0, 24 do
      local deadline = struct.unpack('>I8', tokens, at)
      if deadline > now_us and not (soonest and soonest <= deadline) then soonest = deadline end
    end
  end
  return soonest and math.ceil((soonest - now_us) / 1000)
end

-- Whether a guard may have stood on a tag of a record since its load began, be it over by now: a loader may tell a tag that
-- nobody knew of when the fill lease was granted, and a writer that was killed tells of nothing. What guards have left is
-- swept: of that, only the latest end of all is known.
local function was_guarded(record)
  local since_us = struct.unpack('>I8', record, 45) * 1000
  if guarded_until <= since_us or string.byte(record, 65) == 0 then return false end
  if number(redis.call('HGET', META, 'swept')) > since_us then return true end
  for _, tokens in ipairs(redis.call('HMGET', prefix .. 'guards', unpack(tags_of(record) or {''}))) do
    for at = 17, tokens and #tokens or 0, 24 do
      if struct.unpack('>I8', tokens, at) > since_us then return true end
    end
  end
  return false
end

-- A takeover loses all guards. Each had been put up before it, for `most` at the longest, so it has ended by `born` +
-- `most`, and its transaction before that. Until then, what is loaded or set may be from before a commit that nobody will
-- tell of: it lives no longer than until then, and a fill lease lasts no longer, since its load may have read before, too.
-- Who stores later by a later fill lease has read what was committed. Gives until when, in ms; nil when that is over. `own_ms`:
-- the longest guard that the caller has heard of; meta may know of a longer one. (`now_us`: a clock that was set back.)
local function lost_guards_end_ms(own_ms)
  local most = math.max(guard_ms, tonumber(own_ms))
  if most == 0 or now_us >= number(born_us) + most * 1000 then return nil end
  return math.floor(math.min(number(born_us), now_us) / 1000) + most
end

-- How long what should last for `px` ms ('0': for ever) may last where it is to end by `end_ms`; at least 1.
local function px_until(end_ms, px)
  local left = math.max(end_ms - math.floor(now_us / 1000), 1)
  return int(px == '0' and left or math.min(tonumber(px), left))
end

-- The record and its px as they are to be stored, and the record's expiry (ms) where it had to be changed.
local function kept_short(record, px, own_ms)
  local latest = lost_guards_end_ms(own_ms)
  if not latest then return record, px, 0 end
  local had = struct.unpack('>I8', record, 29)
  px = px_until(latest, px)
  if had ~= 0 and had <= latest then return record, px, 0 end
  local header = sealed(record, string.sub(record, 5, 20), string.sub(record, 21, 28), struct.pack('>I8', latest))
  return header .. string.sub(record, 41), px, latest
end

local function store(key, record, px)
  if px == '0' then redis.call('SET', key, record) else redis.call('SET', key, record, 'PX', px) end
end

-- From now on there may be records of a data type in contexts: an invalidation of an id in all contexts needs its mark.
-- The first two characters of the SHA-1 of the type's name say which of 256 flags is its own. `first`: ARGV of the
-- key's scopes, of which a key without contexts has five; the second is `Y` and the type.
local function in_contexts(first, last)
  if last - first < 5 then return end
  local flag = 1 + tonumber(string.sub(redis.sha1hex(string.sub(ARGV[first + 1], 3)), 1, 2), 16)
  local flags = redis.call('HGET', META, 'contexts')
  if flags and string.sub(flags, flag, flag) == '0' then
    redis.call('HSET', META, 'contexts', string.sub(flags, 1, flag - 1) .. '1' .. string.sub(flags, flag + 1))
  end
end
