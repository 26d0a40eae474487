"""What the programs of a training step of Qwen3-8B need on TPUs, from the TPU compiler itself, without a TPU.

Compiles the LoRA update, scoring, prefill and decode chunk ahead of time for described chips, from shapes alone, and
writes memory a chip, collectives and compile seconds as JSON and a table. Nothing runs: these are no times of a step.

    pip install 'jax[tpu]'                              beside the project's other dependencies, on Linux
    python -m benchmarks.tpu_compile                    v6e, v5p and v5e with 8 chips, then one v5p
    python -m benchmarks.tpu_compile --targets v6e-64 --programs "decode chunk" prefill

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


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips to compile for: HBM of one in GiB, the topology's name and chips a host, and mesh (data, fsdp, tensor).

    Weights are split over `tensor` alone, eight ways at most (the key heads of the model), so that no step of decoding
    gathers any.
    """

    hbm: int
    topology: str
    host: tuple[int, int, int]
    mesh: tuple[int, int, int]


_FLAT = {1: ("1x1", (1, 1, 1)), 8: ("2x4", (2, 2, 1)), 64: ("8x8", (2, 2, 1))}
_CUBE = {1: ("1x1x1", (1, 1, 1)), 8: ("2x2x2", (2, 2, 1)), 64: ("4x4x4", (2, 2, 1))}
_CHIPS = {"v5e": (16, _FLAT), "v5p": (95, _CUBE), "v6e": (32, _FLAT)}
TARGETS = {
    f"{chip}-{count}": Target(hbm, f"{chip}:{shape}", host, (math.ceil(count / 8), 1, min(count, 8)))
    for chip, (hbm, shapes) in _CHIPS.items()
    for count, (shape, host) in shapes.items()
}
PROGRAMS = ("decode chunk", "prefill", "scoring", "update", "decode chunk, adapters apart")


def programs_for(target: Target) -> Any:
    """Returns the `Programs` of Qwen3-8B in bfloat16 with adapters of rank 32 on the target's described chips."""
    from jax.experimental import topologies

    from benchmarks.programs import Programs, StepSizes
    from model.lora import LoraConfig
    from model.partition import make_mesh
    from model.presets import QWEN3_8B

    described = topologies.get_topology_desc(target.topology, "tpu", chips_per_host_bounds=target.host)
    mesh = make_mesh(*target.mesh, devices=list(described.devices))
    model = dataclasses.replace(QWEN3_8B, param_dtype="bfloat16", compute_dtype="bfloat16")
    shards = target.mesh[0] * target.mesh[1]
    return Programs(model, LoraConfig(), StepSizes(groups=shards, decode_rows=64 * shards), mesh)


def measure(programs: Any, name: str, hbm: int) -> dict[str, Any]:
    """Returns what the compiler says of one program: GiB a chip, collectives, seconds to trace and to compile.

    The total is arguments + outputs - aliases + temporaries: the compiler does not refuse what exceeds the chip.
    """
    from benchmarks.collectives import collectives, forbidden, largest

    start = time.perf_counter()
    lowered = programs.lowered()[name]()
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliases": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    total = parts["arguments"] + parts["outputs"] - parts["aliases"] + parts["temporaries"]
    found = collectives(compiled.as_text())
    result = {f"{part}_gib": size / GIB for part, size in parts.items()} | {
        "total_gib": total / GIB,
        "hbm_gib": hbm,
        "fits": total <= hbm * GIB,
        "largest_collectives": {kind: dataclasses.asdict(one) for kind, one in largest(found).items()},
        "forbidden": {rule: [str(one) for one in broken] for rule, broken in forbidden(found, programs.bounds).items()},
        "trace_seconds": traced - start,
        "compile_seconds": seconds,
    }
    if name.startswith("decode chunk"):
        result["temporaries_over_cache"] = parts["temporaries"] / _cache_bytes(programs)
    return result


def _cache_bytes(programs: Any) -> int:
    """Of keys and values on one chip, the rows' own and those of shared prefixes."""
    state = programs.decode_state()
    arrays = [state.cache.k, state.cache.v, state.prefix.k, state.prefix.v]
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in arrays)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results as Markdown, one row a program and target; memory in GiB a chip."""
    header = (
        "| chips | program | arguments | outputs | aliases | temporaries | total | HBM | fits "
        "| temporaries / cache | largest collective of each kind, MiB | forbidden | compile s |"
    )
    lines = [header, "|---|---|" + "---:|" * 6 + "---|---:|---|---:|---:|"]
    for key in sorted(results):
        target, program = key.split(" ", 1)
        one = results[key]
        memory = [
            f"{one[f'{part}_gib']:.2f}" for part in ("arguments", "outputs", "aliases", "temporaries", "total", "hbm")
        ]
        ratio = one.get("temporaries_over_cache")
        moved = ", ".join(f"{kind} {c['bytes'] / 2**20:.2f}" for kind, c in one["largest_collectives"].items())
        broken = sum(map(len, one["forbidden"].values()))
        cells = [
            *(target, program, *memory, "yes" if one["fits"] else "**no**"),
            *("" if ratio is None else f"{ratio:.3f}", moved or "none", str(broken), f"{one['compile_seconds']:.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the programs of Qwen3-8B for TPUs, without a TPU.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["v6e-8", "v5p-8", "v5e-8", "v5p-1"])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--output", type=Path, default=Path("tpu_compile"), help="folder of results.json and table.md")
    args = parser.parse_args()
    try:
        version("libtpu")
    except ModuleNotFoundError:
        sys.exit("libtpu is not installed: it holds the TPU compiler; `pip install 'jax[tpu]'` brings it (Linux)")
    # Described chips need no metadata server, and nothing may look for real ones.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu"}
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    for name in args.programs:
        for target in args.targets:
            results[f"{target} {name}"] = measure(programs_for(TARGETS[target]), name, TARGETS[target].hbm)
            path.write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
            (args.output / "table.md").write_text(table(results))
            print(table({f"{target} {name}": results[f"{target} {name}"]}).splitlines()[-1], flush=True)
    print(f"\n{table(results)}\nwritten to {args.output}")


if __name__ == "__main__":
    main()
