"""What waits for a partition of Kafka: in order, in batches, and not for ever; and who waits for the partition."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.record.memory_records import MemoryRecords

from cachebus.base.backoff import Attempts
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.connection import BrokerAddress, addresses_of
from cachebus.bus.kafka.lane import Lane
from cachebus.bus.kafka.queue import BATCH_BYTES, Posted, Queue
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.sender import _portion
from cachebus.errors import BusUnavailable
from cachebus.settings import Settings
from tests.support.caches import until

ACCESS = kafka_access(Settings(bus="kafka", kafka_bootstrap_servers="a:1,b:2", l2_timeout_s=1.0, connect_timeout_s=5.0))


def queue_of(*messages: bytes) -> Queue:
    """A queue in which these wait, each due a second after the one before."""
    queue = Queue(0, Reach(ACCESS, monotonic), Attempts(monotonic))
    for due_s, message in enumerate(messages):
        queue.add(Posted(b"key", message, [("name", b"value")], float(due_s)))
    return queue


def test_addresses_are_read_as_the_driver_reads_them() -> None:
    assert addresses_of("a:1, b ,[::1]:2,[::1]") == [("a", 1), ("b", 9092), ("::1", 2), ("::1", 9092)]


def values(data: bytes) -> list[bytes]:
    """The values of a batch's messages, as a reader finds them."""
    records, found = MemoryRecords(data), []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += [record.value for record in batch]
    return found


def test_what_waits_goes_in_order_and_comes_back_in_order() -> None:
    queue = queue_of(b"1", b"2", b"3")
    batch = queue.load()
    assert (values(batch.data), len(queue.waiting), queue.busy) == ([b"1", b"2", b"3"], 0, True)
    queue.add(Posted(b"key", b"4", [], 9.0))
    queue.unload(batch)
    assert not queue.busy
    assert values(queue.load().data) == [b"1", b"2", b"3", b"4"]


def test_a_batch_is_bounded_and_a_larger_message_goes_alone() -> None:
    large, small = b"x" * (BATCH_BYTES + 1), b"y" * (BATCH_BYTES // 2)
    queue = queue_of(small, large, small, small, small)
    sizes = []
    while queue.waiting:
        sizes.append([len(value) for value in values(queue.load().data)])
    assert sizes == [[len(small)], [len(large)], [len(small)], [len(small)], [len(small)]]


def test_only_what_is_due_is_dropped() -> None:
    queue = queue_of(b"0", b"1", b"2", b"3")
    assert queue.expire(-1.0) == []
    assert len(queue.expire(1.0)) == 2
    assert [post.message for post in queue.waiting] == [b"2", b"3"]


def test_what_it_takes_is_known_until_it_is_over() -> None:
    queue = queue_of(b"0" * 1000, b"1" * 2000, b"2" * 3000)
    whole_bytes = queue.size_bytes
    assert whole_bytes > 6000
    batch = queue.load()
    queue.add(Posted(b"key", b"3" * 4000, [], 9.0))
    assert queue.size_bytes > whole_bytes + 4000
    queue.unload(batch)
    assert len(queue.expire(0.0)) == 1
    assert 9000 < queue.size_bytes < whole_bytes + 4000
    queue.over(queue.load())
    assert queue.size_bytes == 0


async def test_the_first_failures_are_waited_out_and_the_next_one_is_told() -> None:
    now_s = 100.0
    reach = Reach(ACCESS, lambda: now_s)
    waiting = asyncio.create_task(reach.gain())
    for later_s in (0.0, 2.4):
        now_s = 100.0 + later_s
        await asyncio.sleep(0)
        reach.lost("moving")
        await asyncio.sleep(0)
        assert not waiting.done()
    now_s = 102.5
    reach.lost("gone")
    with pytest.raises(BusUnavailable, match="Kafka at a:1,b:2: gone"):
        await waiting


async def test_whoever_waits_is_told_of_what_is_gained_and_of_what_is_lost_for_a_moment() -> None:
    reach = Reach(ACCESS, monotonic)
    await reach.loss()
    gained = asyncio.create_task(reach.gain())
    await asyncio.sleep(0)
    reach.gained()
    await gained
    lost = asyncio.create_task(reach.loss())
    await asyncio.sleep(0)
    reach.gained()
    await asyncio.sleep(0)
    assert not lost.done()
    reach.lost("a moment")
    reach.gained()
    await until(lost.done)
    await reach.gain()


def test_addresses_are_those_of_the_settings() -> None:
    assert addresses_of("kafka-1:9092,[::1]:9093") == [BrokerAddress("kafka-1", 9092), BrokerAddress("::1", 9093)]


def test_a_request_takes_no_more_than_its_portion_and_one_message_at_least() -> None:
    queues = [queue_of(*[b"x" * 1000] * 50) for _ in range(10)]
    batches = _portion(list(queues), 20_000)
    assert 15_000 < sum(len(batch.data) for batch in batches) < 25_000
    (alone,) = _portion([queue_of(b"x" * 1000, b"y")], 10)
    assert values(alone.data) == [b"x" * 1000]


async def test_what_nobody_waits_for_any_more_makes_room() -> None:
    queue = queue_of(b"0", b"1")
    answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
    for answer in answers:
        queue.add(Posted(b"key", b"message", [], 9.0, answer))
    answers[1].cancel()
    size_bytes = queue.size_bytes
    (gone,) = queue.take_abandoned()
    assert gone.answer is answers[1]
    assert queue.size_bytes == size_bytes - gone.size_bytes
    assert [post.answer for post in queue.waiting] == [None, None, answers[0], answers[2]]


def test_of_a_lane_only_those_are_looked_at_that_were_stirred_and_no_refused_ones_before_they_are_due() -> None:
    now_s = 100.0

    def clock() -> float:
        return now_s

    def queue(number: int, *messages: bytes) -> Queue:
        made = Queue(number, Reach(ACCESS, clock), Attempts(clock))
        for message in messages:
            made.add(Posted(b"key", message, [], 200.0))
        return made

    lane, idle, full, refused = Lane((BrokerAddress("a", 1), None)), queue(0), queue(1, b"1"), queue(2, b"2")
    refused.attempts.failed()
    for one in (idle, full, refused):
        lane.queues[one.number] = one
        lane.stir(one)
    assert (lane.take_ready(now_s), lane.pause_s(now_s)) == ([full], refused.attempts.wait_s)
    lane.stirred.clear()
    lane.stir(refused)
    assert not lane.stirred.is_set()
    full.busy = True
    assert lane.take_ready(now_s) == []
    now_s += refused.attempts.wait_s
    assert lane.pause_s(now_s) == 0.0
    assert lane.take_ready(now_s) == [refused]
    assert lane.pause_s(now_s) is None
    full.busy = False
    assert lane.take_ready(now_s) == [refused]
    lane.stir(full)
    assert lane.take_ready(now_s) == [refused, full]
    lane.leave(refused)
    assert lane.take_ready(now_s) == [full]
    assert [*lane.queues] == [0, 1]
