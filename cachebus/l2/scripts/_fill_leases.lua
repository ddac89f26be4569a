-- In front of scripts that know of fill leases. A fill lease is a letter, the epoch, the token: `h` it is held, `w` held and
-- somebody waits for its end, `r` it rests, since the source has just failed its holder.
local function is_fill_lease(lease) return lease and string.sub(lease, 2, 17) == epoch end
local function rests(lease) return string.byte(lease) == 114 end -- r
local function is_waited_for(lease) return string.byte(lease) == 119 end -- w
local function holds(lease, token) return is_fill_lease(lease) and not rests(lease) and string.sub(lease, 18) == token end
