-- after: prologue usual publish events
-- Remove records and leases, move marks, log, publish. KEYS 2.. records and leases; ARGV 10.. scopes and tags.
remove(2)
local head = announce(10, #ARGV)
return {epoch, seq, bound_ms, head}
