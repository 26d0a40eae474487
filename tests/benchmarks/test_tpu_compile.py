"""The TPU compiler, where it is installed, finds the decode chunk to need little beside weights and cache."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks.tpu_compile import PROGRAMS, TARGETS, overview, table

needs_compiler = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: no TPU compiler")

RESULT = {
    "arguments_gib": 20.0,
    "outputs_gib": 5.0,
    "aliases_gib": 5.0,
    "temporaries_gib": 1.5,
    "total_gib": 21.5,
    "hbm_gib": 16,
    "fits": False,
    "largest_collectives": {},
    "forbidden": {"keys": []},
    "kernels": {},
    "base": "none",
    "compile_cpu_seconds": 8.2,
    "temporaries_over_cache": 0.25,
}


def compiled(output, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_compiler
def test_the_decode_chunk_of_8b_needs_little_beside_weights_and_cache(tmp_path):
    programs = ["decode chunk", "decode chunk, adapters apart"]
    run = compiled(tmp_path / "found.json", "--targets", "v5p-8", "--programs", *programs)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    for program in programs:
        found = results[f"v5p-8 {program}"]
        assert found["fits"]
        assert found["temporaries_over_cache"] <= 0.15
        assert not any(found["forbidden"].values())


@needs_compiler
def test_splash_attention_becomes_a_kernel_of_its_own(tmp_path):
    run = compiled(tmp_path / "found.json", "--targets", "v5e-8", "--programs", "splash attention")
    assert run.returncode == 0, run.stderr
    assert (
        "tpu_custom_call"
        in json.loads((tmp_path / "found.json").read_text())["results"]["v5e-8 splash attention"]["kernels"]
    )


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_the_benchmark_says_what_to_install(tmp_path):
    run = compiled(tmp_path / "found.json")
    assert run.returncode
    assert "pip install 'jax[tpu]'" in run.stderr


@pytest.mark.parametrize(("target", "fsdp", "mesh"), [("v6e-64", 1, (8, 1, 8)), ("v5p-8", 4, (1, 4, 2))])
def test_eight_chips_hold_the_weights(target, fsdp, mesh):
    assert TARGETS[target].mesh(fsdp) == mesh


def test_what_does_not_fit_and_what_was_not_compiled_is_said():
    results = {"v5e-1 decode chunk": RESULT}
    assert "| **21.50** |" in table(results)
    rows = overview(results).splitlines()
    assert "21.50, 1.500 **does not fit**" in next(row for row in rows if row.startswith("| v5e-1 "))
    assert next(row for row in rows if row.startswith("| v6e-8 ")).count("not compiled") == len(PROGRAMS)
