-- after: prologue usual publish events
-- Remove records and leases, move marks, log, publish. KEYS from 2 on are the records and leases that go, ARGV from 10 on
-- the scopes and tags to mark.
remove(2)
local head = announce(10, #ARGV)
return {epoch, seq, bound_ms, head}
