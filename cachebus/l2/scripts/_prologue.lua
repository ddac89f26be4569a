-- Every script begins with this. It reads the shard's meta and asks whether this is the server, and the history, that
-- meta speaks of. Where it is not, the script does nothing and replies nil; the caller then runs `takeover` and asks
-- again. After it `epoch`, `seq`, `now_us`, `low` and `marked` hold.
-- KEYS 1 meta; 2 the marks of the bucket, where the script judges records. ARGV 1 facts (protocol, shards, bus), 2 how
-- far the caller has applied, 3 the epoch that it is in, 4 the bucket, '' for none. The script's own follow.
local META, BUCKET, ALL = KEYS[1], ARGV[4], '**'
local prefix = string.sub(META, 1, -5)
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local function int(number) return string.format('%.0f', number) end

-- pcall: what somebody else wrote under our names is no meta of ours, and ends in a takeover that removes it.
local meta = redis.pcall('HMGET', META, 'facts', 'server', 'epoch', 'seq', 'guards', 'guarded', 'w:' .. ALL,
  'n:' .. ALL, 'w:' .. BUCKET, 'n:' .. BUCKET, 'bound_ms', 'guard_ms', 'born', 'mode', 'logged')
if meta.err then
  if not string.find(meta.err, 'WRONGTYPE', 1, true) then return meta end
  meta = {}
end
local facts, server, epoch, seq, guarded_until, guarded, low_all, marked_all, low, marked, bound_ms, guard_ms, born_us, mode,
  logged = unpack(meta, 1, 15)
local function number(text) return tonumber(text or 0) or 0 end
seq, low, bound_ms, guard_ms = tonumber(seq or nil), math.max(number(low_all), number(low)), number(bound_ms), number(guard_ms)
guarded_until, guarded, marked_all, marked = number(guarded_until), number(guarded), number(marked_all), number(marked)
if facts and facts ~= ARGV[1] then return redis.error_reply('CACHEBUS ' .. facts .. ' | ' .. ARGV[1]) end
local lost = not seq or not epoch or not server or (ARGV[3] == epoch and tonumber(ARGV[2]) > seq)
  or not string.find(redis.call('INFO', 'replication'), 'master_replid:' .. server, 1, true)

-- Marks and guards lie in keys of their own, which can be evicted: meta has their numbers, so that this is noticed.
local function lacks(count, command, key) return count > 0 and redis.pcall(command, key) ~= count end
if BUCKET ~= '' and not lost then
  lost = lacks(marked, 'ZCARD', prefix .. 'marks:' .. BUCKET) or lacks(marked_all, 'ZCARD', prefix .. 'marks:' .. ALL)
end
if guarded_until > now_us and not lost then lost = lacks(guarded, 'HLEN', prefix .. 'guards') end
