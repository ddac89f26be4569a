-- In front of scripts that grant leases or store records. A guard says that what its names cover may change at the
-- source at any moment: while it stands nothing of it is stored. Guards lie in meta, so that they are never lost
-- unnoticed: for each name a field `g:NAME` with 24 bytes for each token (16 of its own, 8 of its deadline in µs), and
-- in `guards` the latest deadline of all, so that where there are none nobody looks further.
local fence = redis.call('HMGET', META, 'guards', 'born')
local guarded_until, born_us = tonumber(fence[1] or '0'), tonumber(fence[2] or '0')

local function tags_of(record)
  local names, at = {}, 62
  for _ = 1, string.byte(record, 61) do
    local after = at + 2 + struct.unpack('>I2', record, at)
    names[#names + 1] = string.sub(record, at + 2, after - 1)
    at = after
  end
  return names
end

-- For how many ms the guard that ends first still stands on a key, on its scopes and tags (ARGV first..last), or on
-- those that a record carries; nil where there is none.
local function guarded_ms(key, first, last, record)
  if guarded_until <= now_us then return nil end
  local fields = {'g:K\31' .. key}
  for i = first, last do fields[#fields + 1] = 'g:' .. ARGV[i] end
  for _, tag in ipairs(record and tags_of(record) or {}) do fields[#fields + 1] = 'g:' .. tag end
  local soonest
  for _, tokens in ipairs(redis.call('HMGET', META, unpack(fields))) do
    for at = 17, tokens and #tokens or 0, 24 do
      local deadline = struct.unpack('>I8', tokens, at)
      if deadline > now_us and not (soonest and soonest <= deadline) then soonest = deadline end
    end
  end
  return soonest and math.ceil((soonest - now_us) / 1000)
end

-- A takeover loses all guards. As long as one of them might have stood, `most` ms, what is stored lives no longer than
-- that: gives the record and its px as they are to be stored, and the record's expiry (ms) where it had to be changed.
local function kept_short(record, px, most)
  most = tonumber(most)
  if most == 0 or now_us >= born_us + most * 1000 then return record, px, 0 end
  local had, latest = struct.unpack('>I8', record, 53), math.floor(now_us / 1000) + most
  px = int(px == '0' and most or math.min(tonumber(px), most))
  if had ~= 0 and had <= latest then return record, px, 0 end
  return string.sub(record, 1, 52) .. struct.pack('>I8', latest) .. string.sub(record, 61), px, latest
end

local function store(key, record, px)
  if px == '0' then redis.call('SET', key, record) else redis.call('SET', key, record, 'PX', px) end
end
