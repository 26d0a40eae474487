"""How far the memory of a plan is from what compilers reserve: TPU programs from the file, updates compiled here.

configurations, described or simulated devices → **predicted over reserved, part by part** → JSON, a table

    python -m benchmarks.plan_check              the recorded TPU programs, and updates on eight simulated devices
    python -m benchmarks.plan_check --tpu        updates of other shapes for described TPUs too (needs libtpu)

Nothing runs on any device. Times are compared with the speeds of training that others have published, no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GIB = 2**30
RECORDED = Path(__file__).parent / "results" / "tpu_compile.json"
RESULTS = Path(__file__).parent / "results" / "plan_check.json"
DESCRIBED = {"v5p": ("v5p:2x2x2", (2, 2, 1)), "v6e": ("v6e:2x4", (2, 2, 1))}


@dataclasses.dataclass(frozen=True)
class Case:
    """An update to compile on eight devices. kernel: the attention kernel that its configuration names."""

    name: str
    config: Any
    model: Any
    mesh: dict[str, int]
    kernel: str = ""


def step_config(mesh: dict[str, int], lora: bool = True, **changes: Any) -> Any:
    """Returns the settings of a run whose update has such widths; changes: of `train`, `dtype`, `param_dtype` …"""
    from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TrainConfig
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from model.lora import LoraConfig

    train = {"micro_batch": 8, "lanes": 4, "prefix": (256,), "suffix": (128,), "remat": "full", "logprob_chunk": 256}
    own = {name: changes.pop(name) for name in list(changes) if name in train}
    return RunConfig(
        lora=LoraConfig(rank=8 if lora else 0),
        rollout=RolloutConfig(prompts_per_step=16, num_generations=8),
        sampler=SamplerShapes(max_rows=16),
        train=TrainConfig(**{**train, **own}),
        mesh=MeshConfig(mesh["data"], mesh["fsdp"], mesh["tensor"]),
        **changes,
    )


def simulated() -> Iterator[Case]:
    """Yields updates of 39 M parameters on eight devices, split in three ways."""
    from benchmarks.workloads import SIZES

    model = SIZES["39M"].config
    axes: tuple[str, ...] = ("data", "fsdp", "tensor")
    by_rows, mixed, by_heads = ((1, 8, 1), (2, 2, 2), (1, 2, 4))
    for name, sizes, lora, changes in (
        ("39M adapters, fsdp 8", by_rows, True, {}),
        ("39M all parameters, fsdp 8", by_rows, False, {}),
        ("39M adapters, 2 x 2 x 2", mixed, True, {}),
        ("39M all parameters, 2 x 2 x 2", mixed, False, {}),
        ("39M all parameters, 2 x 4, all logits", by_heads, False, {"logprob_chunk": 4096}),
        ("39M all parameters, 2 x 2 x 2, nothing recomputed", mixed, False, {"remat": "none"}),
    ):
        mesh: dict[str, int] = dict(zip(axes, sizes, strict=True))
        yield Case(name, step_config(mesh, lora, **changes), model, mesh)


def described() -> Iterator[tuple[str, Case]]:
    """Yields (chip, updates of other shapes than those in the file) for eight chips."""
    from model import presets

    short: dict[str, Any] = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    lengths: dict[str, Any] = {"prefix": (2048,), "suffix": (1024,), "logprob_chunk": 2048}
    config = step_config(mesh, False, dtype="bfloat16", attention="reference", micro_batch=4, **lengths)
    model = dataclasses.replace(presets.QWEN3_1_7B, **(short | {"param_dtype": "float32"}), attention="reference")
    yield "v5p", Case("Qwen3-1.7B, all parameters in float32, fsdp 4 x tensor 2", config, model, mesh)
    mesh = {"data": 2, "fsdp": 1, "tensor": 4}
    lengths = {"prefix": (4096,), "suffix": (2048,), "logprob_chunk": 2048}
    both = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    config = step_config(mesh, True, **both, attention="splash", micro_batch=2, **lengths)
    model = dataclasses.replace(presets.QWEN3_8B, **short, attention="splash")
    yield "v6e", Case("Qwen3-8B, adapters, splash, data 2 x tensor 4", config, model, mesh, "splash")


def reserved(case: Case, devices: list[Any]) -> dict[str, float]:
    """Returns the bytes a device that the compiler reserves for the update of a case: arguments, temporaries."""
    import jax
    import jax.numpy as jnp

    from ditto_jax.objective import make_objective
    from ditto_jax.update.batch import pack
    from ditto_jax.update.packing import batch_shapes
    from ditto_jax.update.state import TrainState, make_optimizer
    from ditto_jax.update.train_step import UpdateConfig, make_update
    from model import llama
    from model.lora import init_adapters
    from model.partition import make_mesh

    config, train = case.config, case.config.train
    lora = config.lora if config.lora.rank else None
    objective, optimizer = make_objective(config.objective), make_optimizer(config.optimizer, train.max_steps)
    base = jax.eval_shape(lambda: llama.init(jax.random.key(0), case.model))
    trained = jax.eval_shape(lambda: init_adapters(jax.random.key(0), case.model, lora)) if lora else base
    state = jax.eval_shape(lambda p: TrainState(p, optimizer.init(p), jnp.int32(0)), trained)
    update = UpdateConfig(case.model, objective, remat=train.remat, logprob_chunk=train.logprob_chunk, lora=lora)
    rows = config.rollout.num_generations * len(objective.views)
    shapes = batch_shapes(
        config.rollout.prompts_per_step, rows, train.micro_batch, train.lanes, train.prefix, train.suffix
    )
    packed = pack([], [], jnp.zeros(0), jnp.zeros(0, bool), shapes)  # pyright: ignore[reportArgumentType]
    batch = jax.eval_shape(lambda: packed)
    mesh = make_mesh(*case.mesh.values(), devices=devices)
    lowered = make_update(update, optimizer, mesh, state, base if lora else None).lower(state, batch)
    memory = lowered.compile().memory_analysis()
    return {
        "arguments": float(memory.argument_size_in_bytes),
        "temporaries": float(memory.temp_size_in_bytes),
    }


def predicted(case: Case) -> dict[str, float]:
    """Returns what the plan says of the same two: what is held (and the rows), and what an update needs beside."""
    from ditto_jax.plan.memory import Memory

    memory = Memory(case.config, case.model, case.mesh, case.kernel)
    held = sum(size for name, size in memory.held().items() if name != "runtime")
    update = memory.update()
    rows = update.pop("rows")
    return {"arguments": held + rows, "temporaries": sum(update.values())}


def recorded() -> Iterator[tuple[str, str, Case, dict[str, float]]]:
    """Yields (target, program, its case, bytes that the TPU compiler reserved) for every program in the file."""
    from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TrainConfig
    from ditto_jax.objective import ObjectiveConfig
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from model import presets
    from model.lora import LoraConfig

    short: dict[str, Any] = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    for key, found in json.loads(RECORDED.read_text())["results"].items():
        target, program = key.split(" ", 1)
        if program == "splash attention":
            continue
        mesh, quantised = found["mesh"], found["base"] != "none"
        rows_split = mesh["data"] * mesh["fsdp"]
        # The settings of `benchmarks.tpu_compile`, in a run's words.
        config = RunConfig(
            dtype="bfloat16",
            param_dtype="bfloat16",
            quantization=found["base"],
            lora=LoraConfig(),
            rollout=RolloutConfig(prompts_per_step=32, num_generations=8, max_completion_length=496),
            sampler=SamplerShapes(
                prefix=(1024,),
                tail=(16,),
                max_new_tokens=496,
                max_rows=64 * rows_split,
                rows_per_prefix=(8,),
                max_prefill_tokens=1024,
            ),
            train=TrainConfig(
                micro_batch=rows_split,
                lanes=8,
                prefix=(1024,),
                suffix=(512,),
                remat="full",
                logprob_chunk=512 if quantised else 4096,
            ),
            objective=ObjectiveConfig(name="grpo"),
            mesh=MeshConfig(mesh["data"], mesh["fsdp"], mesh["tensor"]),
        )
        size = presets.QWEN3_1_7B if "1.7b" in target else presets.QWEN3_8B
        kernel = "splash" if target.endswith("-splash") else ""
        case = Case(key, config, dataclasses.replace(size, **short), mesh, kernel)
        yield target, program, case, {part: found[f"{part}_gib"] * GIB for part in ("arguments", "temporaries")}


def sampling(case: Case, program: str) -> dict[str, float]:
    """Returns what the plan says of a decode chunk or a prefill: weights and caches, and what lies beside them."""
    from ditto_jax.plan.memory import Memory

    memory = Memory(case.config, case.model, case.mesh)
    held, call = memory.held(), memory.drafting()
    # The file's decode programs run weights into which adapters were merged, unless it says apart or they are int8.
    apart = "apart" in program or case.config.quantization != "none"
    weights = held["weights"] + (held["adapters"] / 2 if apart else 0.0)  # in the compute dtype
    beside = call["prefill"] if program == "prefill" else call["logits"]
    return {"arguments": weights + call["cache"] + call["prefixes"], "temporaries": beside}


def compare() -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """Yields (name, predicted, reserved) of the programs in the file that a plan has an account of."""
    for target, program, case, found in recorded():
        if program == "update":
            yield f"{target} {program}", predicted(case), found
        elif program != "scoring":
            yield f"{target} {program}", sampling(case, program), found


@dataclasses.dataclass(frozen=True)
class Published:
    """Tokens a second and device that others report for training, and what they trained, on sequences of one length.

    again: whether activations are computed again in the backward pass.
    """

    source: str
    topology: str
    model: str
    adapters: bool
    again: bool
    length: int
    speed: float


PUBLISHED = (
    Published("NeMo AutoModel, performance summary", "h100-1", "llama-3.1-8b", True, False, 4096, 12_473),
    Published("MaxText, v6e-256", "v6e-256", "llama-3.1-8b", False, True, 8192, 7_207),
    Published("prime-rl, baselines of its CI", "h100-1", "qwen3-4b", True, True, 16384, 6_229),
    Published("prime-rl, baselines of its CI", "h100-1", "qwen3-4b", True, True, 65536, 4_164),
)


def predicted_speed(one: Published) -> float:
    """Returns tokens a second and device of an update by the formulas and assumptions of a plan, without padding."""
    from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TrainConfig
    from ditto_jax.plan.assumptions import Assumptions
    from ditto_jax.plan.memory import mesh_over
    from ditto_jax.plan.seconds import Clock
    from ditto_jax.plan.topology import find_topology
    from ditto_jax.plan.work import Work
    from model import presets
    from model.lora import LoraConfig

    qwen3_4b = dataclasses.replace(
        presets.QWEN3_1_7B, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32
    )
    model = {"qwen3-4b": qwen3_4b, **presets.PRESETS}[one.model]
    topology, devices = find_topology(one.topology), find_topology(one.topology).devices
    config = RunConfig(
        dtype="bfloat16",
        lora=LoraConfig(rank=16 if one.adapters else 0),
        rollout=RolloutConfig(prompts_per_step=devices),
        train=TrainConfig(
            remat="full" if one.again else "none", micro_batch=devices, lanes=1, prefix=(1,), suffix=(one.length,)
        ),
        mesh=MeshConfig(1, -1, 1),
    )
    tokens = float(devices * one.length)
    work = Work((), devices, 0.0, one.length, 0.0, trained=tokens, trained_replies=tokens)
    clock = Clock(config, model, mesh_over(config.mesh, devices), topology, Assumptions(packed=1.0))
    return one.length / clock.update(work)


def speeds() -> str:
    """Returns published speeds beside those of the formulas as Markdown."""
    lines = [
        "| who | devices | trained | sequences | tokens/s a device | predicted | over published |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for one in PUBLISHED:
        found = predicted_speed(one)
        what = f"{one.model}, {'adapters' if one.adapters else 'all parameters'}"
        figures = f"{one.length:,} | {one.speed:,.0f} | {found:,.0f} | {found / one.speed:.2f} |"
        lines.append(f"| {one.source} | {one.topology} | {what} | {figures}")
    return "\n".join(lines)


def table(rows: list[tuple[str, dict[str, float], dict[str, float]]]) -> str:
    """Returns predicted over reserved as Markdown: of arguments, of temporaries, of both together."""
    lines = [
        "| program | reserved: arguments, temporaries, GiB | predicted over reserved: arguments | temporaries | both |"
    ]
    lines.append("|---|---|---:|---:|---:|")
    for name, plan, real in rows:
        ratios = [plan[part] / real[part] for part in ("arguments", "temporaries")]
        both = sum(plan.values()) / sum(real.values())
        sizes = f"{real['arguments'] / GIB:.3f}, {real['temporaries'] / GIB:.3f}"
        lines.append(f"| {name} | {sizes} | {ratios[0]:.3f} | {ratios[1]:.2f} | {both:.2f} |")
    return "\n".join(lines)


def _libtpu(output: Path) -> str:
    """The version that is here, else that of the file."""
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return json.loads(output.read_text())["versions"]["libtpu"] if output.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the memory of a plan with what compilers reserve.")
    parser.add_argument("--tpu", action="store_true", help="compile updates of other shapes for described TPUs")
    parser.add_argument("--only", default="", help="part of the names of the described updates to compile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of what is compiled here, added to")
    args = parser.parse_args()
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu"}
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    import jax

    kept = json.loads(args.output.read_text())["results"] if args.output.exists() else {}
    rows = list(compare())
    if args.tpu:
        from jax.experimental import topologies

        for chip, case in described():
            if args.only not in case.name:
                continue
            shape, host = DESCRIBED[chip]
            devices = list(topologies.get_topology_desc(shape, "tpu", chips_per_host_bounds=host).devices)
            kept[f"{chip}, 8 chips: {case.name}"] = reserved(case, devices)
    else:
        kept |= {case.name: reserved(case, jax.devices()[:8]) for case in simulated()}
    # One set of versions for all: what another compiler says is to be compiled anew.
    versions = {name: version(name) for name in ("jax", "jaxlib")} | {"libtpu": _libtpu(args.output)}
    args.output.write_text(json.dumps({"versions": versions, "results": kept}, indent=1) + "\n")
    named = {f"{chip}, 8 chips: {case.name}": case for chip, case in described()} | {c.name: c for c in simulated()}
    rows += [(name, predicted(named[name]), found) for name, found in kept.items()]
    print(f"{table(rows)}\n\n{speeds()}\n\nwritten to {args.output}")


if __name__ == "__main__":
    main()
