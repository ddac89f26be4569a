-- Every node's line, and the name under which the present register of them began.
local lines = redis.pcall('HGETALL', NODES)
return {epoch, seq, redis.call('HGET', META, 'register') or '', lines.err and {} or lines}
