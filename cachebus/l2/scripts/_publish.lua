-- In front of scripts that tell others. ARGV 5: the channel, '' where another bus carries the events.
local function publish(message)
  local sharded = mode == 'sharded' and redis.REDIS_VERSION_NUM -- there from version 7 on, as SPUBLISH is
  if ARGV[5] ~= '' then redis.call(sharded and 'SPUBLISH' or 'PUBLISH', ARGV[5], message) end
end
