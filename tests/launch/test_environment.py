"""What the process is given before jax starts: defaults that never override, a private compile cache, the allocator."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import environment


@pytest.fixture
def cache_setting(monkeypatch):
    """Leaves the process's own compile cache as it was."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_defaults_are_set_only_where_nothing_was_set(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    environment.set_defaults()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"


def test_the_home_of_caches_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environment.ditto_home() == tmp_path / "own"
    monkeypatch.delenv("DITTO_HOME")
    assert environment.ditto_home() == tmp_path / "xdg" / "ditto_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment.ditto_home() == Path.home() / ".cache" / "ditto_jax"


def test_the_compile_cache_is_private_and_separate_for_each_version_and_machine(monkeypatch, tmp_path, cache_setting):
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    folder = environment.use_compile_cache()
    assert folder is not None
    assert folder.parent == tmp_path / "home" / "jax_cache" / jax.__version__
    assert folder.name.startswith("cpu-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_cache_that_others_may_write_to_is_not_used(monkeypatch, tmp_path, cache_setting, capsys):
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    folder = environment.use_compile_cache()
    assert folder is not None
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o777)
    assert environment.use_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert "others may write to it" in capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, cache_setting, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "file"))
    assert environment.use_compile_cache() is None
    assert "set DITTO_HOME" in capsys.readouterr().err


def test_the_cache_folder_that_jax_knows_by_itself_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "chosen"))
    assert environment.use_compile_cache() == tmp_path / "chosen"
    assert not (tmp_path / "home").exists()


def test_the_platform_is_told_without_jax(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert environment.runs_on_cpu()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not environment.runs_on_cpu()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(environment, "_ACCELERATORS", (__file__,))
    assert not environment.runs_on_cpu()
    monkeypatch.setattr(environment, "_ACCELERATORS", ("/nothing/here/*",))
    assert environment.runs_on_cpu()


_FAULTS = """
import resource, sys
from launch.malloc import keep_pages
if sys.argv[1] == "keep": assert keep_pages()
import numpy as np
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 22)
before = faults()
for _ in range(20): np.ones(1 << 22)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_pages_are_used_again():
    """Twenty buffers of 32 MB one after the other: fresh pages for each, or for none after the first."""

    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") * 10 < faults("leave")
