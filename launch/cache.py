"""`ditto-jax cache {stats,merge,prune}`: what caches of judge replies hold, several into one, old ones out.

In: the words after the verb. Out: an exit code, and counts. What a cache is, is `ditto_jax.judge.cache`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from ditto_jax.errors import ConfigError
from launch.flags import own_errors

_USAGE = """\
usage: ditto-jax cache stats FILE
       ditto-jax cache merge TARGET FILE ...
       ditto-jax cache prune FILE [--older_than_days N] [--model NAME]

FILE: the SQLite file of a run, runs/NAME/judge_cache.sqlite, or that of a cache_path.
stats: replies and tokens by model and version of the prompt. merge: adds the replies of each FILE to TARGET.
prune: removes replies that are older than N days, of one model, or both; without either, it refuses."""

_DAY_S = 86_400.0


@dataclasses.dataclass(frozen=True)
class _StatsFlags:
    """Say what a cache holds."""

    file: tyro.conf.Positional[Path]
    """the cache"""


@dataclasses.dataclass(frozen=True)
class _MergeFlags:
    """Add the replies of some caches to another."""

    target: tyro.conf.Positional[Path]
    """the cache that is added to; made if it does not exist"""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """the caches to add"""


@dataclasses.dataclass(frozen=True)
class _PruneFlags:
    """Remove replies from a cache."""

    file: tyro.conf.Positional[Path]
    """the cache"""
    older_than_days: float | None = None
    """replies that are older"""
    model: str | None = None
    """replies of this model"""


def main(args: list[str], command: list[str]) -> int:
    """Shows, merges or prunes; prints counts."""
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    actions = {"stats": _stats, "merge": _merge, "prune": _prune}
    if args[0] not in actions:
        raise ConfigError(f"cache {args[0]}: say what to do, stats, merge or prune; ditto-jax cache --help shows them")
    return actions[args[0]](args[1:])


def _stats(args: list[str]) -> int:
    from ditto_jax.judge.cache import stats

    flags = tyro.cli(_StatsFlags, args=args, prog="ditto-jax cache stats", use_underscores=True)
    found = stats(flags.file)
    for (model, version), (replies, tokens_in, tokens_out) in found.rows.items():
        print(f"{model} {version}: {replies} replies, {tokens_in} tokens in, {tokens_out} tokens out")
    print(f"{sum(row[0] for row in found.rows.values())} replies, {found.size} bytes in {flags.file}")
    return 0


def _merge(args: list[str]) -> int:
    from ditto_jax.judge.cache import merge

    flags = tyro.cli(_MergeFlags, args=args, prog="ditto-jax cache merge", use_underscores=True)
    if not flags.files:
        raise ConfigError("cache merge: name at least one cache to add, for example runs/a/judge_cache.sqlite")
    print(f"added: {merge(flags.target, list(flags.files))} replies to {flags.target}")
    return 0


def _prune(args: list[str]) -> int:
    from ditto_jax.judge.cache import prune

    with own_errors():
        flags = tyro.cli(_PruneFlags, args=args, prog="ditto-jax cache prune", use_underscores=True)
    if flags.older_than_days is None and flags.model is None:
        raise ConfigError("cache prune: say which replies, for example --older_than_days 30 or --model gpt-5-nano")
    older_than_s = None if flags.older_than_days is None else flags.older_than_days * _DAY_S
    print(f"removed: {prune(flags.file, older_than_s, flags.model)} replies from {flags.file}")
    return 0
