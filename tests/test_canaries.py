"""The canaries hold on the jaxlib of this environment, and each sees the fault that it is named for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

from ditto_jax import canaries
from model.xla_flags import FUSION_FLAG, WORKAROUND, apply_workarounds, needs_workaround


@pytest.mark.parametrize("canary", canaries.CANARIES, ids=lambda canary: canary.__name__)
def test_the_canary_holds(canary):
    result = canary()
    assert result.ok, f"{result.name}: {result.detail}; {result.advice}"
    assert result.detail
    assert result.advice


def test_the_loop_canary_sees_quadratic_time(monkeypatch):
    monkeypatch.setattr(canaries, "_best_seconds", lambda _, buffer: 1e-9 * len(buffer) ** 2)
    assert not canaries.decode_loop_is_linear().ok


def test_the_donation_canary_sees_a_copy(monkeypatch):
    jit = canaries.jax.jit
    monkeypatch.setattr(canaries.jax, "jit", lambda function, donate_argnums: jit(function))
    result = canaries.donated_cache_is_aliased()
    assert not result.ok
    assert "same address: False" in result.detail


def test_the_cache_canary_sees_a_cache_that_is_off(monkeypatch):
    run = canaries._run
    off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    monkeypatch.setattr(canaries, "_run", lambda program, settings: run(program, {**settings, **off}))
    assert not canaries.compile_cache_hits().ok


def test_a_program_that_dies_is_told_with_its_signal():
    ended = canaries._run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {})
    assert not ended.ok
    assert "signal 11" in ended.detail


@pytest.mark.skipif(
    version("jaxlib") != "0.10.2" or platform.machine() != "x86_64", reason="the fault is known of this version"
)
def test_the_value_canary_fails_without_the_workaround():
    program = (
        "import os; from ditto_jax import canaries; os.environ['XLA_FLAGS'] = '';"
        "result = canaries.jit_equals_eager(); print(result); raise SystemExit(result.ok)"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"})
    assert done.returncode == 0, "the fault did not show: the workaround may no longer be needed"


@pytest.mark.parametrize(
    ("jaxlib", "faulty"),
    [("0.9.2", False), ("0.10.1", False), ("0.10.2", True), ("0.11.0", True), ("0.12.0", False), ("0.12.0.1", False)],
)
def test_the_workaround_is_for_the_faulty_versions(jaxlib, faulty):
    assert needs_workaround(jaxlib) is faulty


def test_the_workaround_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setattr("model.xla_flags.version", lambda _: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    apply_workarounds()
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_multi_thread_eigen=false {WORKAROUND}"
    monkeypatch.setenv("XLA_FLAGS", f"{FUSION_FLAG}=dot")
    apply_workarounds()
    assert os.environ["XLA_FLAGS"] == f"{FUSION_FLAG}=dot"
