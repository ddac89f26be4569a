"""Commands that are none, or odd."""

from __future__ import annotations

ODD = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Odd(str):
    def encode(self, *_):
        return bytes([255, 254])

async def main(servers, topic, *values):
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    batch = producer.create_batch()  # by hand, so that they come as one however busy this machine is
    for one, headers in zip(values, [[], [(Odd("odd"), b"")], []]):
        batch.append(key=None, value=one.encode(), timestamp=None, headers=headers)
    batch.close()
    await (await producer.send_batch(batch, topic, partition=0))
    await producer.stop()

asyncio.run(main(*sys.argv[1:]))
"""
