-- after: prologue usual records guards publish events
-- Store a new record and tell everyone. KEYS 3 record, 4 lease, 5.. other records and leases that go. ARGV 10 '1' to
-- store only where there is no valid record, or one that says "not found", 11 number of its scopes, 12 its first 40 bytes,
-- whose epoch and seq are set here, 13 the rest, 14 px (0 none), 15 the key's name in L1, 16 the longest guard that the
-- caller has heard of in ms, then its scopes, then the names to mark. Under a guard nothing is stored: what is there goes
-- all the same, but for '1'.
local first, last = 17, 16 + tonumber(ARGV[11])
local function record_at(position)
  return sealed(ARGV[12], epoch, struct.pack('>I8', position), string.sub(ARGV[12], 29, 36)) .. ARGV[13]
end
local guarded = guarded_ms(ARGV[15], first, last, record_at(seq))
if ARGV[10] == '1' then
  local now = stored(KEYS[3])
  if guarded or (now and not hidden(now, first, last) and not expired(now) and not says_nothing(now)) then
    return {epoch, seq, bound_ms, '', 0, 0}
  end
end
-- A full server refuses this, and so all: once a DEL had gone through, it would let the script store without end.
redis.call('HSET', META, 'seq', int(seq))
remove(guarded and 3 or 4)
local head = announce(last + 1, #ARGV)
if guarded then return {epoch, seq, bound_ms, head, 0, 0} end
local record, px, expires_ms = kept_short(record_at(seq), ARGV[14], ARGV[16])
store(KEYS[3], record, px)
in_contexts(first, last)
return {epoch, seq, bound_ms, head, 1, expires_ms}
