-- after: prologue usual
-- Take a node's line away. ARGV 5 its id, 6 '1' where it may live: the set of lines then has another name, so that whoever
-- waits for the nodes waits for its lease to end.
local NODES = prefix .. 'nodes'
local gone = redis.call('HDEL', NODES, ARGV[5])
if gone == 1 and ARGV[6] == '1' then redis.call('HSET', NODES, '#', epoch .. int(now_us) .. '!') end
return {epoch, seq, gone}
