-- after: prologue usual line
-- Where the shard stands, with all that a node needs to begin: what `probe` replies (ARGV 7 to 9 are its own), then for
-- each bucket that has any its name and its marks, then for each that has one its name and its low watermark.
bound_ms, guard_ms = raised('bound_ms', bound_ms, ARGV[7]), raised('guard_ms', guard_ms, ARGV[8])
local buckets, fields = {ALL}, {}
for bucket = 0, 255 do buckets[#buckets + 1] = string.format('%02x', bucket) end
for i, bucket in ipairs(buckets) do fields[i] = 'n:' .. bucket end
local counts = redis.call('HMGET', META, unpack(fields))
for i, bucket in ipairs(buckets) do fields[i] = 'w:' .. bucket end
local lows = redis.call('HMGET', META, unpack(fields))
local marks, watermarks = {}, {}
for i, bucket in ipairs(buckets) do
  local count = tonumber(counts[i]) or 0
  if count > 0 then
    local key = prefix .. 'marks:' .. bucket
    if lacks(count, 'ZCARD', key) then
      redis.call('HDEL', META, 'epoch') -- so that the takeover sees what only this script looks at
      return false
    end
    marks[#marks + 1] = bucket
    marks[#marks + 1] = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  end
  if lows[i] then
    watermarks[#watermarks + 1] = bucket
    watermarks[#watermarks + 1] = lows[i]
  end
end
return {epoch, seq, int(now_us), redis.call('HGET', NODES, NAME) or '', bound_ms, guard_ms, born_us, marks, watermarks}
