"""What every task demands of a `Source`: a path where files are read, a count where stories are generated.

In: a source as configured. Out: its path or limit, or an error that says what to set.
"""

from __future__ import annotations

from pathlib import Path

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.base import Source


def needed_path(source: Source, task_name: str) -> Path:
    """Returns the path of a source that reads files. Raises ConfigError if none is set; readers check it."""
    if source.path is None:
        raise ConfigError(
            f"source.path of task {task_name!r} is not set: the kind {source.kind!r} reads files; "
            "set it to a file or folder, or use the kind 'generated'"
        )
    return Path(source.path)


def needed_limit(source: Source) -> int:
    """Returns how many examples to generate. Raises ConfigError unless `limit` is a positive number."""
    if source.limit is None or source.limit < 1:
        raise ConfigError(f"source.limit={source.limit}: a generated source needs a positive number, for example 1000")
    return source.limit
