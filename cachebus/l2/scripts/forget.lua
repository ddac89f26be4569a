-- after: prologue usual
-- Take a node's row away. Where it may live, the set of rows has another name from then on, so that whoever waits for
-- the nodes waits for its lease to end.
local NODE = ARGV[5] -- its id
local MAY_LIVE = ARGV[6] -- '1' where it may
local NODES = prefix .. 'nodes'
local gone = redis.call('HDEL', NODES, NODE)
if gone == 1 and MAY_LIVE == '1' then redis.call('HSET', NODES, '#', epoch .. int(now_us) .. '!') end
return {epoch, seq, gone}
