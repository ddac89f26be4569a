-- after: prologue usual row
-- Every node's row, and the name of their present set.
local BOUND_MS, ALONE = ARGV[7], ARGV[8] -- as `probe`'s
bound_ms, alone = raised('bound_ms', bound_ms, BOUND_MS), raised('alone', alone, ALONE)
local rows = redis.pcall('HGETALL', NODES)
return {epoch, seq, bound_ms, rows.err and {} or rows, alone}
