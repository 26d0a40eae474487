"""Device side of one sampler call: the state of its slots, and the jitted calls that change it.

In: the shapes of the call, weights, prompts. Out: drawn tokens, and the keys that the call leaves behind. Knows neither
requests nor stop strings: who stands in which slot is decided in `sampler.py`. Shapes change in steps, one width of the
ring or one size of the slots at a time, so that few programs lead from any to any.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import logical_axis_rules
from jax.sharding import Mesh

from ditto_jax.sampling.slot_shapes import CallShapes
from model.config import ModelConfig
from model.generate import (
    DecodeState,
    Drawn,
    Kept,
    PromptBatch,
    admit,
    carry_over,
    compact,
    decode_chunk,
    empty_state,
    widen,
)
from model.llama import Params, Prefix
from model.partition import ACTIVATION_RULES, decode_state_shardings
from model.placement import to_mesh
from model.sampling import RowSampling, SamplingParams


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What programs depend on beside shapes: the model, how tokens are drawn and end, the mesh, `steps` a chunk, how
    keys are stored, whether every layer's weights lie apart, and whether calls say which tokens rows may draw.
    """

    config: ModelConfig
    sampling: SamplingParams
    stop_ids: tuple[int, ...]
    mesh: Mesh | None
    steps: int
    kv_dtype: str
    unstacked: bool
    masked: bool = False


def row_shards(mesh: Mesh | None) -> int:
    """Returns over how many devices rows and slots are split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def no_prompts(shapes: CallShapes, size: int) -> PromptBatch:
    """Returns an admission of `size` slots that nothing enters, as NumPy arrays to fill in."""
    rows = size * shapes.rows_per_slot
    return PromptBatch(
        prefix_ids=np.zeros((size, shapes.prefix), np.int32),
        prefix_length=np.zeros(size, np.int32),
        tail_ids=np.zeros((rows, shapes.tail), np.int32),
        tail_length=np.ones(rows, np.int32),
        row_keys=np.zeros((rows, 2), np.uint32),
        limits=np.zeros(rows, np.int32),
        source=np.full(shapes.slots, -1, np.int32),
        kept=np.zeros(size, np.int32),
        kept_rows=np.zeros(rows, np.int32),
        kept_columns=np.full((rows, shapes.history), -1, np.int32),
    )


def everything(rows: int, config: ModelConfig) -> np.ndarray:
    """Returns int32[rows, words]: masks that allow every token, to fill in."""
    return np.full((rows, -(-config.vocab_size // 32)), -1, np.int32)


class SlotState:
    """The slots of one call, empty at first.

    params: as prompts are run. decode_params: the same, with every layer apart if decoding takes them so. kept: what
    the call before has left, to copy keys from.
    """

    def __init__(
        self,
        decoding: Decoding,
        shapes: CallShapes,
        params: Params,
        decode_params: Params,
        kept: Kept | None = None,
    ):
        self.shapes = shapes
        self.slots = shapes.slots
        self.shards = row_shards(decoding.mesh)
        self.ring = shapes.ring[0]
        self.kept = kept
        self.masked = decoding.masked
        self._decoding = decoding
        self._params, self._decode_params = params, decode_params
        self._static = {"config": decoding.config, "sampling": decoding.sampling, "stop_ids": decoding.stop_ids}
        self._whole_prefix: Prefix | None = None  # of all slots, once some were left behind
        self._state = self._empty()

    @property
    def rows(self) -> int:
        """How many rows are decoded now."""
        return self.slots * self.shapes.rows_per_slot

    def everything(self, rows: int) -> np.ndarray:
        """Returns masks for so many rows that allow every token, to fill in."""
        return everything(rows, self._decoding.config)

    @property
    def fewer_slots(self) -> int | None:
        """To how many slots `shrink` would go; None if there is no smaller size."""
        return next((size for size in self.shapes.fewer_slots if size < self.slots), None)

    def admit(
        self,
        prompts: PromptBatch,
        copies: bool,
        apart: RowSampling | None = None,
        allowed: np.ndarray | None = None,
    ) -> Drawn:
        """Puts prompts into slots and draws a token for each of their rows; copies: their keys were kept. apart:
        settings of these rows, where each has its own. allowed: what they may draw, None for everything.
        """
        kept = self.carried_over(prompts) if copies else None
        allowed = self._masks(len(prompts.limits), allowed)
        with self._on_mesh():
            self._state, drawn = admit(
                self._params, self._state, prompts, kept, apart, allowed, **self._static, shards=self.shards
            )
        return drawn

    def carried_over(self, prompts: PromptBatch) -> Kept:
        """Returns the keys that the prompts need of the call before."""
        assert self.kept is not None
        kept = self.kept if self.shapes.history else self.kept._replace(cache=None)
        places = (prompts.prefix_length, prompts.kept, prompts.kept_rows, prompts.kept_columns)
        with self._on_mesh():
            return carry_over(kept, *places, prefix_width=self.shapes.prefix, shards=self.shards)

    def decode(
        self,
        cancelled: np.ndarray,
        enough: int,
        apart: RowSampling | None = None,
        allowed: np.ndarray | None = None,
    ) -> Drawn:
        """Draws a chunk of tokens, or one where rows are told what they may draw; `cancelled` bool[B] rows stop, and
        the chunk ends once `enough` rows are done.

        apart: settings of all rows, where each has its own. allowed: what they may draw, None for everything.
        """
        allowed = self._masks(self.rows, allowed)
        steps = self._decoding.steps if allowed is None else 1
        with self._on_mesh():
            self._state, drawn = decode_chunk(
                self._decode_params,
                self._state,
                cancelled,
                np.int32(enough),
                apart,
                allowed,
                **self._static,
                steps=steps,
            )
        return drawn

    def _masks(self, rows: int, allowed: np.ndarray | None) -> np.ndarray | None:
        """What rows may draw; in a call with masks always an array, so that its programs are the same."""
        return self.everything(rows) if allowed is None and self.masked else allowed

    def widen(self) -> None:
        """Gives the rows' keys the next width of the ring."""
        self.ring = next(width for width in self.shapes.ring if width > self.ring)
        with self._on_mesh():
            self._state = self._state._replace(cache=widen(self._state.cache, width=self.ring))

    def shrink(self, remaining: Sequence[int]) -> None:
        """Leaves slots behind: `remaining` are to stay, `fewer_slots` of them, counted within their shard."""
        assert len(remaining) == self.fewer_slots
        self._whole_prefix = self._whole_prefix or self._state.prefix
        with self._on_mesh():
            self._state = compact(self._state, np.asarray(remaining, np.int32), shards=self.shards)
        self.slots = len(remaining)

    def leaves_behind(self, with_rows: bool) -> Kept:
        """Returns the keys of the prefixes of all slots, and of what rows have run if asked for (of slots that were
        never left behind).
        """
        return Kept(self._whole_prefix or self._state.prefix, self._state.cache if with_rows else None)

    @contextlib.contextmanager
    def _on_mesh(self):
        """Around each device call and never across a yield: the mesh context belongs to the thread."""
        mesh = self._decoding.mesh
        if mesh is None:
            yield
        else:
            with jax.set_mesh(mesh), logical_axis_rules(ACTIVATION_RULES):
                yield

    def _empty(self) -> DecodeState:
        decoding, mesh = self._decoding, self._decoding.mesh
        with self._on_mesh():
            state = empty_state(
                config=decoding.config,
                slots=self.shapes.slots,
                rows=self.rows,
                prefix_width=self.shapes.prefix,
                width=self.ring,
                unstacked=decoding.unstacked,
                kv_dtype=decoding.kv_dtype,
            )
            if self.shapes.own_columns:
                state = state._replace(cache=state.cache._replace(column=jnp.zeros(self.rows, jnp.int32)))
            return state if mesh is None else to_mesh(state, decode_state_shardings(state, mesh))
