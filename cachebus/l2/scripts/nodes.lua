-- after: prologue usual line
-- Every node's line, and the name of their present set. ARGV 7 the largest staleness bound that the caller has heard of, in
-- ms; 8 as `probe`'s 10.
bound_ms, alone = raised('bound_ms', bound_ms, ARGV[7]), raised('alone', alone, ARGV[8])
local lines = redis.pcall('HGETALL', NODES)
return {epoch, seq, bound_ms, lines.err and {} or lines, alone}
