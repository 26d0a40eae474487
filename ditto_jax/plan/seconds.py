"""Seconds of a step by phase, from operations, bytes and what is sent between devices.

work of a step, sizes of the model, mesh, chip → **seconds** → plan

N are the parameters that tokens are multiplied with. Prefill and scoring 2 N a token, update 4 N with adapters and 6 N
without, 2 N more where activations are computed again, and attention beside; decoding by whichever is slowest: reading
weights and keys, arithmetic, or gathering weights that lie apart. Compiling is left out.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from ditto_jax.config import RunConfig
from ditto_jax.objective import make_objective
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.plan.topology import Topology
from ditto_jax.plan.work import Work
from ditto_jax.update.passes import columns_of
from model.config import ModelConfig
from model.hf_layout import param_shapes


class Clock:
    """The run's times on one topology."""

    def __init__(
        self, config: RunConfig, model: ModelConfig, mesh: dict[str, int], topology: Topology, assume: Assumptions
    ):
        self.config, self.model, self.assume, self.topology = config, model, assume, topology
        self.rows_split, self.fsdp, self.tensor = mesh["data"] * mesh["fsdp"], mesh["fsdp"], mesh["tensor"]
        self.devices = self.rows_split * self.tensor
        shapes = param_shapes(model)
        self.body = sum(math.prod(shape) for path, shape in shapes.items() if path.startswith("layers/"))
        self.whole = self.body + model.vocab_size * model.hidden_size
        stored, self.item = (jnp.dtype(dtype).itemsize for dtype in (config.param_dtype, config.dtype))
        in_body = 1 if config.quantization != "none" else stored
        in_head = 1 if config.quantization == "int8_all" else stored
        # Bytes of weights that a device multiplies with at each token: layers that lie apart are gathered for it, the
        # head is not.
        head = self.whole - self.body
        self.multiplied = (self.body * in_body + head * in_head / self.fsdp) / self.tensor
        self.gathered = self.body * min(in_body, self.item) / self.tensor * (self.fsdp - 1) / self.fsdp

    def step(self, work: Work) -> dict[str, float]:
        """Returns seconds of a mean step by phase, without judges."""
        phases = {"prefill": self.prefill(work.prefilled, work.prompt), "decode": self.decode(work.sampled, work)}
        return {**phases, "scoring": self.scoring(work), "update": self.update(work)}

    def prefill(self, tokens: float, length: float) -> float:
        """Seconds to run prompts of `length` tokens, so many tokens in all."""
        work = 2 * self.body * tokens + self._attention(tokens, length / 2)
        return self._computed(work, self.assume.prefill_efficiency) + self._summed(tokens, 2)

    def decode(self, tokens: float, work: Work, group: int = 0) -> float:
        """Seconds to draw so many tokens; group: rows that share a prompt, by default the drafts of one."""
        config, chip = self.config, self.topology.chip
        rows = config.sampler.max_rows / self.rows_split
        keys = rows * (work.reply / 2 + work.prompt / (group or config.rollout.num_generations))
        read = (self.multiplied + keys * self._key_bytes()) / (chip.bandwidth * self.assume.decode_efficiency)
        own = 2 * self.whole * rows / self.tensor + self._attention(rows / self.tensor, work.reply / 2 + work.prompt)
        sent = self.gathered / self._link(self.fsdp * self.tensor)
        steps = tokens / (config.sampler.max_rows * self.assume.rows_in_use)
        return steps * max(read, own / (chip.flops * self.assume.prefill_efficiency), sent)

    def scoring(self, work: Work) -> float:
        """Seconds of the passes without gradients that the objective's terms read."""
        config = self.config
        columns = columns_of(make_objective(config.objective), self.model.vocab_size, config.train.updates_per_step)
        refined = work.refined / max(1.0, work.drafts + work.refined)
        passes = columns.anchor + columns.reference + refined * columns.sample + (columns.teacher > 0) * (1 - refined)
        return passes * self._run(work, 2, 1, gathers=1, sums=2)

    def update(self, work: Work) -> float:
        """Seconds of the updates of a step."""
        config = self.config
        again = config.train.remat != "none"
        multiplications = (4 if config.lora.rank else 6) + 2 * again
        seconds = self._run(work, multiplications, 3 + again, gathers=2 + again, sums=4 + 2 * again)
        if config.lora.rank:
            return seconds
        # Gradients are summed over the shards of the rows once an update, in the dtype in which they are kept.
        sent = 2 * self.whole * jnp.dtype(config.train.gradient_dtype).itemsize / (self.tensor * self.fsdp)
        return seconds + config.train.updates_per_step * sent * (self.rows_split > 1) / self._link(self.devices)

    def _run(self, work: Work, multiplications: int, attention: int, gathers: int, sums: int) -> float:
        """Seconds to run the trained tokens of a step: arithmetic, or gathering weights beside it where that takes
        longer, and sums over `tensor`, for which nothing else can go on."""
        train, tokens = self.config.train, work.trained / self.assume.packed
        keys = self._attention(work.trained_replies, work.prompt + work.reply / 2)
        keys += self._attention(work.trained - work.trained_replies, work.prompt / 2)
        computed = self._computed(
            multiplications * self.whole * tokens + attention * keys, self.assume.update_efficiency
        )
        pieces = math.ceil(tokens / (train.micro_batch * (train.prefix[-1] + train.lanes * train.suffix[-1])))
        sent = gathers * self.gathered * pieces / self._link(self.fsdp * self.tensor)
        return max(computed, sent) + self._summed(tokens, sums)

    def _attention(self, tokens: float, keys: float) -> float:
        """Operations of so many queries that see `keys` keys each, in all layers."""
        return 4 * self.model.num_layers * self.model.num_heads * self.model.head_dim * tokens * keys

    def _computed(self, operations: float, efficiency: float) -> float:
        return operations / (self.devices * self.topology.chip.flops * efficiency)

    def _summed(self, tokens: float, times: int) -> float:
        """Seconds of `times` sums a layer over `tensor` of the hidden states of so many tokens."""
        if self.tensor == 1:
            return 0.0
        size = tokens / self.rows_split * self.model.hidden_size * self.item * self.model.num_layers
        return times * size * 2 * (self.tensor - 1) / self.tensor / self._link(self.tensor)

    def _link(self, group: int) -> float:
        return self.topology.link(group) * self.assume.link_efficiency

    def _key_bytes(self) -> float:
        """Of the keys and values of a token in all layers, on one device."""
        m, kept = self.model, self.config.sampler.kv_dtype
        stored = m.compute_dtype if kept == "compute" else kept
        one = jnp.dtype(stored).itemsize * m.head_dim + (4 if stored == "int8" else 0)  # codes have a scale
        return 2 * m.num_layers * m.num_kv_heads * one / self.tensor
