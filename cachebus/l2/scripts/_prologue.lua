-- Every script begins with this. It reads the shard's meta and asks whether this is the server, and the history, that
-- meta speaks of. Where it is not, the script does nothing and replies nil; the caller then runs `takeover` and asks
-- again. After it `epoch`, `seq`, `now_us` and, of the bucket, `low` and `marked` hold.
-- Names in capitals are the script's keys and arguments, and what never changes. The script's own follow these.
local META = KEYS[1]
local FACTS = ARGV[1] -- protocol, shards, bus
local APPLIED = ARGV[2] -- how far the caller has applied, '0' for a producer
local CALLERS_EPOCH = ARGV[3] -- the one that it is in, '' for none
local BUCKET = ARGV[4] -- whose marks the script judges by, '' for none
local ALL = '**' -- the bucket of names that are of all tenants
local prefix = string.sub(META, 1, -5)
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local function int(number) return string.format('%.0f', number) end
local function number(text) return tonumber(text or 0) or 0 end

-- pcall: what somebody else wrote under our names is no meta of ours, and ends in a takeover that removes it.
local meta = redis.pcall('HMGET', META, 'facts', 'server', 'epoch', 'seq', 'guards', 'guarded', 'marks', 'logged', 'mode',
  'bound_ms', 'guard_ms', 'born', 'alone')
if meta.err then
  if not string.find(meta.err, 'WRONGTYPE', 1, true) then return meta end
  meta = {}
end
local epoch, seq, guarded_until, guarded, marks = meta[3], tonumber(meta[4] or nil), number(meta[5]), number(meta[6]), meta[7]
local logged, mode, bound_ms, guard_ms, born_us = number(meta[8]), meta[9], number(meta[10]), number(meta[11]), meta[12]
local alone = number(meta[13])
if meta[1] and meta[1] ~= FACTS then return redis.error_reply('CACHEBUS ' .. meta[1] .. ' | ' .. FACTS) end
local info = redis.call('INFO', 'replication')
-- A replica refuses writes, unless it is set up to take them (replica-read-only no): its primary never hears of those.
if string.find(info, 'role:slave', 1, true) then return redis.error_reply('READONLY it is a replica') end
-- How many replicas follow and acknowledge, which a backup never does.
local function follow(text) return select(2, string.gsub(text, 'state=online,offset=[1-9]', '')) end
-- A primary whose whole machine stood still wakes beside the one in its place, and the server's own count of replicas that
-- keep up is up to a second old: it goes by that one, and would write. How long each has been silent it tells as it is now.
-- At most half of those that follow can be missing where the setting is right. A replica speaks every second: two and a
-- rounded one are no silence.
local waits = string.find(info, 'min_slaves_good_slaves:', 1, true) -- it writes only while replicas keep up
if waits then
  local online, heard = 0, 0
  for lag in string.gmatch(info, 'state=online,offset=%d+,lag=(%d+)') do
    online, heard = online + 1, heard + (tonumber(lag) <= 2 and 1 or 0)
  end
  if heard < math.floor((online + 1) / 2) then
    local silent = int(online - heard) .. ' of ' .. int(online)
    return redis.error_reply('NOREPLICAS it has not heard from ' .. silent .. ' replicas for 3 s')
  end
end
local lost = not seq or not epoch or not meta[2] or (CALLERS_EPOCH == epoch and tonumber(APPLIED) > seq)
  or not string.find(info, 'master_replid:' .. meta[2], 1, true)

-- Marks and guards lie in keys of their own, which can be evicted. Their numbers lie elsewhere, so that this is noticed:
-- those of marks by bucket in `buckets`, each with the size of its names and the low watermark. Whether `buckets` is there
-- every script asks: the next mark would begin it anew, and then nothing would tell of the other buckets' marks.
local function lacks_marks(bucket, count) return count > 0 and redis.pcall('ZCARD', prefix .. 'marks:' .. bucket) ~= count end
local function bucket_of_text(text)
  if type(text) == 'string' then return struct.unpack('>I4I4I8', text) end
  return 0, 0, 0
end
local low, low_all, marked, marked_all, _ = 0, 0, 0, 0, nil
if marks and not lost then
  local found = redis.pcall('HMGET', prefix .. 'buckets', '.', BUCKET, ALL)
  lost = found.err or not found[1]
  if BUCKET ~= '' and not lost then
    marked, _, low = bucket_of_text(found[2])
    marked_all, _, low_all = bucket_of_text(found[3])
    low = math.max(low, low_all)
    lost = lacks_marks(BUCKET, marked) or lacks_marks(ALL, marked_all)
  end
end
if guarded_until > now_us and not lost then lost = redis.pcall('HLEN', prefix .. 'guards') ~= guarded end
