"""What the programs of a training step of a Qwen3 need on TPUs, from the TPU compiler itself, without a TPU.

Compiles the LoRA update, scoring, prefill and decode chunk ahead of time for described chips, from shapes alone, and
writes memory a chip, collectives, kernels and compile seconds as JSON. Nothing runs: these are no times of a step.

    pip install 'jax[tpu]'                              beside the project's other dependencies, on Linux
    python -m benchmarks.tpu_compile                    every program of Qwen3-8B for 1, 8 and 64 chips of each kind
    python -m benchmarks.tpu_compile --targets v6e-8 --programs "decode chunk" prefill
    python -m benchmarks.tpu_compile --model qwen3-1.7b --fsdp 4 --targets v6e-8 --programs "decode chunk"

A result is written as soon as it is there; a further call with the same --output adds to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

GIB = 2**30
RESULTS = Path(__file__).parent / "results" / "tpu_compile.json"


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips to compile for: HBM of one in GiB, the topology's name, chips a host, and how many there are."""

    hbm: int
    topology: str
    host: tuple[int, int, int]
    chips: int

    def mesh(self, fsdp: int) -> tuple[int, int, int]:
        """Returns (data, fsdp, tensor). Eight chips hold the weights: one set of key heads each, where fsdp is 1."""
        holders = min(self.chips, 8)
        return self.chips // holders, fsdp, holders // fsdp


_FLAT = {1: ("1x1", (1, 1, 1)), 8: ("2x4", (2, 2, 1)), 64: ("8x8", (2, 2, 1))}
_CUBE = {1: ("1x1x1", (1, 1, 1)), 8: ("2x2x2", (2, 2, 1)), 64: ("4x4x4", (2, 2, 1))}
_CHIPS = {"v5e": (16, _FLAT), "v5p": (95, _CUBE), "v6e": (32, _FLAT)}
TARGETS = {
    f"{chip}-{count}": Target(hbm, f"{chip}:{shape}", host, count)
    for chip, (hbm, shapes) in _CHIPS.items()
    for count, (shape, host) in shapes.items()
}
PROGRAMS = ("decode chunk", "prefill", "scoring", "update", "decode chunk, adapters apart")
MODELS = {"qwen3-8b": "QWEN3_8B", "qwen3-1.7b": "QWEN3_1_7B"}
SPLASH = "splash attention"  # the kernel alone


def programs_for(target: Target, model: str = "qwen3-8b", fsdp: int = 1, attention: str = "reference") -> Any:
    """Returns the `Programs` of the model in bfloat16 with adapters of rank 32 on the target's described chips.

    Where bfloat16 weights do not fit beside a cache, on one chip of 16 GiB, the base is int8 and logits come in smaller
    pieces.
    """
    from jax.experimental import topologies

    from benchmarks.programs import Programs, StepSizes
    from model import presets
    from model.lora import LoraConfig
    from model.partition import make_mesh

    described = topologies.get_topology_desc(target.topology, "tpu", chips_per_host_bounds=target.host)
    data, fsdp, tensor = target.mesh(fsdp)
    mesh = make_mesh(data, fsdp, tensor, devices=list(described.devices))
    # By name, for `auto` would ask the device that is here.
    dtypes = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    config = dataclasses.replace(getattr(presets, MODELS[model]), **dtypes, attention=attention)
    shards = data * fsdp
    sizes = StepSizes(groups=shards, decode_rows=64 * shards)
    small = target.chips == 1 and target.hbm <= 16
    if small:
        sizes = dataclasses.replace(sizes, logprob_chunk=512)
    return Programs(config, LoraConfig(), sizes, mesh, "int8_all" if small else "none")


def measure(programs: Any, name: str, hbm: int) -> dict[str, Any]:
    """Returns what the compiler says of one program: GiB a chip, collectives, kernels that are no operations of
    XLA, seconds to trace and to compile, and processor seconds of all threads of compiling.

    The total is arguments + outputs - aliases + temporaries: the compiler does not refuse what exceeds the chip.
    """
    from benchmarks.collectives import collectives, custom_calls, forbidden, largest

    start = time.perf_counter()
    lowered = splash_attention(programs) if name == SPLASH else programs.lowered()[name]()
    traced, worked = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    seconds, work = time.perf_counter() - traced, time.process_time() - worked
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliases": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    total = parts["arguments"] + parts["outputs"] - parts["aliases"] + parts["temporaries"]
    text = compiled.as_text()
    found = collectives(text)
    result = {f"{part}_gib": size / GIB for part, size in parts.items()} | {
        "total_gib": total / GIB,
        "hbm_gib": hbm,
        "fits": total <= hbm * GIB,
        "largest_collectives": {kind: dataclasses.asdict(one) for kind, one in largest(found).items()},
        "forbidden": {rule: [str(one) for one in broken] for rule, broken in forbidden(found, programs.bounds).items()},
        "kernels": custom_calls(text),
        "base": programs.quantization,
        "mesh": dict(programs.mesh.shape),
        "trace_seconds": traced - start,
        "compile_seconds": seconds,
        "compile_cpu_seconds": work,
    }
    if name.startswith("decode chunk"):
        result["temporaries_over_cache"] = parts["temporaries"] / _cache_bytes(programs)
    return result


def splash_attention(programs: Any) -> Any:
    """Returns value and gradient of jax's splash attention, lowered: the model's heads, 2,048 tokens, causal.

    On a mesh of several chips each one has its heads.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import splash_attention as splash
    from jax.sharding import NamedSharding, PartitionSpec

    config, tokens = programs.model, 2048
    heads = config.num_heads // programs.mesh.shape["tensor"]
    kernel = splash.make_splash_mha_single_device(splash.MultiHeadMask([splash.CausalMask((tokens, tokens))] * heads))
    spec = PartitionSpec("tensor")
    placed = NamedSharding(programs.mesh, spec)
    array = jax.ShapeDtypeStruct((config.num_heads, tokens, config.head_dim), jnp.bfloat16, sharding=placed)
    on_chips: Any = jax.shard_map(kernel, mesh=programs.mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(jax.grad(lambda q, k, v: on_chips(q, k, v).sum(dtype=jnp.float32), (0, 1, 2))).lower(
        array, array, array
    )


def _cache_bytes(programs: Any) -> int:
    """Of keys and values on one chip, the rows' own and those of shared prefixes."""
    state = programs.decode_state()
    arrays = [state.cache.k, state.cache.v, state.prefix.k, state.prefix.v]
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in arrays)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results as Markdown, one row a program and target; memory in GiB a chip."""
    header = (
        "| chips | program | arguments | outputs − aliases | temporaries | total | HBM | temporaries / cache "
        "| largest collective of each kind, MiB | forbidden | kernels | compile: processor s |"
    )
    lines = [header, "|---|---|" + "---:|" * 6 + "---|---:|---|---:|"]
    for key in sorted(results, key=_order):
        target, program = key.split(" ", 1)
        one = results[key]
        returned = one["outputs_gib"] - one["aliases_gib"]
        total = f"{one['total_gib']:.2f}" if one["fits"] else f"**{one['total_gib']:.2f}**"
        ratio = one.get("temporaries_over_cache")
        moved = ", ".join(f"{kind} {c['bytes'] / 2**20:.2f}" for kind, c in one["largest_collectives"].items())
        broken = sum(map(len, one["forbidden"].values()))
        cells = [
            target if one["base"] == "none" else f"{target}, {one['base']}",
            program,
            *(f"{one['arguments_gib']:.2f}", f"{returned:.2f}", f"{one['temporaries_gib']:.2f}", total),
            *(str(one["hbm_gib"]), "" if ratio is None else f"{ratio:.3f}", moved or "none", str(broken)),
            ", ".join(one["kernels"]) or "XLA's",
            f"{one['compile_cpu_seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def overview(results: dict[str, dict[str, Any]]) -> str:
    """Returns Markdown, one row a target and one column a program: total GiB a chip, of these temporaries."""
    lines = ["| chips | HBM | " + " | ".join(PROGRAMS) + " |", "|---|---:|" + "---|" * len(PROGRAMS)]
    for target in TARGETS:
        cells = [_cell(results.get(f"{target} {program}")) for program in PROGRAMS]
        lines.append(f"| {target} | {TARGETS[target].hbm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(one: dict[str, Any] | None) -> str:
    if one is None:
        return "not compiled"
    return f"{one['total_gib']:.2f}, {one['temporaries_gib']:.3f}" + ("" if one["fits"] else " **does not fit**")


def _order(key: str) -> tuple[Any, ...]:
    target, program = key.split(" ", 1)
    chip, _, rest = target.partition("-")
    count, _, rest = rest.partition("-")
    return program, chip, int(count), rest


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the programs of a training step for TPUs, without a TPU.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--programs", nargs="+", choices=(*PROGRAMS, SPLASH), default=[*PROGRAMS, SPLASH])
    parser.add_argument("--model", choices=MODELS, default="qwen3-8b")
    parser.add_argument("--fsdp", type=int, choices=(1, 2, 4, 8), default=1, help="of eight chips; tensor is the rest")
    parser.add_argument("--attention", choices=("reference", "splash"), default="reference")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file to add to")
    args = parser.parse_args()
    try:
        version("libtpu")
    except ModuleNotFoundError:
        sys.exit("libtpu is not installed: it holds the TPU compiler; `pip install 'jax[tpu]'` brings it (Linux)")
    small = [target for target in args.targets if min(TARGETS[target].chips, 8) % args.fsdp]
    if small:
        sys.exit(f"--fsdp {args.fsdp}: {', '.join(small)} has fewer chips; leave it out, or set --fsdp 1")
    # Described chips need no metadata server, and nothing may look for real ones.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu"}
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    kind = ("" if args.model == "qwen3-8b" else f"-{args.model}") + ("" if args.fsdp == 1 else f"-fsdp{args.fsdp}")
    kind += "" if args.attention == "reference" else f"-{args.attention}"
    for name in args.programs:
        for target in args.targets:
            programs = programs_for(TARGETS[target], args.model, args.fsdp, args.attention)
            result = measure(programs, name, TARGETS[target].hbm)
            key = f"{target}{kind} {name}"
            # Read again each time, so that two calls can add to one file.
            results = json.loads(args.output.read_text())["results"] if args.output.exists() else {}
            results = {k: (results | {key: result})[k] for k in sorted(results | {key: result}, key=_order)}
            args.output.write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
            print(table({key: result}).splitlines()[-1], flush=True)
    results = json.loads(args.output.read_text())["results"]
    print(f"\n{overview(results)}\n{table(results)}\nwritten to {args.output}")


if __name__ == "__main__":
    main()
