"""Continuous batching for requests that come and go: the sampler's slots, kept filled by a thread of its own.

In: tickets (ids, a key, how to draw), at any time. Out: new tokens of each, chunk by chunk, to its own receiver. Every
row has settings and columns of its own and shapes never change, so that what is drawn for a ticket does not depend on
what else is in flight, nor on when it came. Device work is that of `slot_state.py`. Knows no text and no HTTP.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ditto_jax.policy import Policy
from ditto_jax.reply_form import FormError
from ditto_jax.sampling.slot_shapes import CallShapes
from ditto_jax.sampling.slot_state import Decoding, SlotState, everything, no_prompts
from ditto_jax.sampling.slots import Mask
from ditto_jax.serving.config import EngineConfig
from model.generate import Drawn, PromptBatch
from model.llama import unstack
from model.sampling import RowSampling, SamplingParams

_LOG = logging.getLogger("ditto_jax.serving")
_WIDTHS = (64, 256, 1024, 4096, 16384)


@dataclasses.dataclass(eq=False)
class Ticket:
    """One reply to draw. `receive` gets (ids, logprobs, finish or None) in the engine's thread and returns whether to
    go on; `failed` gets what went wrong. Setting `cancelled` frees its slot at the next look.
    """

    ids: np.ndarray
    key: np.ndarray
    limit: int
    receive: Callable[[np.ndarray, np.ndarray, str | None], bool]
    failed: Callable[[Exception], None]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    mask: Mask | None = None
    cancelled: bool = False


class SlotEngine:
    """Decodes up to `config.max_rows` tickets together. Thread-safe: `submit`, `aside`, `close`."""

    def __init__(self, policy: Policy, config: EngineConfig, stop_ids: Sequence[int], mesh: Mesh):
        self.config = config
        self.drawn_tokens = 0
        self._policy = policy
        self._widths = (*(width for width in _WIDTHS if width < config.max_model_len), config.max_model_len)
        self._shapes = CallShapes(
            rows_per_slot=1,
            slots=config.max_rows,
            fewer_slots=(),
            prefix=config.max_model_len,
            history=0,
            tail=1,
            ring=(1 + config.max_completion_tokens,),
            admissions=(1, 1),
            own_columns=True,
        )
        is_cpu = jax.default_backend() == "cpu"
        self._decoding = Decoding(
            config=policy.config,
            sampling=SamplingParams(),
            stop_ids=tuple(sorted(set(stop_ids))),
            mesh=mesh,
            steps=config.chunk,
            kv_dtype="compute",
            unstacked=is_cpu,
        )
        self._decode_params = unstack(policy.params, policy.config) if is_cpu else policy.params
        self._inbox: queue.SimpleQueue[Ticket | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._rows: dict[int, Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="ditto-jax slots", daemon=True)
        self._closing = False
        self._state = self._new_state()
        self._settings = _no_settings(config.max_rows)

    @property
    def busy(self) -> tuple[int, int]:
        """How many tickets are decoded, and how many wait."""
        return len(self._rows), len(self._waiting)

    def start(self) -> None:
        """Begins to work on tickets, after compiling everything if so configured."""
        if self.config.warm_up:
            self._warm_up()
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Queues a ticket; its receiver is called from now on."""
        self._inbox.put(ticket)

    def aside(self, work: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Returns the future of other device work, done between two chunks."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def close(self) -> None:
        """Ends the thread; tickets that are not finished fail."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._take_mail()
            if self._closing:
                self._fail_all(RuntimeError("the server is shutting down"))
                return
            try:
                self._turn()
            except Exception as error:
                _LOG.exception("the engine failed; all replies in flight are given up")
                self._fail_all(error)
                self._state = self._new_state()

    def _take_mail(self) -> None:
        """Takes what has arrived; waits for something only if there is nothing to do."""
        idle = not self._rows and not self._waiting
        while True:
            try:
                mail = self._inbox.get(block=idle)
            except queue.Empty:
                return
            idle = False
            if mail is None:
                self._closing = True
            elif isinstance(mail, Ticket):
                self._waiting.append(mail)
            else:
                mail()

    def _turn(self) -> None:
        """Fills free slots, then decodes one chunk."""
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        self._rows = {row: ticket for row, ticket in self._rows.items() if not ticket.cancelled}
        while self._waiting and len(self._rows) < self.config.max_rows:
            self._admit(self._waiting.popleft())
        if self._rows:
            self._decode()

    def _admit(self, ticket: Ticket) -> None:
        """Runs one prompt and draws its first token: alone, so that its sums are rounded alike whoever else waits."""
        row = next(row for row in range(self.config.max_rows) if row not in self._rows)
        self._rows[row] = ticket
        known = len(ticket.ids) - 1
        prompts, settings = self._nobody(self._width(ticket)), _no_settings(1)
        prompts.prefix_ids[0, :known] = ticket.ids[:known]
        prompts.prefix_length[0] = known
        prompts.tail_ids[0, 0] = ticket.ids[known]
        prompts.row_keys[0], prompts.limits[0], prompts.source[row] = ticket.key, ticket.limit, 0
        for arrays, place in ((settings, 0), (self._settings, row)):
            _set(arrays, place, ticket)
        allowed = everything(1, self._policy.config)
        self._fill(row, allowed[0])
        self._deliver(self._state.admit(prompts, copies=False, apart=settings, allowed=allowed))

    def _decode(self) -> None:
        rows = self.config.max_rows
        allowed = None
        if masked := [row for row, ticket in self._rows.items() if ticket.mask is not None]:
            allowed = everything(rows, self._policy.config)
            for row in masked:
                self._fill(row, allowed[row])
        live, enough = len(self._rows), rows
        if self._waiting:  # as many finished rows as make an admission worth its while
            enough = rows - live + min(len(self._waiting), max(1, rows // 8))
        idle = np.ones(rows, bool)
        idle[list(self._rows)] = False
        if self._rows:
            self._deliver(self._state.decode(idle, enough, self._settings, allowed))

    def _fill(self, row: int, words: np.ndarray) -> None:
        """Writes what the ticket in a row may go on with; one that cannot go on fails alone."""
        ticket = self._rows[row]
        try:
            if ticket.mask is not None:
                ticket.mask.fill(words)
        except FormError as error:
            ticket.failed(error)
            del self._rows[row]

    def _deliver(self, drawn: Drawn) -> None:
        tokens, logprobs, count, done = jax.device_get(drawn)
        for row, ticket in list(self._rows.items()):
            new = int(count[row])
            if not new and not done[row]:
                continue
            self.drawn_tokens += new
            ids = tokens[row, :new]
            finish = None
            if done[row]:
                finish = "stop" if new and int(ids[-1]) in self._decoding.stop_ids else "length"
            try:
                if ticket.mask is not None and new and ticket.mask.take(int(ids[-1])):
                    finish = "stop"
            except FormError as error:
                ticket.failed(error)
                del self._rows[row]
                continue
            if not ticket.receive(ids, logprobs[row, :new], finish) or finish is not None:
                del self._rows[row]

    def _width(self, ticket: Ticket) -> int:
        return next(width for width in self._widths if width >= len(ticket.ids) - 1)

    def _nobody(self, width: int) -> PromptBatch:
        """Returns an admission that nobody enters."""
        return no_prompts(dataclasses.replace(self._shapes, prefix=width), 1)

    def _new_state(self) -> SlotState:
        return SlotState(self._decoding, self._shapes, self._policy.params, self._decode_params)

    def _warm_up(self) -> None:
        """Runs every program once on empty slots."""
        for width in self._widths:
            allowed = everything(1, self._policy.config)
            self._state.admit(self._nobody(width), copies=False, apart=_no_settings(1), allowed=allowed)
        nobody = np.ones(self.config.max_rows, bool)
        self._state.decode(nobody, self.config.max_rows, self._settings)
        allowed = everything(self.config.max_rows, self._policy.config)
        self._state.decode(nobody, self.config.max_rows, self._settings, allowed)
        self._state = self._new_state()

    def _fail_all(self, error: Exception) -> None:
        for ticket in (*self._rows.values(), *self._waiting):
            ticket.failed(error)
        self._rows.clear()
        self._waiting.clear()


def _no_settings(rows: int) -> RowSampling:
    """Greedy rows, as NumPy arrays to fill in."""
    return RowSampling(
        np.zeros(rows, np.float32), np.zeros(rows, np.int32), np.ones(rows, np.float32), np.zeros(rows, np.float32)
    )


def _set(arrays: RowSampling, place: int, ticket: Ticket) -> None:
    arrays.temperature[place], arrays.top_k[place] = ticket.temperature, ticket.top_k
    arrays.top_p[place], arrays.min_p[place] = ticket.top_p, ticket.min_p
