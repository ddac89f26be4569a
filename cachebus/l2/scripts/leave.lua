-- A node that ends takes its line away.
redis.call('HDEL', NODES, ARGV[1])
return {epoch, seq}
