-- In front of scripts whose reply is believed. A primary may be deposed and, without ever having followed the one in its
-- place, be made the primary again: so does Sentinel, within seconds of a handover. Its replication id is the old one then,
-- and nothing here tells what was written there. But where only one of both can write, that took replicas, and at least one
-- of those comes back, by a full synchronization, before this one can write again. The server counts these, and meta keeps
-- the count, how many replicas there were at most, and when somebody last looked. Nobody else can have written
-- 1. if nobody came,
-- 2. or if half of the replicas, rounded up, have stayed, and this one has been able to write: that somebody looked says so.
-- New replicas, of which nothing here is known, may have followed another primary in a time in which nobody looked.
local connected = number(string.match(info, 'connected_slaves:(%d+)'))
if connected > 0 then
  local LOOK_US, UNSEEN_US = 1000000, 3000000
  local synced = number(string.match(redis.call('INFO', 'stats'), 'sync_full:(%d+)'))
  local known = redis.call('HMGET', META, 'synced', 'replicas', 'looked')
  local before, most, unseen_us = tonumber(known[1] or nil), math.max(number(known[2]), follow(info)), now_us - number(known[3])
  if synced ~= before or known[2] ~= int(most) or math.abs(unseen_us) > LOOK_US then
    -- Fewer than before: somebody has reset the figures, and nobody knows how many there were.
    local came = before and synced >= before and synced - before or connected
    local least = math.floor((most + (waits and 1 or 0)) / 2)
    local unseen = waits and unseen_us > math.max(UNSEEN_US, bound_ms * 1000)
    if came > 0 and (unseen or math.max(0, connected - came) < least) then
      redis.call('HDEL', META, 'epoch') -- so that the takeover sees what only these scripts look at
      return false
    end
    redis.call('HSET', META, 'synced', int(synced), 'replicas', int(most), 'looked', int(now_us))
  end
end
