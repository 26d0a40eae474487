"""One process a run directory: a second one is refused instead of writing between the lines of the first.

In: the folder of a run. Out: a lock on it, held by the operating system for as long as the process lives, so that a
killed run leaves none behind. Runs of several hosts that share a folder over a network are told apart only where that
file system locks files.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ditto_jax.errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # not POSIX: nothing is locked there
    fcntl = None

FILE_NAME = ".owner"


def require_free(folder: Path) -> None:
    """Returns nothing; raises RunDirectoryError if another process writes to the run directory. Changes nothing."""
    with contextlib.suppress(FileNotFoundError), open(folder / FILE_NAME, encoding="utf-8") as handle:
        _lock(handle, folder)


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Holds the run directory `folder`, which is made if need be, while the block runs.

    Raises RunDirectoryError if another process holds it, or if it cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = held.enter_context(open(folder / FILE_NAME, "a+", encoding="utf-8"))
            _lock(handle, folder)
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
        except RunDirectoryError:
            raise
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write {folder}: {error.strerror or error}; choose another --output_dir, or free space"
            ) from error
        yield


def _lock(handle: IO[str], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        raise RunDirectoryError(
            f"{folder} is being written by {handle.read() or 'another process'}; wait for it, stop it, or choose "
            "another --run_name"
        ) from None
