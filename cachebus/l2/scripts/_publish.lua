-- In front of scripts that tell others. ARGV 5: the channel, '' where another bus carries the events.
local function publish(message)
  if ARGV[5] ~= '' then redis.call(mode == 'sharded' and 'SPUBLISH' or 'PUBLISH', ARGV[5], message) end
end
