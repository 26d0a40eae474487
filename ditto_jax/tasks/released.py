"""Which data sources the released files hold, where, and which of them can be used here.

In: a task name or the `data_source` of a row. Out: file names, or an error that names what is known. Unknown sources
are never handed to some default task. Reads nothing.
"""

from __future__ import annotations

import dataclasses
import difflib

from ditto_jax.errors import ConfigError

TRAIN_DATA, EVAL_DATA = "sunweiwei/sim-rl-data", "sunweiwei/sim-eval-data"  # data sets on the Hugging Face Hub


PARTS = {"train": TRAIN_DATA, "eval": EVAL_DATA}  # folder of a part → its data set


def part_of(split: str) -> str:
    """Returns which part of the release holds a split: "train", else "eval"."""
    return "train" if split == "train" else "eval"


@dataclasses.dataclass(frozen=True)
class Released:
    """Files of one data source in the two released data sets."""

    data_source: str
    train: str
    held_out: str

    def file(self, split: str) -> str:
        """Returns the file name of a split: "train", else the evaluation file."""
        return self.train if part_of(split) == "train" else self.held_out


SOUL = {
    name: Released(name, train, held_out)
    for name, train, held_out in (
        ("fantom", "fantom_rl_train.parquet", "fantom_val.parquet"),
        ("hitom", "hitom_rl_train.parquet", "hitom_val.parquet"),
        ("paratomi", "paratomi_rl_train.parquet", "paratomi_val.parquet"),
        ("coser", "coser_rl_train.parquet", "coser_val.parquet"),
        ("lifechoices", "lifechoices_hard_rl.parquet", "lifechoices_val.parquet"),
        ("sotopia", "sotopia_clean_rl.parquet", "sotopia_hard_val.parquet"),
        ("mistakes", "mistakes_rl_train.parquet", "mistakes_val.parquet"),
        ("mirrorbench", "mirrorbench_rl_train.parquet", "mirrorbench_val.parquet"),
        ("userllm", "userllm_rl_train.parquet", "userllm_val.parquet"),
        ("twinvoice", "twinvoice_rl_train.parquet", "twinvoice_val.parquet"),
    )
}

# Known, but their tasks are not part of this suite yet.
_HUMANUAL = ("book", "chat", "email", "news", "opinion", "politics")
_ALIGNX = ("demo", "pair", "ugc", "arbitrary", "history16")
NOT_YET = frozenset(
    {
        *("social_r1", "behavior_chain", "sim_arena_math", "sim_arena_doc", "socsci210", "humanllm", "tau_usi"),
        *("humanual", *(f"humanual-{name}" for name in _HUMANUAL)),
        *("alignx", *(f"alignx_{name}" for name in _ALIGNX)),
        *("tombench", "mmtom", "ifbench", "dapo", "aime", "sotopia_hint"),
    }
)
# Names that launch scripts of the release use for the same.
_ALIASES = {
    "behaviorchain": "behavior_chain",
    "sim_math": "sim_arena_math",
    "sim_doc": "sim_arena_doc",
    **{name.replace("-", "_"): name for name in NOT_YET if name.startswith("humanual-")},
}


def canonical(name: str) -> str:
    """Returns the data source that a name of the release means."""
    return _ALIASES.get(name, name)


def unusable(name: str) -> str:
    """Returns why a data source cannot be used here, or "" for the ten of the suite."""
    if name in SOUL:
        return ""
    if canonical(name) in NOT_YET:
        return f"{name!r} is known but not yet a task of this suite; usable: {', '.join(SOUL)}"
    near = difflib.get_close_matches(name, SOUL, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name!r} is unknown; {hint}known: {', '.join(SOUL)}"


def released_files(task_name: str) -> Released:
    """Returns the released files of a task. Raises ConfigError for a task without any."""
    if task_name not in SOUL:
        raise ConfigError(f"task={task_name!r}: no released file; tasks that have some: {', '.join(SOUL)}")
    return SOUL[task_name]
