"""`--tasks all`, `--task path.py:MyTask`, `--limit N`, `--split test`, `--num_trials 4` → settings of a config.

In: the words after `train` or `eval`. Out: the same words with the named tasks spelled out as records and short names
as settings, so that checking, --print_config and the run's records see nothing new. A task that the config lists is
taken as it is there; any other gets the best source that is at hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro
import yaml

from ditto_jax.config_io import find_config, merge, read_yaml
from ditto_jax.errors import ConfigError
from ditto_jax.tasks.registry import built_in_names, task_type

ALL = "all"
_MEASURED, _TRAINED = 100, 1024  # examples of a task without --limit
_SMALL, _WHOLE = "soul_eval_tiny.yaml", "soul_eval.yaml"  # for the packaged policy, and for any other


_TASK = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="NAME", help="a task by name, or path.py:MyTask; may be repeated. --tasks takes a list: all, or a,b"
    ),
]
_LIMIT = Annotated[int | None, tyro.conf.arg(metavar="N", help="examples of each task that --task and --tasks name")]
_SPLIT = Annotated[str | None, tyro.conf.arg(metavar="NAME", help="split of those examples: test, validation or train")]
_TRIALS = Annotated[
    int | None, tyro.conf.arg(metavar="N", help="samples per item: evaluation.num_samples; several need a temperature")
]
_CONCURRENCY = Annotated[
    int | None, tyro.conf.arg(metavar="N", help="requests in flight at once, of policy, judge and partner each")
]
# What --help says; the words themselves are read by `spelled_out`.
TASK_FLAGS = (("task", _TASK, ()), ("limit", _LIMIT, None))
EVAL_FLAGS = (
    *TASK_FLAGS,
    ("split", _SPLIT, None),
    ("num_trials", _TRIALS, None),
    ("max_concurrency", _CONCURRENCY, None),
)
_SHORT = {
    "num_trials": ("evaluation.num_samples",),
    "max_concurrency": ("policy.max_concurrent", "judge.max_concurrent", "partner.max_concurrent"),
}


def spelled_out(args: Sequence[str], verb: str) -> list[str]:
    """Returns `args` with the named tasks as records.

    Raises ConfigError for names of no task, a limit that is no positive number, and tasks given in two ways.
    """
    named, rest = _read(args, verb)
    names = [*_names_in(named.tasks), *named.task]
    configs = list(named.config)
    if not names and (named.limit is not None or named.split is not None):
        names = _evaluated(configs) if verb == "eval" else []
        if not names:
            flag = f"--limit {named.limit}" if named.limit is not None else f"--split {named.split}"
            raise ConfigError(f"{flag}: name the tasks that it is for, for example --tasks {ALL}")
    if not names:
        return [*(word for name in configs for word in ("--config", name)), *rest]
    if not configs and verb == "eval":
        configs = [_WHOLE if "model_name_or_path" in _flags(rest) else _SMALL]
    known = _layers(configs)
    lists = {"evaluation.tasks": _records(names, _listed(known.get("evaluation")), named.split or "test", named)}
    if verb == "train":
        lists["tasks"] = _records(names, _listed(known), "train", named)
    for record in lists["evaluation.tasks"]:
        task_type(str(record.get("name")))
    given = _flags(rest) & set(lists)
    wanted = "tasks" if verb == "train" else "evaluation.tasks"
    if wanted in given:
        raise ConfigError(f"--{wanted}: tasks are already named by --tasks or --task; give one of the two")
    for flag in sorted(set(lists) - given):
        rest += [f"--{flag}", yaml.safe_dump(lists[flag], default_flow_style=True, width=10**6)]
    return [*(word for name in configs for word in ("--config", name)), *rest]


def _read(args: Sequence[str], verb: str) -> tuple[argparse.Namespace, list[str]]:
    """The flags that name tasks with --config, and all other words, short names as settings.

    Records under --tasks are no names.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--tasks")
    parser.add_argument("--limit", type=_limit)
    if verb == "eval":
        parser.add_argument("--split", choices=("test", "validation", "train"))
        for name in _SHORT:
            parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=_limit)
    parser.set_defaults(split=None)
    try:
        named, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        rule = "name a YAML file, for example --config configs/quickstart.yaml"
        flag = str(error.argument_name).partition("/")[0]
        raise ConfigError(f"{flag}: {rule if 'config' in str(error) else error.message}") from None
    if named.tasks is not None and named.tasks.lstrip().startswith(("[", "{")):
        rest, named.tasks = [*rest, "--tasks", named.tasks], None
    given = _flags(rest)
    for name, settings in _SHORT.items():
        value = getattr(named, name, None)
        for setting in settings if value is not None else ():
            if setting in given:
                raise ConfigError(f"--{name} {value}: sets {setting}, which is given as well; give one of the two")
            rest = [*rest, f"--{setting}", str(value)]
    return named, rest


def _limit(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number, for example 5")
    return int(text)


def _flags(words: Sequence[str]) -> set[str]:
    return {word.lstrip("-").partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def _names_in(text: str | None) -> list[str]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if ALL in names and len(names) > 1:
        raise ConfigError(f"--tasks {text}: '{ALL}' already names every task; leave the others out")
    return list(built_in_names()) if names == [ALL] else names


def _evaluated(configs: Sequence[str]) -> list[str]:
    """The tasks that the configs evaluate, by label."""
    tasks = _listed(_layers(configs).get("evaluation"))
    return [str(task.get("label") or task.get("name")) for task in tasks]


def _layers(configs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in configs:
        values = merge(values, read_yaml(find_config(name)))
    return values


def _listed(part: Any) -> list[Mapping[str, Any]]:
    """The records under `tasks`; what is no list of mappings is left to the check of the whole config."""
    tasks = part.get("tasks") if isinstance(part, Mapping) else None
    return [task for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []


def _records(
    names: Sequence[str], listed: Sequence[Mapping[str, Any]], split: str, named: argparse.Namespace
) -> list[dict[str, Any]]:
    """Records for the names: as `listed` by name or label, else new ones; limit and split that are given are those of
    all.
    """
    records: list[dict[str, Any]] = []
    source = {} if named.limit is None else {"limit": named.limit}
    source |= {} if named.split is None else {"split": named.split}
    changes = {"source": source} if source else {}
    for name in dict.fromkeys(names):
        found = [task for task in listed if name in (task.get("name"), task.get("label"))]
        records += [merge(task, changes) for task in found or [_record(name, split)]]
    return records


def _record(name: str, split: str) -> dict[str, Any]:
    source: dict[str, Any] = {"kind": "auto", "split": split, "limit": _TRAINED}
    if split == "test":
        source |= {"limit": _MEASURED, "optional": True, "bad_rows": "skip", "overlong": "skip"}
    return {"name": name, "source": source}
