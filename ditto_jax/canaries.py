"""Small computations that a sound jax gets right: each names a fault that some released version has had.

In: the present process (and, where a fault would end it, a new one). Out: one `Canary` each, with what was seen and
what to do. A failing canary means that training on this machine cannot be trusted, or that it will be very slow.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.xla_flags import WORKAROUND

_WORKAROUND = f"set XLA_FLAGS='{WORKAROUND}' before jax starts, or install another jaxlib"
_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Canary:
    """One check: what it is called, whether it held, what was seen, and what to do if it did not."""

    name: str
    ok: bool
    detail: str
    advice: str


def jit_equals_eager() -> Canary:
    """Compiled and eager results agree for a vmapped matrix-vector product followed by a sum."""

    def energies(matrix, rows):
        return jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))(rows)

    worst = 0.0
    # Odd sizes beyond a few thousand rows: the library splits the work, and what is left over is where it went wrong.
    for count in (1_001, 16_385, 32_769):
        rows = jnp.zeros((count, 3)).at[:, 0].set(jnp.arange(count))
        eager = np.asarray(energies(jnp.eye(3), rows))
        compiled = np.asarray(jax.jit(energies)(jnp.eye(3), rows))
        worst = max(worst, float(np.max(np.abs(compiled - eager) / np.maximum(1.0, np.abs(eager)))))
    return Canary(
        "compiled = eager", worst < 1e-5, f"largest relative difference {worst:.1e} in vmapped products", _WORKAROUND
    )


def decode_loop_is_linear() -> Canary:
    """A loop that writes one number a turn into its buffer takes time in proportion to its turns, as decoding must."""

    @jax.jit
    def fill(buffer):
        def turn(carry):
            position, buffer = carry
            return position + 1, jax.lax.dynamic_update_slice(buffer, position.astype(jnp.float32)[None], (position,))

        return jax.lax.while_loop(lambda carry: carry[0] < buffer.shape[0], turn, (jnp.int32(0), buffer))[1]

    short, long = 4_000, 64_000
    ratio = _best_seconds(fill, jnp.zeros(long)) / _best_seconds(fill, jnp.zeros(short))
    # In proportion is at most 16; rewriting the whole buffer each turn is 256. Between them lies all noise.
    return Canary(
        "decode loop is linear",
        ratio < 60,
        f"{long // short} times the turns take {ratio:.1f} times as long",
        "install a jaxlib outside 0.11: since 0.11.1 the CPU copies the whole buffer for every small update",
    )


def donated_cache_is_aliased() -> Canary:
    """A donated buffer that is read and written in a loop is updated in place, so that a cache exists once."""

    def decode(cache):
        def turn(carry):
            position, cache = carry
            before = jax.lax.dynamic_slice(cache, (jnp.maximum(position - 1, 0), 0), (1, cache.shape[1]))
            return position + 1, jax.lax.dynamic_update_slice(cache, before + 1.0, (position, 0))

        return jax.lax.while_loop(lambda carry: carry[0] < cache.shape[0], turn, (jnp.int32(0), cache))[1]

    cache = jnp.zeros((512, 256))
    compiled = jax.jit(decode, donate_argnums=0).lower(cache).compile()
    memory = compiled.memory_analysis()
    size, address = cache.nbytes, cache.unsafe_buffer_pointer()
    result = compiled(cache)
    aliased = memory is None or (memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size)
    in_place = cache.is_deleted() and result.unsafe_buffer_pointer() == address
    right = bool(np.all(np.asarray(result[:, 0]) == np.arange(1, 513)))
    seen = f"aliased by the compiler: {aliased}, same address: {in_place}, right values: {right}"
    return Canary(
        "donated cache is in place",
        aliased and in_place and right,
        seen,
        "install another jaxlib, or count on twice the cache memory (lower sampler.max_rows)",
    )


_RANK_SEVEN = """
import jax, jax.numpy as jnp
from model.xla_flags import apply_workarounds
apply_workarounds()
for shape, axis in (((3, 1, 2, 2, 8, 8, 8), 3), ((2, 3, 4, 5, 5, 5, 5, 5), 2)):
    ones = jnp.ones(shape)
    total = jax.jit(lambda a, b: jnp.sum(a * b, axis=axis))(ones, ones)
    assert float(total.min()) == float(total.max()) == shape[axis], total
print("sums are right")
"""


def high_rank_sums_survive() -> Canary:
    """A fused sum over an array of rank 7 or 8 ends with the right value (in a process of its own, as it may crash)."""
    ended = _run(_RANK_SEVEN, {})
    return Canary("high-rank sums", ended.ok, ended.detail, _WORKAROUND)


_COMPILE = """
import jax, jax.numpy as jnp
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
print(len(hits), "programs came from the cache")
assert {expected} or not hits
assert hits or not {expected}
"""


def compile_cache_hits() -> Canary:
    """A second process finds in the compile cache what a first one put there."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        first = _run(_COMPILE.format(expected=False), settings)
        second = _run(_COMPILE.format(expected=True), settings) if first.ok else first
    return Canary(
        "compile cache is read back",
        second.ok,
        second.detail,
        "every start compiles anew here: runs work, but start slowly (processors with AVX-512 are known for it)",
    )


def devices_add_up() -> Canary:
    """All devices, of every process of the run, take part in one sum and agree on it."""
    devices = jax.devices()
    mesh = Mesh(np.asarray(devices), ("all",))
    own = np.asarray([float(place + 1) for place, device in enumerate(devices) if device in jax.local_devices()])
    parts = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("all")), own)
    total = float(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(parts))
    expected = len(devices) * (len(devices) + 1) / 2
    where = f"{len(devices)} devices of {jax.process_count()} process{'es' if jax.process_count() > 1 else ''}"
    detail = f"{where}: {total:g}, expected {expected:g}"
    return Canary(
        "devices add up", total == expected, detail, "use one device until another jaxlib or driver is installed"
    )


CANARIES: tuple[Callable[[], Canary], ...] = (
    jit_equals_eager,
    decode_loop_is_linear,
    donated_cache_is_aliased,
    high_rank_sums_survive,
    compile_cache_hits,
    devices_add_up,
)


def _best_seconds(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> float:
    """The shortest of several runs: other work on the machine only ever adds time."""
    jax.block_until_ready(function(argument))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        jax.block_until_ready(function(argument))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclasses.dataclass(frozen=True)
class _Ended:
    ok: bool
    detail: str


def _run(program: str, settings: dict[str, str]) -> _Ended:
    """Runs a program in a new interpreter on the CPU, where these faults are; the parent keeps its accelerator."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **settings}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _Ended(False, f"no result within {_SECONDS} s")
    if done.returncode < 0:
        return _Ended(False, f"the process died of signal {-done.returncode}")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return _Ended(done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}")
