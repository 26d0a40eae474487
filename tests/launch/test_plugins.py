"""What doctor advises where an accelerator is not used, and what is set for GPUs before jax starts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch import machine, plugins
from launch.gpu import prepare_gpu
from launch.plugins import Hardware, missing_plugin, seen_hardware

CUDA12, CUDA13 = {"jax-cuda12-plugin": "0.10.2"}, {"jax-cuda13-plugin": "0.10.2"}


def hardware(kind: str = "", driver: int = 0, plugins: dict[str, str] | None = None, platforms: str = "") -> Hardware:
    return Hardware(kind, driver, plugins or {}, "0.10.2", platforms)


@pytest.mark.parametrize(
    ("seen", "parts"),
    [
        (hardware("nvidia", 580), ["pip install 'ditto-jax[cuda13]'"]),
        (hardware("nvidia", 550), ["pip install 'ditto-jax[cuda12]'"]),
        (hardware("nvidia"), ["pip install 'ditto-jax[cuda12]'"]),
        (hardware("nvidia", 470), ["driver 470", "525"]),
        (hardware("nvidia", 580, {"jax-cuda12-plugin": "0.9.2"}), ["0.9.2", "jaxlib 0.10.2", "ditto-jax[cuda12]"]),
        (hardware("nvidia", 550, CUDA13), ["580", "here is 550", "ditto-jax[cuda12]"]),
        (hardware("nvidia", 580, CUDA12), ["nvidia-smi", "LD_LIBRARY_PATH"]),
        (hardware("nvidia", 580, CUDA12, "cpu"), ["JAX_PLATFORMS=cpu", "unset"]),
        (hardware(platforms="cuda"), ["--gpus all", "driver"]),
        (hardware("tpu"), ["pip install 'ditto-jax[tpu]'"]),
        (hardware("tpu", plugins={"libtpu": "0.0.40"}), ["another process", "more hosts"]),
        (hardware("amd"), ["ROCm"]),
    ],
)
def test_the_advice_names_what_is_missing(seen, parts):
    advice = missing_plugin(seen)
    assert all(part in advice for part in parts), advice


def test_a_machine_without_accelerator_gets_no_advice():
    assert missing_plugin(hardware()) == ""
    assert missing_plugin(hardware(platforms="cpu")) == ""


def test_the_extras_that_the_advice_names_exist():
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert {"cuda12", "cuda13", "tpu"} <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: gcc 12", 550),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", 580),
        ("something else", 0),
    ],
)
def test_the_driver_is_read_from_what_it_says_of_itself(monkeypatch, tmp_path, text, major):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(plugins, "_NVIDIA_DRIVER", file)
    assert (seen_hardware().kind, seen_hardware().driver) == ("nvidia", major)


def test_doctor_shows_the_advice_beside_the_devices(monkeypatch):
    monkeypatch.setattr(machine, "seen_hardware", lambda: hardware("nvidia", 580))
    found = {fact.topic: fact.warning for fact in machine._devices()}
    assert "ditto-jax[cuda13]" in found["devices"]


def test_gpus_get_their_settings_and_own_ones_stay():
    environment: dict[str, str] = {}
    prepare_gpu(environment, __file__)
    assert environment == {
        "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true",
        "XLA_CLIENT_MEM_FRACTION": "0.9",
    }
    own = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment = dict(own)
    prepare_gpu(environment, __file__)
    assert environment == own


@pytest.mark.parametrize(("platforms", "driver"), [("cpu", __file__), ("", "/nothing/here")])
def test_other_machines_are_left_alone(platforms, driver):
    environment = {"JAX_PLATFORMS": platforms} if platforms else {}
    before = dict(environment)
    prepare_gpu(environment, driver)
    assert environment == before


def test_this_jaxlib_knows_the_flag():
    """XLA ends the process for a flag that it does not know, on the CPU as well."""
    environment: dict[str, str] = {}
    prepare_gpu(environment, __file__)
    program = f"import os; os.environ.update({environment!r}, JAX_PLATFORMS='cpu'); import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
