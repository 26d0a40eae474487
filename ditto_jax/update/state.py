"""The training state as one pytree, its optimizer, and where each leaf lives on the mesh.

State in, state out: everything that a resumed run needs on the device is here. Host positions (prompt stream, judge
ledger) travel in the checkpoint's metadata. Reading and writing files is `checkpoint.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError
from model.lora import LoraConfig, combine
from model.partition import parameter_shardings, replicated
from model.placement import to_mesh


class TrainState(NamedTuple):
    """params: what is trained, all parameters or the adapters; opt_state: optax state; updates: int32 scalar, optimiser
    updates done so far. average: float32 moving average of params where the objective's teacher is one, else None.
    behaviour: a copy of params of one step before, with which the next step is sampled where `rollout.steps_behind` is
    1, else None. A frozen base under adapters is no part of the state: it is neither donated nor saved.
    """

    params: Any
    opt_state: Any
    updates: Any
    average: Any = None
    behaviour: Any = None


_LARGEST_BFLOAT16_BETA2 = 0.98  # the decay is then several times the rounding of a bfloat16, 2^-9


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a global-norm clip. `schedule`: constant, linear or cosine (to 0 over the run), after linear
    warm-up. mu_dtype, nu_dtype: how the first and second moments are stored between updates, which compute in float32.
    """

    learning_rate: float = 5.0e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1.0e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mu_dtype: str = "float32"
    nu_dtype: str = "float32"

    def __post_init__(self):
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"optimizer.learning_rate={self.learning_rate}: must be positive, for example 5.0e-6")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ConfigError(f"optimizer.schedule={self.schedule!r}: choose constant, linear or cosine")
        if self.max_grad_norm <= 0:
            raise ConfigError(f"optimizer.max_grad_norm={self.max_grad_norm}: must be positive, for example 1.0")
        for name in ("mu_dtype", "nu_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ConfigError(f"optimizer.{name}={getattr(self, name)!r}: choose float32 or bfloat16")
        if self.nu_dtype == "bfloat16" and self.beta2 > _LARGEST_BFLOAT16_BETA2:
            raise ConfigError(
                f"optimizer.nu_dtype=bfloat16 with beta2={self.beta2}: a step of 1 - beta2 is lost in bfloat16's 8 "
                f"bits, and the moment would stand still; set beta2 to {_LARGEST_BFLOAT16_BETA2} or nu_dtype to float32"
            )


def learning_rate_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """Returns update count → learning rate."""
    decay_steps = max(1, total_updates - config.warmup_steps)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, decay_steps),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """Returns the gradient transformation of a run with `total_updates` optimiser updates."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        _adam(config),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, total_updates)),
    )


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam whose moments have the configured dtypes whatever that of the parameters is; optax has no nu_dtype."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps, mu_dtype=jnp.dtype(config.mu_dtype))

    def kept(state: Any) -> Any:
        return state._replace(nu=optax.tree.cast(state.nu, jnp.dtype(config.nu_dtype)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes, state = adam.update(updates, state._replace(nu=optax.tree.cast(state.nu, jnp.float32)), params)
        return changes, kept(state)

    return optax.GradientTransformation(lambda params: kept(adam.init(params)), update)


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns a TrainState of NamedShardings: moments lie like their parameters, counters are replicated."""
    params = parameter_shardings(state.params, mesh)
    whole = replicated(mesh)
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, state.opt_state, params, transform_non_params=lambda _: whole
    )
    average = None if state.average is None else parameter_shardings(state.average, mesh)
    return TrainState(params, opt_state, whole, average)


def make_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    averaged: bool = False,
    behind: bool = False,
) -> TrainState:
    """Returns the initial state on the mesh; `params` (host or device arrays) is placed shard by shard. averaged: with
    a moving average of them, which begins as they do. behind: with a copy of them to sample with.
    """
    placed = to_mesh(params, parameter_shardings(params, mesh))
    abstract = jax.eval_shape(lambda p: TrainState(p, optimizer.init(p), jnp.int32(0)), placed)
    shardings = state_shardings(abstract, optimizer, mesh)
    out = shardings.opt_state, shardings.updates
    opt_state, updates = jax.jit(lambda p: (optimizer.init(p), jnp.int32(0)), out_shardings=out)(placed)
    average = start_average(placed) if averaged else None
    return TrainState(placed, opt_state, updates, average, copied(placed) if behind else None)


def copied(params: Any) -> Any:
    """Returns a copy on the devices, which an update of `params` leaves as it is."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def start_average(params: Any) -> Any:
    """Returns the average before the first update: a float32 copy of what is trained, placed like it.

    float32 whatever the parameters are stored in: a small share of a small change is lost in 8 bits. Under adapters
    these are the two factors, begun at the student's. The product of their averages is not the average of their
    products, but differs by the factors' covariance over the window, which is of second order in how far they move in
    it; an average of the products would be a second model in full.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)


@functools.partial(jax.jit, donate_argnums=0)
def advance_average(average: Any, params: Any, rate: float) -> Any:
    """Returns (1 - rate) average + rate params, leaf by leaf in float32; `average` is donated."""
    return optax.incremental_update(optax.tree.cast(params, jnp.float32), average, rate)


def whole_params(trained: Any, base: Any | None, lora: LoraConfig | None) -> Any:
    """Returns the parameter value that the policy's functions take: `trained` itself, or the base with adapters on
    it.
    """
    return trained if lora is None else combine(base, trained, lora)
