if lost then return false end
