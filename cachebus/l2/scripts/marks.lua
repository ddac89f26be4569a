-- after: prologue usual row tenure
-- Where the shard stands, with all that a node needs to begin: what `probe` replies but for its last two, then for each
-- bucket that has any its name and its marks, then for each that has one its name and its low watermark, then `alone`.
local BOUND_MS, GUARD_MS, ALONE = ARGV[7], ARGV[8], ARGV[9] -- as `probe`'s
bound_ms, guard_ms = raised('bound_ms', bound_ms, BOUND_MS), raised('guard_ms', guard_ms, GUARD_MS)
alone = raised('alone', alone, ALONE)
local found, given, watermarks = marks and redis.pcall('HGETALL', prefix .. 'buckets') or {}, {}, {}
lost = found.err or (marks and #found == 0)
for i = 1, #found, 2 do
  local bucket = found[i]
  if bucket ~= '.' then
    local count, _, watermark = bucket_of_text(found[i + 1])
    lost = lost or lacks_marks(bucket, count)
    if count > 0 and not lost then
      given[#given + 1] = bucket
      given[#given + 1] = redis.call('ZRANGE', prefix .. 'marks:' .. bucket, 0, -1, 'WITHSCORES')
    end
    if watermark > 0 then
      watermarks[#watermarks + 1] = bucket
      watermarks[#watermarks + 1] = int(watermark)
    end
  end
end
if lost then
  redis.call('HDEL', META, 'epoch') -- so that the takeover sees what only this script looks at
  return false
end
return {epoch, seq, int(now_us), redis.call('HGET', NODES, NAME) or '', bound_ms, guard_ms, born_us, given, watermarks, alone}
