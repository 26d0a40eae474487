"""One target of the fuzzer in a process of its own, guided by coverage (atheris), with a corpus in a folder.

In: a target of tests/faults/fuzz_targets.py and options of libFuzzer. Out: exit code 0, or the fuzzer's own and the
input that broke the target in a file `crash-...`. What is kept with the tests is chosen by `kept_corpus`. Needs the
extra `fuzz`.

    python -m benchmarks.soak_fuzz judge_reply -runs=1000 CORPUS
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_LONGEST = 400  # bytes of an input
_KEPT, _KEPT_LONGEST = 40, 160


def begin_corpus(name: str, folder: Path) -> Path:
    """Returns the corpus folder of a target, with its seeds and what is kept with the tests in it."""
    from tests.faults.fuzz_targets import SEEDS, kept

    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*SEEDS[name], *kept(name)]):
        (corpus / f"seed-{number:03}").write_bytes(data)
    return corpus


def command(name: str, folder: Path, *options: str) -> list[str]:
    """Returns the command that runs a target with options of the fuzzer; findings go to `folder`."""
    known = (f"-artifact_prefix={folder}/", f"-max_len={_LONGEST}", "-timeout=60", "-rss_limit_mb=4096")
    return [sys.executable, "-m", "benchmarks.soak_fuzz", name, *known, *options]


def kept_corpus(name: str, folder: Path) -> str:
    """Returns the shortest inputs of a target's corpus, escaped, one a line: each covered something new when found."""
    inputs = sorted((file.read_bytes() for file in (folder / name).iterdir()), key=lambda data: (len(data), data))
    lines = [data.decode("latin-1").encode("unicode_escape").decode("ascii").replace(" ", "\\x20") for data in inputs]
    return "".join(f"{line}\n" for line in [line for line in lines if 0 < len(line) <= _KEPT_LONGEST][:_KEPT])


def main(name: str, options: list[str]) -> None:
    """Runs the fuzzer, which ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ditto_jax"]):
        from tests.faults.fuzz_targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
