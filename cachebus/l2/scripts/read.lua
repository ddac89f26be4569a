-- after: prologue usual row tenure records
-- Records validated here, for a node whose own marks may be old. KEYS from 3 on are the records; ARGV from 7 on, for each,
-- the number of its scopes and their names.
local found, at = {epoch, seq}, 7
for i = 3, #KEYS do
  local count = tonumber(ARGV[at])
  local record = stored(KEYS[i])
  found[#found + 1] = record and not hidden(record, at + 1, at + count) and record or false
  at = at + count + 1
end
return found
