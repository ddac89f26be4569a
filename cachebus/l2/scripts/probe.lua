-- Where the shard stands. ARGV 9 '1': give the marks too; 10: prune the lines of nodes silent for that many µs, 0 none.
local silent = tonumber(ARGV[10])
if silent > 0 then
  local lines = redis.call('HGETALL', NODES)
  for i = 1, #lines, 2 do
    local seen = tonumber(string.match(lines[i + 1], ':(%d+)$') or '0')
    if seen < now_us - silent then
      redis.call('HDEL', NODES, lines[i])
      -- By the wall clock, which may have been set: whoever it was may live, so the register is a new one.
      redis.call('HSET', META, 'register', ARGV[4])
    end
  end
end
local marks = ARGV[9] == '1' and redis.call('ZRANGE', MARKS, 0, -1, 'WITHSCORES') or false
return {epoch, seq, floor, int(now_us), marks, redis.call('HGET', META, 'register') or '', int(tonumber(redis.call('HGET', META, 'born')) or 0)}
