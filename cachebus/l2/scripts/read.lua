-- after: prologue usual line tenure records
-- Records validated here, for a node whose own marks may be old. KEYS 3.. records; ARGV 7..: for each the number of
-- its scopes, then their names.
local found, at = {epoch, seq}, 7
for i = 3, #KEYS do
  local count = tonumber(ARGV[at])
  local record = stored(KEYS[i])
  found[#found + 1] = record and not hidden(record, at + 1, at + count) and record or false
  at = at + count + 1
end
return found
