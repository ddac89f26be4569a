-- In front of scripts that tell others.
local CHANNEL = ARGV[5] -- '' where another bus carries the events
local function publish(message)
  local sharded = mode == 'sharded' and redis.REDIS_VERSION_NUM -- there from version 7 on, as SPUBLISH is
  if CHANNEL ~= '' then redis.call(sharded and 'SPUBLISH' or 'PUBLISH', CHANNEL, message) end
end
