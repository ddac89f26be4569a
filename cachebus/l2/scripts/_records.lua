-- In front of scripts that judge records.
local MAGIC = '\203\2'

local function tags_of(record)
  local names, at = {}, 68
  for _ = 1, string.byte(record, 65) do
    if at + 1 > #record then return nil end
    local after = at + 2 + struct.unpack('>I2', record, at)
    if after > #record + 1 then return nil end
    names[#names + 1] = string.sub(record, at + 2, after - 1)
    at = after
  end
  return names
end

local function beyond(granted, key, names)
  for _, mark in ipairs(redis.call('ZMSCORE', key, unpack(names))) do
    if mark and tonumber(mark) > granted then return true end
  end
  return false
end

-- Whether a record may not be believed: none at all, not one of this epoch, or replaced by a low watermark, a scope
-- (ARGV first..last: the first two are of all tenants, the others lie in the bucket) or a tag.
local function hidden(record, first, last)
  if #record < 67 or string.sub(record, 1, 2) ~= MAGIC or string.sub(record, 5, 20) ~= epoch then return true end
  local granted = struct.unpack('>I8', record, 21)
  if granted < low then return true end
  if marked_all > 0 and beyond(granted, prefix .. 'marks:' .. ALL, {ARGV[first], ARGV[first + 1]}) then return true end
  if marked == 0 and string.byte(record, 65) == 0 then return false end
  local names = tags_of(record)
  if not names then return true end
  if marked == 0 then return false end
  for i = first + 2, last do names[#names + 1] = ARGV[i] end
  return beyond(granted, KEYS[2], names)
end

-- Whether a record's hard expiry is over (L2 may keep it longer, for a source that fails).
local function expired(record)
  local at_ms = struct.unpack('>I8', record, 29)
  return at_ms ~= 0 and at_ms * 1000 <= now_us
end

-- The first 40 bytes of a record with another epoch, seq and hard expiry, as they lie there. Its check is a CRC-32, XOR
-- the remainder of flags, codec, seq and expiry by 2^32 - 5, of which 2^32 leaves 5: it is turned with them, so no script
-- makes a CRC.
local function sealed(record, its_epoch, granted, expiry)
  local a, b, c, d, check = struct.unpack('>I4I4I4I4I4', record, 21)
  local e, f, g, h = struct.unpack('>I4I4I4I4', granted .. expiry)
  local kind = 625 * struct.unpack('>I2', record, 3)
  local before = (kind + 125 * a + 25 * b + 5 * c + d) % 4294967291
  local after = (kind + 125 * e + 25 * f + 5 * g + h) % 4294967291
  check = bit.bxor(check, before, after) % 4294967296
  return string.sub(record, 1, 4) .. its_epoch .. granted .. expiry .. struct.pack('>I4', check)
end

-- Whether it says that the source has nothing.
local function says_nothing(record) return string.byte(record, 3) % 2 == 1 end

local function stored(key)
  local found = redis.pcall('GET', key)
  return type(found) == 'string' and found or nil
end
