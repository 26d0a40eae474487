"""`ditto-jax data fetch` and `ditto-jax data check`: the released rows, fetched at a revision and held to it.

In: the words after the verb. Out: an exit code, and what lies where. What is fetched and how it is checked is
`ditto_jax.released_data`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from ditto_jax.errors import ConfigError
from launch.flags import own_errors

_USAGE = """\
usage: ditto-jax data fetch --revision COMMIT [--part train|eval] [--output FOLDER] [--tasks NAME ...]
       ditto-jax data check FOLDER

fetch: the released parquet files of one part at one revision, into FOLDER/train or FOLDER/eval, with a manifest beside
them (data set, commit, SHA-256 of each file). Then set SOUL_PARQUET_DIR to FOLDER.
check: whether the fetched files below FOLDER are as they were; exit code 3 if not. Reading them checks them, too."""


@dataclasses.dataclass(frozen=True)
class _CheckFlags:
    """Say whether fetched files are as they were."""

    folder: tyro.conf.Positional[Path]
    """the folder given to fetch as --output"""


def main(args: list[str], command: list[str]) -> int:
    """Fetches or checks; prints the folders and how many files they hold."""
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] not in ("fetch", "check"):
        raise ConfigError(f"data {args[0]}: say what to do, fetch or check; ditto-jax data --help shows both")
    return _fetch(args[1:]) if args[0] == "fetch" else _check(args[1:])


def _fetch(args: list[str]) -> int:
    from ditto_jax.released_data import FetchConfig, fetch

    with own_errors():
        config = tyro.cli(FetchConfig, args=args, prog="ditto-jax data fetch", use_underscores=True)
    folder = fetch(config)
    print(f"fetched: {len(config.file_names)} files of {config.data_set} in {folder}")
    return 0


def _check(args: list[str]) -> int:
    from ditto_jax.released_data import check, fetched_folders

    flags = tyro.cli(_CheckFlags, args=args, prog="ditto-jax data check", use_underscores=True)
    for folder in fetched_folders(flags.folder):
        print(f"intact: {check(folder)} files in {folder}")
    return 0
