-- after: prologue usual line
-- Every node's line, and the name of their present set.
local BOUND_MS, ALONE = ARGV[7], ARGV[8] -- as `probe`'s
bound_ms, alone = raised('bound_ms', bound_ms, BOUND_MS), raised('alone', alone, ALONE)
local lines = redis.pcall('HGETALL', NODES)
return {epoch, seq, bound_ms, lines.err and {} or lines, alone}
