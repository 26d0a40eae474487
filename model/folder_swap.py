"""A folder is replaced as a whole or not at all.

In: the path of a folder. Out: an empty folder beside it to write into, which takes its place at the end. Whatever
interrupts the writing leaves the older folder as it was; a power cut inside the swap leaves it under another name.
Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place if the block ends without an exception.

    Raises OSError if the disk does not take it; the older folder is then still there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _swap(partial, folder, previous_of(folder))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_previous(folder: Path) -> None:
    """Puts back the older folder if a swap was interrupted half-way."""
    if previous_of(folder).exists() and not folder.exists():
        os.replace(previous_of(folder), folder)


def previous_of(folder: Path) -> Path:
    """Returns where the older folder lies while the new one takes its place."""
    return folder.parent / f".{folder.name}.previous"


def _swap(partial: Path, folder: Path, previous: Path) -> None:
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)
    try:
        os.replace(partial, folder)
    except OSError:
        if previous.exists():
            os.replace(previous, folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    """Makes bytes durable before the rename, so that a power cut cannot leave a renamed but empty folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
