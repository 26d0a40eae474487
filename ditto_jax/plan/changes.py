"""What to change where a run does not fit: the first of a list of changes with which it does, tried one by one.

configuration, sizes of its model, devices, their memory → **changed settings** → terminal, the warning before a run

In the order of what they cost a user: what only slows an update or the sampler comes before what changes what is
trained, and both before more devices. Chooses settings alone; the account is `memory`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ditto_jax.config import RunConfig
from ditto_jax.errors import DittoError
from ditto_jax.plan.memory import Memory, in_dtypes, mesh_over
from ditto_jax.plan.topology import SIZES, Topology, find_topology
from model.config import ModelConfig
from model.lora import LoraConfig

_LEAST_CHUNK = 256
_MOST_GPUS_TRIED = 64


@dataclasses.dataclass(frozen=True)
class Change:
    """settings: flags and their new values, which together are enough. config: with them. peak: its bytes a device."""

    settings: tuple[str, ...]
    config: RunConfig
    peak: float


def first_change(config: RunConfig, model: ModelConfig, devices: int, memory: float, kernel: str = "") -> Change | None:
    """Returns the first single change with which the run fits `memory` bytes a device, else the first of these one
    after another that do together; None if all of them together do not.
    """
    for change in _changes(model, devices):
        for words, changed in change(config):
            peak = _peak(changed, model, devices, kernel)
            if peak <= memory:
                return Change((words,), changed, peak)
    together: list[str] = []
    for change in _changes(model, devices):
        last = None
        for words, changed in change(config):
            last, peak = (words, changed), _peak(changed, model, devices, kernel)
            if peak <= memory:
                return Change((*together, words), changed, peak)
        if last is not None:
            together, config = [*together, last[0]], last[1]
    return None


def first_topology(config: RunConfig, model: ModelConfig, topology: Topology, share: float = 1.0) -> Topology | None:
    """Returns the smallest larger topology of the same kind that the run fits as it is, within a share of its memory;
    None if there is none.
    """
    kind, _, number = topology.name.partition("-")
    numbers = SIZES.get(kind, tuple(2**power for power in range(_MOST_GPUS_TRIED.bit_length())))
    for larger in (find_topology(f"{kind}-{size}") for size in numbers if size > int(number)):
        try:
            peak = Memory(config, model, mesh_over(config.mesh, larger.devices), larger.chip.kernel).peak
        except DittoError:  # a mesh of fixed sizes fits one number of devices
            continue
        if peak <= share * larger.chip.memory:
            return larger
    return None


def _peak(config: RunConfig, model: ModelConfig, devices: int, kernel: str) -> float:
    return Memory(config, in_dtypes(model, config), mesh_over(config.mesh, devices), kernel).peak


_Changes = Iterator[tuple[str, RunConfig]]


def _changes(model: ModelConfig, devices: int) -> list[Callable[[RunConfig], _Changes]]:
    """Each yields what it can do in steps, the mildest first."""
    return [
        _fewer_groups,
        _recomputed,
        _shorter_chunks,
        _fewer_rows,
        _smaller_keys,
        lambda config: _more_split(config, devices),
        _shorter_dtype,
        _adapters,
        _eight_bits,
    ]


def _halved(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value


def _train(config: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))  # pyright: ignore[reportArgumentType]


def _sampler(config: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, **changes))  # pyright: ignore[reportArgumentType]


def _fewer_groups(config: RunConfig) -> _Changes:
    for value in _halved(config.train.micro_batch, 1):
        yield f"--train.micro_batch {value}", _train(config, micro_batch=value)


def _recomputed(config: RunConfig) -> _Changes:
    if config.train.remat != "full":
        yield "--train.remat full", _train(config, remat="full")


def _shorter_chunks(config: RunConfig) -> _Changes:
    for value in _halved(config.train.logprob_chunk, _LEAST_CHUNK):
        yield f"--train.logprob_chunk {value}", _train(config, logprob_chunk=value)


def _fewer_rows(config: RunConfig) -> _Changes:
    for value in _halved(config.sampler.max_rows, config.rollout.num_generations):
        yield f"--sampler.max_rows {value}", _sampler(config, max_rows=value)


def _smaller_keys(config: RunConfig) -> _Changes:
    if config.sampler.kv_dtype != "int8":
        yield "--sampler.kv_dtype int8", _sampler(config, kv_dtype="int8")


def _more_split(config: RunConfig, devices: int) -> _Changes:
    """Parameters over all devices, the split over `tensor` kept."""
    tensor = config.mesh.tensor if config.mesh.tensor > 0 else 1
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=-1, tensor=tensor)
    if devices > tensor and devices % tensor == 0 and mesh_over(mesh, devices) != mesh_over(config.mesh, devices):
        yield "--mesh.data 1 --mesh.fsdp -1", dataclasses.replace(config, mesh=mesh)


def _shorter_dtype(config: RunConfig) -> _Changes:
    if config.dtype == "float32":
        yield "--dtype bfloat16", dataclasses.replace(config, dtype="bfloat16")


def _adapters(config: RunConfig) -> _Changes:
    if not config.lora.rank:
        short = dataclasses.replace(config, lora=LoraConfig(), dtype="bfloat16", param_dtype="bfloat16")
        yield "--lora.rank 32 --dtype bfloat16 --param_dtype bfloat16", short


def _eight_bits(config: RunConfig) -> _Changes:
    if config.lora.rank and config.quantization != "int8_all":
        eight = dataclasses.replace(
            config, quantization="int8_all", sampler=dataclasses.replace(config.sampler, merge_adapters=False)
        )
        yield "--quantization int8_all", eight
