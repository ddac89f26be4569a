-- after: prologue
-- Begin a new epoch where the history is not the one that meta speaks of; where it is (another caller was faster) do
-- nothing. Every older record, fill lease, mark and guard is void.
local NEW_EPOCH = ARGV[5] -- one never used before
local MODE = ARGV[6] -- how events are to be published: 'plain', or 'sharded', which a server before version 7 does not know
local BOUND_MS, GUARD_MS, ALONE = ARGV[7], ARGV[8], ARGV[9] -- as `probe`'s
local LEFT = ARGV[10] -- an epoch that the caller has left, '' or nothing for none: something else came after it, and what
-- was written then is not known here, so it ends
if not lost and epoch ~= LEFT then return {epoch, seq} end
epoch, seq = NEW_EPOCH, math.max(seq or 0, tonumber(APPLIED)) + 1
local gone = {META, prefix .. 'log', prefix .. 'nodes', prefix .. 'guards', prefix .. 'buckets', prefix .. 'marks:' .. ALL}
for bucket = 0, 255 do gone[#gone + 1] = prefix .. 'marks:' .. string.format('%02x', bucket) end
redis.call('UNLINK', unpack(gone))
local server = string.match(info, 'master_replid:(%w+)')
redis.call('HSET', META, 'facts', FACTS, 'server', server, 'epoch', epoch, 'seq', int(seq), 'born', int(now_us),
  'mode', redis.REDIS_VERSION_NUM and MODE or 'plain', 'bound_ms', int(math.max(bound_ms, tonumber(BOUND_MS))),
  'guard_ms', int(math.max(guard_ms, tonumber(GUARD_MS))), 'alone', int(math.max(alone, tonumber(ALONE))),
  'synced', string.match(redis.call('INFO', 'stats'), 'sync_full:(%d+)') or 0,
  'replicas', follow(info), 'looked', int(now_us), 'logged', 0, 'contexts', string.rep('0', 256))
return {epoch, seq}
