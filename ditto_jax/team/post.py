"""What processes of a run tell each other while a step is under way: judgements and replies, from whoever asked.

In: values under names. Out: the same values on every other process, whenever they arrive. They go through the key-value
store of JAX's coordination service, in which every process writes one numbered series of messages and reads those of
the others, in threads of its own: no device takes part, and no order between processes is needed.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from ditto_jax.errors import ClusterError
from ditto_jax.keys import SampleId, derive

_POLL_MS = 500
_PER_MESSAGE = 64  # values: a message stays well below what the service carries
_REMEMBERED = 4096  # messages; all processes are in step, and nobody reads that far behind


class Store(Protocol):
    """The key-value store of the coordination service."""

    def key_value_set(self, key: str, value: str) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_delete(self, key: str) -> None: ...


class Post:
    """Number `number` of `count` processes. leader_asks: process 0 asks for everything; else each for its prompts."""

    def __init__(self, number: int, count: int, store: Store, leader_asks: bool = False):
        self.number, self.count = number, count
        self._store = store
        self.leader_asks = leader_asks
        self._lock = threading.Lock()
        self._arrived: dict[str, collections.deque[Any]] = collections.defaultdict(collections.deque)
        self._waiting: dict[str, collections.deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]]]
        self._waiting = collections.defaultdict(collections.deque)
        self._outbox: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._error: ClusterError | None = None
        self._closing = threading.Event()
        others = [other for other in range(count) if other != number]
        work = [threading.Thread(target=self._send, daemon=True)]
        work += [threading.Thread(target=self._read, args=(other,), daemon=True) for other in others]
        self._threads = work
        for thread in work:
            thread.start()

    def is_mine(self, key: SampleId) -> bool:
        """Whether this process asks about a sample; all samples of a prompt have one who asks."""
        owner = 0 if self.leader_asks else derive(key.seed, "asked by", key.prompt_id) % self.count
        return owner == self.number

    def send(self, name: str, value: Any) -> None:
        """Tells the others a value, anything that JSON can hold."""
        self._outbox.put([name, value])

    async def receive(self, name: str) -> Any:
        """Returns the value that another process sent under this name; values of one name come in order.

        Raises ClusterError once the others cannot be heard any more.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            if self._arrived[name]:
                return self._arrived[name].popleft()
            del self._arrived[name]
            if self._error is not None:
                raise self._error
            self._waiting[name].append((loop, future))
        return await future

    def close(self) -> None:
        """Sends what is left and stops listening."""
        self._closing.set()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        number = 0
        while (first := self._outbox.get()) is not None:
            values = [first]
            while len(values) < _PER_MESSAGE and not self._outbox.empty():
                after = self._outbox.get()
                if after is None:
                    self._outbox.put(None)
                    break
                values.append(after)
            try:
                self._store.key_value_set(_name(self.number, number), json.dumps(values))
                if number >= _REMEMBERED:
                    self._store.key_value_delete(_name(self.number, number - _REMEMBERED))
            except RuntimeError as error:
                return self._fail(error)
            number += 1

    def _read(self, other: int) -> None:
        number = 0
        while not self._closing.is_set():
            try:
                message = self._store.blocking_key_value_get(_name(other, number), _POLL_MS)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return self._fail(error)
            number += 1
            for name, value in json.loads(message):
                self._arrive(name, value)

    def _arrive(self, name: str, value: Any) -> None:
        with self._lock:
            if not self._waiting[name]:
                self._arrived[name].append(value)
                return
            loop, future = self._waiting[name].popleft()
            if not self._waiting[name]:
                del self._waiting[name]
        loop.call_soon_threadsafe(_settle, future, value)

    def _fail(self, error: RuntimeError) -> None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        lost = ClusterError(
            f"the other processes of the run cannot be heard: {reason}; run the same command on all again"
        )
        with self._lock:
            self._error = lost
            waiting, self._waiting = self._waiting, collections.defaultdict(collections.deque)
        for loop, future in (one for queued in waiting.values() for one in queued):
            loop.call_soon_threadsafe(_settle, future, lost)


def _name(process: int, number: int) -> str:
    return f"ditto_jax/post/{process}/{number}"


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, ClusterError):
        future.set_exception(value)
    else:
        future.set_result(value)


@contextlib.contextmanager
def opened_post(number: int, count: int, leader_asks: bool) -> Iterator[Post | None]:
    """Yields the post of this process, None where it is alone. Raises ClusterError if the processes are not joined."""
    if count == 1:
        yield None
        return
    from jax._src import distributed  # the store has no public name yet

    client = distributed.global_state.client
    if client is None:
        raise ClusterError("several processes, but jax.distributed is not initialised: start them by `ditto-jax`")
    post = Post(number, count, client, leader_asks)
    try:
        yield post
    finally:
        post.close()
