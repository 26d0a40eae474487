"""What the process is given before jax starts: quiet libraries, a steady allocator, a compile cache of its own.

Only what the user left unset is set. A compile cache holds machine code that is run as it is read, so it lives in a
private folder, one for each jax version and kind of machine.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

from launch.gpu import prepare_gpu
from launch.malloc import keep_pages
from model.xla_flags import apply_workarounds

_DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "GRPC_VERBOSITY": "ERROR",
    # Small programs are worth caching too: a CPU run consists of them.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# Device files of NVIDIA, AMD and TPU drivers.
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def set_defaults() -> None:
    """Sets the library switches that must stand before anything is imported; a value that is there stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    apply_workarounds()
    prepare_gpu(os.environ)


def ditto_home() -> Path:
    """Returns the folder of this project's caches: $DITTO_HOME, else ditto_jax in the user's cache folder."""
    home = os.environ.get("DITTO_HOME")
    if home:
        return Path(home).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches).expanduser() if caches else Path.home() / ".cache") / "ditto_jax"


def runs_on_cpu() -> bool:
    """Returns whether jax will compute on the CPU, as far as can be told without importing it."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted:
        return wanted.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in _ACCELERATORS)


def prepare_allocator() -> None:
    """Call before jax is imported: keeps freed memory mapped in CPU runs (`launch.malloc`)."""
    if runs_on_cpu():
        keep_pages()


def use_compile_cache() -> Path | None:
    """Turns on jax's persistent compile cache and returns its folder; None (and a message) if that folder is not safe.

    JAX_COMPILATION_CACHE_DIR wins. Else $DITTO_HOME/jax_cache/<jax version>/<platform>, made with mode 0700.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    import jax

    folder = ditto_home() / "jax_cache" / jax.__version__ / _platform(jax.default_backend())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _why_unsafe(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        print(f"ditto-jax: no compile cache: {folder}: {problem}; set DITTO_HOME to a folder of yours", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _platform(backend: str) -> str:
    """Names the machine type: compiled CPU code uses whatever instructions this processor has."""
    if backend != "cpu":
        return backend
    features = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        features += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"cpu-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _why_unsafe(folder: Path) -> str:
    """Returns why code from this folder cannot be trusted, or an empty string."""
    if not hasattr(os, "getuid"):
        return ""
    info = folder.stat()
    if info.st_uid != os.getuid():
        return "belongs to another user"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "not writable"
    return ""
