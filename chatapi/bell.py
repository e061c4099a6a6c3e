"""Waking an idle worker the moment there is work, without its asking Redis for it all the time.

Dramatiq's own consumer sleeps between its looks at an empty queue, for up to a second. Ours waits on a blocking command
instead: whoever puts a message on a queue also puts a token on the queue's bell, a list, and each token wakes one
waiting consumer. A token means no more than "look now". Lost ones cost a second, and those too many a look in vain.
"""

from __future__ import annotations

import secrets
import threading
from typing import Any

import redis
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.errors import ConnectionClosed
from redis.exceptions import ClusterDownError

from chatapi.redis_slots import OF_ONE_SLOT

NAMESPACE = "{dramatiq}"
"""In braces, so that all keys of the queue share one slot of a Redis Cluster."""

PROBE_PREFIX = f"chatapi:probe:{NAMESPACE}:"

LOST = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, ClusterDownError, *OF_ONE_SLOT)
"""No answer, or one by a server that has the queue no more, or not quite yet."""

TOKENS = 16
"""How many tokens a bell keeps: as many consumers as may find them at once when they come back from other work."""

TOKEN_SECONDS = 60

RING_SCRIPT = f"""
if ARGV[1] == "enqueue" or ARGV[1] == "requeue" then
    local bell = KEYS[1] .. ":bell:" .. ARGV[3]
    redis.call("lpush", bell, 1)
    redis.call("ltrim", bell, 0, {TOKENS - 1})
    redis.call("expire", bell, {TOKEN_SECONDS})
end
""".encode()
"""Goes at the end of Dramatiq's dispatch script, so that a message and its token are one round trip and one effect.

KEYS and ARGV are those that the head of that script documents.
"""


def bell_of(namespace: str, queue_name: str) -> str:
    """Return the key of a queue's bell. The namespace's braces keep it in the queue's slot of a Redis Cluster."""
    return f"{namespace}:bell:{queue_name}"


def probe_key() -> str:
    """Return a new key in the queue's slot, to be written there to see whether what is rung would be taken.

    A server may answer and not take it: one that is full or is loading, a replica, a node whose slots are being moved
    (which serves the keys that it has).
    """
    return f"{PROBE_PREFIX}{secrets.token_hex(8)}"


class BellConsumer(_RedisConsumer):
    """Reads a queue, and waits for its bell when there is nothing to read.

    It also takes for a lost connection what is as good as one (`LOST`): the stock consumer knows
    `redis.ConnectionError` only, and an ack that fails otherwise would be dropped
    (https://github.com/Bogdanp/dramatiq/issues/894).
    """

    def __init__(self, broker: Any, queue_name: str, prefetch: int, timeout: int) -> None:
        """Wait for up to `timeout` milliseconds at a time; what was not rung for is found after that."""
        # The stock consumer would sleep for up to the time that it is given.
        super().__init__(broker, queue_name, prefetch, 0)
        self._idle_seconds = max(0.01, min(timeout / 1000, broker.longest_wait_seconds))
        self._bell = bell_of(broker.namespace, queue_name)
        self._changed = threading.Event()

    def ack(self, message: Any) -> None:
        try:
            super().ack(message)
        except LOST as error:
            raise ConnectionClosed(error) from None
        finally:
            self._changed.set()

    def nack(self, message: Any) -> None:
        try:
            super().nack(message)
        except LOST as error:
            raise ConnectionClosed(error) from None
        finally:
            self._changed.set()

    def requeue(self, messages: Any) -> None:
        try:
            super().requeue(messages)
        except LOST as error:
            raise ConnectionClosed(error) from None

    def __next__(self) -> Any:
        try:
            # Before the look at what is outstanding, so that a slot that becomes free after it ends the wait.
            self._changed.clear()
            if not self.message_cache and (self.broker.is_draining or self.outstanding_message_count >= self.prefetch):
                self._wait_for_slot()
                return None
            message = super().__next__()
            if message is None:
                self._wait_for_bell()
        except LOST as error:
            raise ConnectionClosed(error) from None
        except redis.ResponseError as error:
            # A master that became a replica says so to those who wait.
            if str(error).startswith("UNBLOCKED"):
                raise ConnectionClosed(error) from None
            raise
        return message

    def _wait_for_slot(self) -> None:
        """Wait until a message is done with. Fetching none of them meanwhile is a sign of life to the other workers."""
        if not self._changed.wait(self._idle_seconds):
            self.broker.do_fetch(self.queue_name, 0)

    def _wait_for_bell(self) -> None:
        """Wait for a token, which a worker that is about to end leaves to another."""
        token = self.broker.client.blpop([self._bell], timeout=self._idle_seconds)
        if token is not None and self.broker.is_draining:
            self.broker.client.lpush(self._bell, 1)
