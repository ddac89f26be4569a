-- In front of scripts that a node tells where it stands: its row among the nodes, a msgpack map. They write in any
-- case, so a primary that has been cut off refuses them.
local NODE = ARGV[5] -- its id; '' for a producer, which is no node
local ROW = ARGV[6] -- the rest of the map, as the node has packed it
local NODES, NAME = prefix .. 'nodes', '#'
if NODE ~= '' then
  local row = '\134\167applied\207' .. struct.pack('>I8', APPLIED)
    .. '\165epoch' .. string.char(160 + #CALLERS_EPOCH) .. CALLERS_EPOCH
    .. '\165at_us\207' .. struct.pack('>I8', now_us) .. ROW
  local noted = redis.pcall('HSET', NODES, NODE, row)
  if type(noted) == 'table' then
    -- Refused, as by a server that is full: once a DEL had gone through, it would let the whole script write.
    if not string.find(noted.err, 'WRONGTYPE', 1, true) then return noted end
    redis.call('DEL', NODES)
    noted = redis.call('HSET', NODES, NODE, row)
  end
  -- A new row: perhaps the first of a new set, in which nodes that live may be missing. The name of the set lies in it,
  -- so it is lost with the rows, and another one tells of that.
  if noted == 1 then redis.call('HSETNX', NODES, NAME, epoch .. int(now_us) .. NODE) end
end
-- The largest of a kind that the fleet has ever had: meta keeps it, and gives it to all.
local function raised(field, known, told)
  if tonumber(told) <= known then return known end
  redis.call('HSET', META, field, told)
  return tonumber(told)
end
