"""The bus over Kafka: one topic, a partition for some shards each, heard and sent to by partition.

In the order in which it is best read:

1. `bus`: an event goes out, and comes in. `envelope`: what goes around it; `signature`: who may send it.
2. Out: `sender`, with a `queue` for each partition, over a `lane` to its leader.
3. In: `ears`, with an `ear` for each partition. `portion`: how much is asked for at once; `inflating` and `opening`:
   how batches are read; `taking`: which messages are events for this node.
4. The topic: `topic` makes it, `watch` sees where its partitions are, `rights` and `refusals` say what is forbidden.
5. Connections: `connection` to one broker, `brokers` to whichever answers, `reach` tells who waits for them.
6. Around the driver: `client`, `driver`, `endings`, and the `tokens` of OAUTHBEARER.
"""
