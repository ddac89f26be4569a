-- after: prologue usual records guards publish events
-- Store a new record and tell everyone. Under a guard nothing is stored: what is there goes all the same, but where it is
-- stored only into a gap. KEYS from 4 on go: the fill lease, and other records and fill leases.
local RECORD = KEYS[3]
local ONLY = ARGV[10] -- '0': whatever is there. '1': where no valid record is, or one that says "not found". Else the
-- version of the valid record that it may replace.
local SCOPES = ARGV[11] -- the number of the record's: they follow all these, and after them the names to mark
local HEADER = ARGV[12] -- its first 40 bytes, whose epoch and seq are set here
local REST = ARGV[13] -- of its bytes
local PX = ARGV[14] -- how long L2 keeps it, in ms; '0' for ever
local L1_NAME = ARGV[15] -- the key's
local GUARD_MS = ARGV[16] -- the longest guard that the caller has heard of
local first, last = 17, 16 + tonumber(SCOPES)
local function record_at(position)
  return sealed(HEADER, epoch, struct.pack('>I8', position), string.sub(HEADER, 29, 36)) .. REST
end
local guarded = guarded_ms(L1_NAME, first, last, record_at(seq))
if ONLY ~= '0' then
  local now = stored(RECORD)
  local valid = now and not hidden(now, first, last) and not expired(now) and not says_nothing(now)
  local fits = not valid
  if ONLY ~= '1' then fits = valid and string.sub(now, 41, 44) == ONLY end
  if guarded or not fits then
    return {epoch, seq, bound_ms, '', 0, 0}
  end
end
-- A full server refuses this, and so all: once a DEL had gone through, it would let the script store without end.
redis.call('HSET', META, 'seq', int(seq))
remove(guarded and 3 or 4)
local header = announce(last + 1, #ARGV)
if guarded then return {epoch, seq, bound_ms, header, 0, 0} end
local record, px, expires_ms = kept_short(record_at(seq), PX, GUARD_MS)
store(RECORD, record, px)
in_contexts(first, last)
return {epoch, seq, bound_ms, header, 1, expires_ms}
