"""Host side of sampling: requests in, finished token sequences out, a chunk at a time.

Requests of one group share as long a token prefix as comparing their ids shows; it is prefilled once. All shapes come
from buckets that are a pure function of the configuration and of the requests at hand, so a resumed run meets the
same shapes and no step recompiles after warm-up. Knows token ids and stop rules; knows nothing of tasks, rewards or
judges.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax.linen import logical_axis_rules
from jax.sharding import Mesh

from ditto_jax.chat import common_prefix
from ditto_jax.errors import ConfigError
from ditto_jax.types import FinishReason
from model.config import ModelConfig
from model.generate import PromptBatch, decode_chunk, prefill
from model.llama import Params
from model.partition import ACTIVATION_RULES, row_sharding
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One sequence to continue. Requests with equal `group` may share a prefix; `key` is uint32[2], from the sample's
    identity.
    """

    ids: np.ndarray
    group: int
    key: np.ndarray
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Sampled:
    """ids int32[n] (a stop token is included), logprobs float32[n] of the sampling distribution, and why it ended."""

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class SamplerShapes:
    """Static shapes. `prefix` and `tail` are ascending buckets of prompt lengths; a longer prompt is refused.

    max_rows: rows decoded together, always; missing ones are padding. rows_per_prefix: buckets of how many of them
    share one prefix (samples of one prompt). chunk: decode steps between two looks of the host.
    max_prefill_tokens: prefix tokens prefilled together; fewer prompts at a time when they are long. merge_adapters:
    sample from a copy of the base into which the adapters were added, made once a step.
    """

    prefix: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    tail: tuple[int, ...] = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
    max_new_tokens: int = 256
    max_rows: int = 128
    rows_per_prefix: tuple[int, ...] = (1, 2, 4, 8, 16)
    chunk: int = 16
    max_prefill_tokens: int = 16384
    merge_adapters: bool = False

    def __post_init__(self):
        for name in ("prefix", "tail", "rows_per_prefix"):
            buckets = getattr(self, name)
            if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
                raise ConfigError(f"sampler.{name}={buckets}: give ascending positive lengths, for example (64, 128)")
        for name in ("max_new_tokens", "max_rows", "chunk", "max_prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampler.{name}={getattr(self, name)}: must be at least 1")


def bucket(value: int, buckets: Sequence[int], what: str) -> int:
    """Returns the smallest bucket that holds `value`; raises ConfigError naming the setting if none does."""
    for size in buckets:
        if value <= size:
            return size
    raise ConfigError(
        f"{what}: {value} tokens do not fit the largest bucket {buckets[-1]}; raise {what} or shorten the prompt"
    )


def common_prefix_length(sequences: Sequence[np.ndarray]) -> int:
    """Returns how many leading ids all sequences share, at most the shortest length minus one."""
    shortest = min(len(ids) for ids in sequences) - 1
    return min(shortest, *(common_prefix(sequences[0], ids) for ids in sequences))


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Up to `rows_per_slot` requests of one group, decoded side by side over one prefix."""

    members: tuple[int, ...]
    prefix_length: int


class Sampler:
    """Draws sequences from the policy. One instance serves many calls; weights are passed to each call."""

    def __init__(
        self,
        config: ModelConfig,
        shapes: SamplerShapes,
        stop_ids: Sequence[int],
        decode: Callable[[list[int]], str],
        mesh: Mesh | None = None,
    ):
        self.config = config
        self.shapes = shapes
        self.stop_ids = tuple(sorted({int(i) for i in stop_ids}))
        self._decode = decode
        self._mesh = mesh
        self.prefix_tokens_reused = 0  # tokens not prefilled again because a group shares them

    def generate(
        self,
        params: Params,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Yields (request index, result) pairs as rows finish, at every chunk boundary; every request ends once.

        Raises ConfigError if a prompt is longer than the largest bucket or than the model's context.
        """
        for request in requests:
            self._check(request)
        if not requests:
            return
        slots, rows_per_slot = self._pack(requests)
        slots_per_batch = max(1, self.shapes.max_rows // rows_per_slot)
        # Attention scores of a prefill grow with rows times length squared: long prompts go a few at a time.
        width = bucket(max(1, *(slot.prefix_length for slot in slots), 1), self.shapes.prefix, "sampler.prefix")
        slots_per_batch = max(1, min(slots_per_batch, self.shapes.max_prefill_tokens // width))
        if self._mesh is not None:
            split = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
            slots_per_batch = -(-slots_per_batch // split) * split
        for start in range(0, len(slots), slots_per_batch):
            batch = slots[start : start + slots_per_batch]
            yield from self._run(params, requests, batch, slots_per_batch, rows_per_slot, sampling, stop_strings)

    @contextlib.contextmanager
    def _on_mesh(self):
        """Around each device call and never across a yield: the mesh context belongs to the thread."""
        if self._mesh is None:
            yield
        else:
            with jax.set_mesh(self._mesh), logical_axis_rules(ACTIVATION_RULES):
                yield

    def _check(self, request: SampleRequest) -> None:
        if len(request.ids) == 0:
            raise ConfigError("prompt: it has no tokens; give text, or a tokenizer with a BOS token")
        total = len(request.ids) + request.max_new_tokens
        if total > self.config.max_position_embeddings:
            raise ConfigError(
                f"prompt of {len(request.ids)} tokens + max_new_tokens={request.max_new_tokens} = {total} exceeds the "
                f"model's context of {self.config.max_position_embeddings}; shorten the prompt or lower max_new_tokens"
            )
        if request.max_new_tokens > self.shapes.max_new_tokens:
            raise ConfigError(
                f"max_new_tokens={request.max_new_tokens} exceeds the sampler's {self.shapes.max_new_tokens}"
            )

    def _pack(self, requests: Sequence[SampleRequest]) -> tuple[list[_Slot], int]:
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.group, []).append(index)
        largest = max(map(len, groups.values()))
        rows_per_slot = next((rows for rows in self.shapes.rows_per_prefix if rows >= largest), largest)
        rows_per_slot = min(rows_per_slot, self.shapes.rows_per_prefix[-1], self.shapes.max_rows)
        prefixes = {g: common_prefix_length([requests[i].ids for i in m]) for g, m in groups.items()}
        limit = self._prefix_limit(requests, groups, prefixes)
        slots = []
        for group, members in groups.items():
            shared = min(prefixes[group], limit)
            self.prefix_tokens_reused += shared * (len(members) - 1)
            for start in range(0, len(members), rows_per_slot):
                slots.append(_Slot(tuple(members[start : start + rows_per_slot]), shared))
        return slots, rows_per_slot

    def _prefix_limit(self, requests, groups: dict[int, list[int]], prefixes: dict[int, int]) -> int:
        """Returns how long a prefix may be: a lone row's own prompt must not widen the bucket that shared prefixes
        need.
        """
        largest = self.shapes.prefix[-1]
        shared = [prefixes[g] for g, members in groups.items() if len(members) > 1]
        longest_shared = max([1, *(shared or prefixes.values())])
        wanted = bucket(min(longest_shared, largest), self.shapes.prefix, "sampler.prefix")
        lone = [len(requests[members[0]].ids) for members in groups.values() if len(members) == 1]
        fits = max([0, *lone]) - wanted <= self.shapes.tail[-1]
        return wanted if fits else largest

    def _run(self, params, requests, slots, slots_per_batch, rows_per_slot, sampling, stop_strings):
        batch, row_of = self._prompts(requests, slots, slots_per_batch, rows_per_slot)
        static = {"config": self.config, "sampling": sampling, "stop_ids": self.stop_ids}
        with self._on_mesh():
            state, prefix = prefill(params, batch, **static, max_new_tokens=self.shapes.max_new_tokens)
        open_rows = dict(row_of)
        while True:
            finished, cancelled = self._collect(state, open_rows, stop_strings)
            if finished:
                yield finished
            if not open_rows:
                return
            with self._on_mesh():
                state = decode_chunk(params, state, prefix, batch, cancelled, **static, steps=self.shapes.chunk)

    def _prompts(self, requests, slots, slots_per_batch, rows_per_slot) -> tuple[PromptBatch, dict[int, int]]:
        rows = slots_per_batch * rows_per_slot
        longest = max((slot.prefix_length for slot in slots), default=1)
        tails = {i: requests[i].ids[slot.prefix_length :] for slot in slots for i in slot.members}
        width = bucket(max(map(len, tails.values())), self.shapes.tail, "sampler.tail")
        prefix_width = bucket(max(longest, 1), self.shapes.prefix, "sampler.prefix")
        prefix_ids = np.zeros((slots_per_batch, prefix_width), np.int32)
        prefix_length = np.zeros(slots_per_batch, np.int32)
        tail_ids = np.zeros((rows, width), np.int32)
        tail_length = np.ones(rows, np.int32)
        keys = np.zeros((rows, 2), np.uint32)
        limits = np.zeros(rows, np.int32)
        row_of: dict[int, int] = {}
        for s, slot in enumerate(slots):
            prefix_length[s] = slot.prefix_length
            prefix_ids[s, : slot.prefix_length] = requests[slot.members[0]].ids[: slot.prefix_length]
            for r, index in enumerate(slot.members):
                row = s * rows_per_slot + r
                row_of[index] = row
                tail_length[row] = len(tails[index])
                tail_ids[row, width - len(tails[index]) :] = tails[index]
                keys[row] = requests[index].key
                limits[row] = requests[index].max_new_tokens
        batch = PromptBatch(prefix_ids, prefix_length, tail_ids, tail_length, keys, limits)
        if self._mesh is not None:
            batch = jax.device_put(batch, row_sharding(self._mesh))
        return batch, row_of

    def _collect(self, state, open_rows: dict[int, int], stop_strings):
        """Takes finished rows out of `open_rows`; returns them and the rows that a stop string ended."""
        tokens, logprobs, drawn, done = jax.device_get((state.tokens, state.logprobs, state.drawn, state.done))
        cancelled = np.zeros(len(done), bool)
        finished = []
        for index, row in list(open_rows.items()):
            ids = tokens[row, : drawn[row]]
            cut = self._cut_at_stop_string(ids, stop_strings)
            if cut is None and not done[row]:
                continue
            cancelled[row] = True
            del open_rows[index]
            length = len(ids) if cut is None else cut
            stopped = cut is not None or (length > 0 and int(ids[-1]) in self.stop_ids)
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            finished.append((index, Sampled(ids[:length].copy(), logprobs[row, :length].copy(), reason)))
        return finished, cancelled

    def _cut_at_stop_string(self, ids: np.ndarray, stop_strings: Sequence[str]) -> int | None:
        """Returns the number of tokens up to and including the one that completes the earliest stop string."""
        if not stop_strings or not len(ids):
            return None
        if not any(stop in self._decode(ids.tolist()) for stop in stop_strings):
            return None
        low, high = 1, len(ids)
        while low < high:  # the shortest prefix that holds a stop string; text only grows with tokens
            middle = (low + high) // 2
            found = any(stop in self._decode(ids[:middle].tolist()) for stop in stop_strings)
            low, high = (low, middle) if found else (middle + 1, high)
        return low
