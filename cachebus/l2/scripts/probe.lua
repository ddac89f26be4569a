-- after: prologue usual row tenure
-- Where the shard stands. Meta keeps the greatest of what callers have heard of.
local BOUND_MS = ARGV[7] -- the largest staleness bound that the caller has heard of
local GUARD_MS = ARGV[8] -- the longest guard
local SILENT_US = ARGV[9] -- the rows of nodes that have been silent for so long go; '0' none
local ALONE = ARGV[10] -- '1' where it has heard of a node, itself too, that keeps what it loads without L2
bound_ms, guard_ms = raised('bound_ms', bound_ms, BOUND_MS), raised('guard_ms', guard_ms, GUARD_MS)
alone = raised('alone', alone, ALONE)
local silent = tonumber(SILENT_US)
if silent > 0 then
  local rows = redis.call('HGETALL', NODES)
  for i = 1, #rows, 2 do
    local at = string.find(rows[i + 1], '\165at_us\207', 1, true)
    if rows[i] ~= NAME and (not at or struct.unpack('>I8', rows[i + 1], at + 7) < now_us - silent) then
      redis.call('HDEL', NODES, rows[i])
      -- By the wall clock, which may have been set: whoever it was may live, so the set has another name.
      redis.call('HSET', NODES, NAME, epoch .. int(now_us) .. '-')
    end
  end
  if guarded_until > 0 and guarded_until <= now_us then
    redis.call('UNLINK', prefix .. 'guards')
    redis.call('HDEL', META, 'guards', 'guarded', 'sweep')
  end
end
-- Replicas that may be promoted while this primary, cut off from them, goes on writing. -1 where it does not go on: INFO
-- has the figure of those that keep up only where min-replicas-to-write is set.
local loose = waits and -1 or follow(info)
return {epoch, seq, int(now_us), redis.call('HGET', NODES, NAME) or '', bound_ms, guard_ms, born_us, alone, loose}
