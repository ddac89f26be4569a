-- after: prologue usual publish events
-- Remove records and fill leases, move marks, log, publish. KEYS from 2 on are those that go, ARGV from 10 on the scopes
-- and tags to mark.
remove(2)
local header = announce(10, #ARGV)
return {epoch, seq, bound_ms, header}
