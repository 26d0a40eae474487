"""What every test finds: eight simulated CPU devices, a compile cache, deterministic examples, the public data.

The settings go into the environment before jax is imported, so that processes started by tests have them too. A second
run of the suite reads most compiled programs from `.pytest_cache`.
"""

from __future__ import annotations

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

from model.xla_flags import apply_workarounds

_CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / f"jax-{version('jaxlib')}"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for own in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):  # a developer's account has no part in any test
    os.environ.pop(own, None)
apply_workarounds()

# A slow machine is no failure, and the same examples are tried everywhere.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def soul_data_dir() -> Path:
    """The folder of public benchmark files; tests that need it are skipped where SOUL_DATA_DIR is not set."""
    folder = os.environ.get("SOUL_DATA_DIR", "")
    if not folder:
        pytest.skip("SOUL_DATA_DIR is not set: the public benchmark files are not shipped")
    if not Path(folder).is_dir():
        pytest.fail(f"SOUL_DATA_DIR={folder}: no such folder")
    return Path(folder)


@pytest.fixture(scope="session")
def stories260k(soul_data_dir) -> Path:
    """The folder of the published 260-thousand-parameter story model."""
    folder = soul_data_dir / "stories260k"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"{folder} is not there: the published story model is not shipped")
    return folder


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory) -> Path:
    """The folder of a tiny policy that was trained for a minute of text: it mostly answers in the right form."""
    from tests.tiny_run import train_policy

    return train_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs of the file are quickly made instead of quick: for files that run each of theirs a few times."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def _each_file_leaves_nothing():
    """Gives up a file's compiled programs: each holds memory mappings, and a process may have 65,530 of them on Linux.

    Without this the whole suite in one process ends in a segmentation fault. Garbage is collected too, so that a socket
    or an event loop that was left open is reported with the file that left it and not with whichever test comes later.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()
