"""Host side of sampling: requests in, finished token sequences out, a chunk at a time.

Calls of two kinds: one whose requests are all there, laid out for them, and one that takes requests while it runs, in
shapes that never change. Knows token ids and stop rules; knows nothing of tasks, rewards or judges. Layout is decided
in `slots.py`, who stands where in `slot_call.py`, device work in `slot_state.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError
from ditto_jax.sampling.kept_keys import KeptGroup
from ditto_jax.sampling.slot_call import Rules, SlotCall, Work
from ditto_jax.sampling.slot_shapes import SamplerShapes, open_shapes, reachable
from ditto_jax.sampling.slot_state import Decoding, SlotState, row_shards
from ditto_jax.sampling.slots import Sampled, SampleRequest, plan_slots
from ditto_jax.sampling.warm_up import MakeSlots, visit, visit_open
from model.config import ModelConfig
from model.generate import Kept
from model.llama import Params, unstack
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What the last call left, by group, and the weights that the keys belong to."""

    weights: list[jax.Array]
    keys: Kept
    groups: dict[int, KeptGroup]

    def of(self, params: Params) -> dict[int, KeptGroup]:
        leaves = jax.tree.leaves(params)
        same = len(leaves) == len(self.weights) and all(a is b for a, b in zip(leaves, self.weights, strict=True))
        return self.groups if same else {}


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
        self.decode = decode
        self.mesh = mesh
        self.work = Work()
        self._kept: _Kept | None = None

    @property
    def unstacks_layers(self) -> bool:
        """Whether decoding uses a copy of the weights with every layer apart (`SamplerShapes.unstack_layers`)."""
        chosen = self.shapes.unstack_layers
        return jax.default_backend() == "cpu" if chosen is None else chosen

    def generate(
        self,
        params: Params,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        stop_strings: Sequence[str] = (),
        keep_rows: bool = False,
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Yields (request index, result) pairs as rows finish, at every chunk boundary; every request ends once.

        Keys that the call before has computed under the same weights are copied from it: those of a refined prompt's
        prefix from its draft's, and with `keep_rows` in that call those of an episode's earlier turns.
        Raises ConfigError if a prompt is longer than the largest bucket or than the model's context.
        """
        for request in requests:
            self.check(request)
        if requests:
            known = self._kept.of(params) if self._kept else {}
            plan = plan_slots(requests, self.shapes, row_shards(self.mesh), known)
            masked = any(request.mask is not None for request in requests)
            state = self._slots(sampling, params, masked)(plan.shapes, self._kept and self._kept.keys)
            self._kept = None
            call = SlotCall(self._rules(stop_strings), self.work, state, keep_rows)
            call.add(requests, plan)
            while not call.is_done:
                if finished := call.advance():
                    yield finished
            self._kept = _Kept(jax.tree.leaves(params), *call.leaves_behind())

    def open(
        self,
        params: Params,
        sampling: SamplingParams,
        members: int,
        prompt: int,
        words: int,
        stop_strings: Sequence[str] = (),
        masked: bool = False,
    ) -> OpenCall:
        """Returns a call that takes requests while it runs, for groups of up to `members` prompts of up to `prompt`
        tokens, to which words may add up to `words`. What a request yields does not depend on when it comes or on what
        else there is, to the bit (on one device mesh). masked: whether requests may have masks.
        """
        self.release()
        buckets, shapes = open_shapes(self.shapes, members, prompt, words, row_shards(self.mesh))
        state = self._slots(sampling, params, masked)(shapes, None)
        call = SlotCall(self._rules(stop_strings), self.work, state, is_open=True)
        return OpenCall(self, call, buckets)

    def _rules(self, stop_strings: Sequence[str]) -> Rules:
        return Rules(self.shapes.chunk, self.stop_ids, tuple(stop_strings), self.decode)

    def warm_up(
        self,
        params: Params,
        sampling: SamplingParams,
        members: int,
        longest: int | None = None,
        many_turns: bool = False,
        masked: bool = False,
    ) -> int:
        """Compiles what `generate` may run for groups of up to `members` prompts of up to `longest` tokens (default:
        the model's context), by running it on empty slots; returns how many shapes of calls there are.

        many_turns: whether rows may continue those of an earlier call. masked: for calls with masks. The number of
        shapes is the product of the buckets of `SamplerShapes`: few of them make this quick.
        """
        context = self.config.max_position_embeddings
        classes = reachable(self.shapes, members, min(longest or context, context), many_turns, row_shards(self.mesh))
        visit(classes, self._slots(sampling, params, masked), many_turns)
        return len(classes)

    def warm_up_open(
        self, params: Params, sampling: SamplingParams, members: int, longest: int, words: int, masked: bool = False
    ) -> int:
        """Compiles what calls of `open` may run for prompts of up to `longest` tokens, as `warm_up` does for
        `generate`; returns how many shapes of admissions there are.
        """
        make, shards = self._slots(sampling, params, masked), row_shards(self.mesh)
        lengths = range(1, min(longest, self.config.max_position_embeddings) + 1)
        calls = (open_shapes(self.shapes, members, prompt, words, shards) for prompt in lengths)
        found = {shapes: buckets for buckets, shapes in calls}
        return sum(visit_open(buckets, shapes, make) for shapes, buckets in found.items())

    def _slots(self, sampling: SamplingParams, params: Params, masked: bool) -> MakeSlots:
        """Returns what makes the slots of calls; all share one copy of the weights where decoding needs one."""
        decoding = Decoding(
            config=self.config,
            sampling=sampling,
            stop_ids=self.stop_ids,
            mesh=self.mesh,
            steps=self.shapes.chunk,
            kv_dtype=self.shapes.kv_dtype,
            unstacked=self.unstacks_layers,
            masked=masked,
        )
        decode_params = unstack(params, self.config) if decoding.unstacked else params
        return lambda shapes, kept: SlotState(decoding, shapes, params, decode_params, kept)

    def release(self) -> None:
        """Gives up the keys that were kept for the next call: before an update, which needs the memory and makes them
        stale, and where results must not depend on what was sampled before.
        """
        self._kept = None

    def check(self, request: SampleRequest) -> None:
        """Returns nothing; raises ConfigError for a request that no call can hold."""
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


class OpenCall:
    """A call that takes requests while it runs. buckets: of the lengths of their prompts."""

    def __init__(self, sampler: Sampler, call: SlotCall, buckets: SamplerShapes):
        self.buckets = buckets
        self._sampler = sampler
        self._call = call

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is decoded."""
        return self._call.is_done

    def add(self, requests: Sequence[SampleRequest]) -> range:
        """Queues requests and returns their numbers; those of equal group in one `add` share a prefix.

        Raises ConfigError if a prompt is longer than the largest bucket or than the model's context.
        """
        for request in requests:
            self._sampler.check(request)
        return self._call.add(requests, plan_slots(requests, self.buckets, row_shards(self._sampler.mesh)))

    def advance(self) -> list[tuple[int, Sampled]]:
        """Fills free slots or decodes a chunk; returns (number, result) of the requests that ended with it."""
        return self._call.advance()
