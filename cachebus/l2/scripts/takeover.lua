-- after: prologue
-- Begin a new epoch where the history is not the one that meta speaks of; where it is (another caller was faster) do
-- nothing. Every older record, lease, mark and guard is void. ARGV 5 an epoch never used before, 6 how events are to be
-- published: 'plain' or 'sharded', which a server before version 7 does not know; 7 the largest staleness bound and 8 the
-- longest guard that the caller has heard of, in ms; 9 as `probe`'s 10; 10 an epoch that the caller has left, '' or nothing
-- for none: it ends here, since something else came after it, and what was written then is not known here.
if not lost and epoch ~= ARGV[10] then return {epoch, seq} end
epoch, seq = ARGV[5], math.max(seq or 0, tonumber(ARGV[2])) + 1
local gone = {META, prefix .. 'log', prefix .. 'nodes', prefix .. 'guards', prefix .. 'buckets', prefix .. 'marks:' .. ALL}
for bucket = 0, 255 do gone[#gone + 1] = prefix .. 'marks:' .. string.format('%02x', bucket) end
redis.call('UNLINK', unpack(gone))
local server = string.match(info, 'master_replid:(%w+)')
redis.call('HSET', META, 'facts', ARGV[1], 'server', server, 'epoch', epoch, 'seq', int(seq), 'born', int(now_us),
  'mode', redis.REDIS_VERSION_NUM and ARGV[6] or 'plain', 'bound_ms', int(math.max(bound_ms, tonumber(ARGV[7]))),
  'guard_ms', int(math.max(guard_ms, tonumber(ARGV[8]))), 'alone', int(math.max(alone, tonumber(ARGV[9]))),
  'synced', string.match(redis.call('INFO', 'stats'), 'sync_full:(%d+)') or 0,
  'replicas', follow(info), 'looked', int(now_us), 'logged', 0, 'contexts', string.rep('0', 256))
return {epoch, seq}
