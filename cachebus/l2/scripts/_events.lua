-- In front of scripts that make an event: marks, the log, the channel.
local MOST_MARKS = ARGV[6]
local MOST_EVENTS = ARGV[7] -- that the log keeps
local MOST_BYTES = ARGV[8] -- of the log
local BODY = ARGV[9] -- of the event

-- Which bucket's marks a name lies in: those of its tenant, by the first two characters of the tenant's SHA-1; names of
-- all tenants have one of their own.
local buckets = {}
local function bucket_of(name)
  local shape = string.byte(name)
  if shape == 78 or shape == 89 then return ALL end -- N, Y
  local tenant = string.match(name, '^%a+\31([^\31]*)') or ''
  if not buckets[tenant] then buckets[tenant] = string.sub(redis.sha1hex(tenant), 1, 2) end
  return buckets[tenant]
end

-- Whether any record of an id's data type can lie in a context; where nobody knows any more, it can.
local flags
local function has_contexts(name)
  flags = flags or redis.call('HGET', META, 'contexts') or string.rep('1', 256)
  local flag = 1 + tonumber(string.sub(redis.sha1hex(string.match(name, '^I\31[^\31]*\31([^\31]*)') or ''), 1, 2), 16)
  return string.sub(flags, flag, flag) == '1'
end

-- Whether a command was refused. What somebody else put in the place of a key of ours goes then; what lay there before is
-- missed by its number.
local function refused(reply, key)
  if type(reply) ~= 'table' then return false end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then redis.call('DEL', key) end
  return true
end

local function put_bucket(bucket, count, size, watermark)
  local key, state = prefix .. 'buckets', struct.pack('>I4I4I8', count, size, watermark)
  if refused(redis.pcall('HSET', key, '.', '', bucket, state), key) then redis.call('HSET', key, '.', '', bucket, state) end
end

-- Drop the oldest marks of the bucket that has most, and raise its low watermark to them. In batches: it then costs
-- little, and seldom anything. A tenant loses by its own bucket alone. Gives the bucket, its watermark, and what went.
-- Where they are not there (evicted, and nobody has asked for them since), the next script is to begin a new epoch.
local function trim(excess)
  local found = redis.call('HGETALL', prefix .. 'buckets')
  local largest, most, state = ALL, -1, nil
  for i = 1, #found, 2 do
    if found[i] ~= '.' then
      local _, size = bucket_of_text(found[i + 1])
      if size > most or (size == most and found[i] < largest) then largest, most, state = found[i], size, found[i + 1] end
    end
  end
  local gone = redis.pcall('ZPOPMIN', prefix .. 'marks:' .. largest, math.max(excess, math.ceil(tonumber(MOST_MARKS) / 128)))
  if #gone == 0 then
    redis.call('HDEL', META, 'epoch')
    return '--', 0, 0
  end
  local gone_size, last = 0, 0
  for i = 1, #gone, 2 do
    gone_size, last = gone_size + 1 + math.floor(#gone[i] / 256), tonumber(gone[i + 1])
  end
  local count, size = bucket_of_text(state)
  put_bucket(largest, count - #gone / 2, size - gone_size, last)
  redis.call('HINCRBY', META, 'trimmed', #gone / 2)
  return largest, last, gone_size
end

-- Set the marks of the names ARGV first..last to `seq`. Gives the bucket whose low watermark this has raised, and that;
-- and whether ids in all contexts were left out, since nothing of their types lies in any. A long name counts for several.
local function mark(first, last, seq_text)
  local counts, sizes, total, left_out, kept = {}, {}, 0, false, false
  for i = first, last do
    local name = ARGV[i]
    local is_id = string.byte(name) == 73 -- I
    if is_id and not has_contexts(name) then
      left_out = true
    else
      local bucket = bucket_of(name)
      kept = kept or is_id
      local key = prefix .. 'marks:' .. bucket
      local added = redis.pcall('ZADD', key, seq_text, name)
      if refused(added, key) then added = redis.call('ZADD', key, seq_text, name) end
      if added == 1 then
        local size = 1 + math.floor(#name / 256)
        counts[bucket], sizes[bucket] = (counts[bucket] or 0) + 1, (sizes[bucket] or 0) + size
        total = total + size
      end
    end
  end
  left_out = left_out and not kept
  if total == 0 then return '--', 0, left_out end
  for bucket, added in pairs(counts) do
    local count, size, watermark = bucket_of_text(redis.pcall('HGET', prefix .. 'buckets', bucket))
    put_bucket(bucket, count + added, size + sizes[bucket], watermark)
  end
  local bucket, watermark, excess = '--', 0, number(marks) + total - tonumber(MOST_MARKS)
  if excess > 0 then
    local gone
    bucket, watermark, gone = trim(excess)
    total = total - gone
  end
  redis.call('HSET', META, 'marks', int(number(marks) + total))
  return bucket, watermark, left_out
end

-- Keep the log within its bytes. The second part of an entry's id is what had been logged with it, so the entry from
-- which on the log fits is found by halves.
local function shorten(total, most)
  local log = prefix .. 'log'
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local from = first and tonumber(string.match(first[1], '^%d+')) or seq
  local till = seq
  while from < till do
    local middle = math.floor((from + till) / 2)
    local entry = redis.call('XRANGE', log, int(middle), '+', 'COUNT', 1)[1]
    local before = entry and tonumber(string.match(entry[1], '%-(%d+)$')) or total
    if total - before > most then from = middle + 1 else till = middle end
  end
  redis.call('XTRIM', log, 'MINID', '~', int(from))
end

-- The next event: names (ARGV first..last) are marked, then it is logged and published, in that order. Gives its header.
local function announce(first, last)
  seq = seq + 1
  local seq_text, bucket, watermark, left_out = int(seq), '--', 0, false
  if last >= first then bucket, watermark, left_out = mark(first, last, seq_text) end
  local header = 'CB2' .. (left_out and '\1' or '\0') .. epoch .. struct.pack('>I8I8', seq, now_us) .. bucket
    .. struct.pack('>I8', watermark)
  header = header .. string.sub(redis.sha1hex(header .. string.sub(BODY, 1, 4)), 1, 8)
  local message, most = header .. BODY, tonumber(MOST_BYTES)
  local total, size = logged + #message + 64, #message + 64
  local total_text = int(total)
  redis.call('HSET', META, 'seq', seq_text, 'logged', total_text)
  local log, id = prefix .. 'log', seq_text .. '-' .. total_text
  local added = redis.pcall('XADD', log, 'MAXLEN', '~', MOST_EVENTS, id, 'e', message)
  if type(added) == 'table' and added.err then
    -- An entry that is none of ours stands in the way. Nodes that miss what goes with it flush, as after trimming.
    redis.call('DEL', log)
    redis.call('XADD', log, id, 'e', message)
  end
  local piece = most / 16
  if total % piece < size then shorten(total, most - piece) end
  publish(message)
  return header
end

local function remove(first)
  for i = first, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
end
