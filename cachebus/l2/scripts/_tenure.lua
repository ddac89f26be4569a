-- In front of scripts whose reply is believed. A primary may be deposed and, without ever having followed the one in its
-- place, be made the primary again: so does Sentinel, within seconds of a handover. Its replication id is the old one then,
-- and nothing here tells what was written there. But that took most of the replicas, and who has followed another primary
-- comes back by a full synchronization. The server counts these, and meta keeps the count and how many replicas there were at
-- most: as long as half of them have stayed, rounded down, no other primary had enough to write.
local connected = number(string.match(info, 'connected_slaves:(%d+)'))
if connected > 0 then
  local synced = number(string.match(redis.call('INFO', 'stats'), 'sync_full:(%d+)'))
  local known = redis.call('HMGET', META, 'synced', 'replicas')
  local before, most = tonumber(known[1] or nil), math.max(number(known[2]), connected)
  if synced ~= before or known[2] ~= int(most) then
    -- Fewer than before: somebody has reset the figures, and nobody knows how many there were.
    local came = before and synced >= before and synced - before or connected
    if math.max(0, connected - came) < math.floor(most / 2) then
      redis.call('HDEL', META, 'epoch') -- so that the takeover sees what only these scripts look at
      return false
    end
    redis.call('HSET', META, 'synced', int(synced), 'replicas', int(most))
  end
end
