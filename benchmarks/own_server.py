"""`ditto-jax serve` in a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence


@contextlib.contextmanager
def own_server(model: str, words: Sequence[str], engine: Mapping[str, int]) -> Iterator[str]:
    """The address (without /v1) of a server of this model on a free port of loopback.

    words: further flags. engine: settings of its slots. Raises SystemExit if it does not start.
    """
    command = [sys.executable, "-m", "ditto_jax", "serve", model, "--port", "0", *words]
    command += [word for name, value in engine.items() for word in (f"--engine.{name}", str(value))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "http" not in line:
            raise SystemExit("the server did not start")
        yield line.split(" at ")[1].strip().removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
