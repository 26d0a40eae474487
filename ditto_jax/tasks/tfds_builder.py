"""SOUL examples as a TensorFlow Datasets data set that needs no TensorFlow: array_record files, read as a data source.

In: a configuration (task, kind of source, sizes, seed); every built-in task has one for each source that it reads.
Out: splits of text records (task, id, gold, payload as JSON), and the examples decoded from them. tfds is a storage
format here, not the task API: prompts and scorers stay in the task. Importing this module imports tensorflow_datasets,
which is slow; nothing else in the package does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import built_in_names, get_task, task_type
from ditto_jax.tasks.released import part_of
from ditto_jax.types import Example

_FIELDS = ("task", "id", "gold", "payload")
_GENERATED_SIZES = {"train": 1024, "validation": 100, "test": 100}  # as many as SOUL trains and reports on
# Where each kind of source is looked for without a path: the variable, and the folder of a task below it.
_ROOTS = {"files": "SOUL_DATA_DIR", "parquet": "SOUL_PARQUET_DIR"}


@dataclasses.dataclass(eq=False, kw_only=True)
class SoulConfig(tfds.core.BuilderConfig):
    """What one prepared data set holds. Build it with `soul_config`, which names it after its contents."""

    task: str
    kind: str
    sizes: Mapping[str, int | None]
    seed: int = 0
    path: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def soul_config(
    task: str,
    kind: str,
    *,
    sizes: Mapping[str, int | None] | None = None,
    seed: int = 0,
    path: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> SoulConfig:
    """Returns the configuration of one data set; its name carries a digest of every setting that is not the default.

    task: name of a task. kind: a source that it has: "generated", "files" or "parquet". sizes: examples per split
    ("train", "validation", "test"); None means all of a file. path: file or folder for "files" and "parquet"; default
    `$SOUL_DATA_DIR/<task>` and `$SOUL_PARQUET_DIR/{train,eval}`. options: task options. Raises ConfigError for settings
    that cannot work.
    """
    sources = task_type(task).sources
    if kind not in sources:
        raise ConfigError(f"kind={kind!r}: task {task!r} has no such source; it has {', '.join(sources)}")
    defaults = _default_sizes(task, kind)
    sizes = dict(defaults if sizes is None else sizes)
    for split, size in sizes.items():
        if split not in _GENERATED_SIZES or (size is None and kind == "generated") or (size is not None and size < 1):
            wanted = "train, validation or test with a count of at least 1 (files: None for all)"
            raise ConfigError(f"sizes={{{split!r}: {size!r}}}: must be {wanted}")
    # The folder of a prepared data set is found by name alone, so a name must never stand for two contents.
    settings = {
        "seed": seed,
        "path": None if path is None else str(path),
        "options": dict(options or {}),
        "sizes": sizes,
    }
    usual = {"seed": 0, "path": None, "options": {}, "sizes": defaults}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return SoulConfig(
        name=f"{task}_{kind}" if settings == usual else f"{task}_{kind}_{digest}",
        description=f"{task} examples, {kind}",
        task=task,
        kind=kind,
        sizes=sizes,
        seed=seed,
        path=path,
        options=settings["options"],
    )


def _default_sizes(task: str, kind: str) -> dict[str, int | None]:
    splits = task_type(task).sources[kind]
    if kind == "generated":
        return {split: _GENERATED_SIZES[split] for split in splits}
    # The released files are two, one to train on and one to evaluate on; what else a split is called, it is the latter.
    return dict.fromkeys(split for split in splits if kind == "files" or split != "validation")


class DittoSoul(tfds.core.GeneratorBasedBuilder):
    """SOUL tasks as text records in file order. `DittoSoul(config="hitom_generated", data_dir=...)`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The ten tasks: generated, public files, released rows."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        soul_config(task, kind) for task in built_in_names() for kind in task_type(task).sources
    ]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Prompts of a task with their gold answers; payload is the task's row as JSON.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in _FIELDS}),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(task=config.task, kind=config.kind, seed=config.seed),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        config = self._config()
        task = get_task(config.task, config.options)
        # All splits are loaded before anything is written: a bad row leaves no half-written data set behind.
        loaded = {
            split: task.load(Source(config.kind, _path(config, split), split, size, config.seed))
            for split, size in config.sizes.items()
        }
        return {split: self._generate_examples(examples) for split, examples in loaded.items()}

    def _generate_examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, dict[str, str]]]:
        for i, example in enumerate(examples):
            yield i, to_record(example)

    def _config(self) -> SoulConfig:
        assert isinstance(self.builder_config, SoulConfig)
        return self.builder_config


def to_record(example: Example) -> dict[str, str]:
    """Returns the text record of one example. Raises DataError if JSON would change the payload."""
    try:
        payload = json.dumps(dict(example.payload), ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{example.id}: payload cannot be stored as JSON ({error})") from None
    if _frozen(json.loads(payload)) != _frozen(example.payload):
        raise DataError(f"{example.id}: payload changes when stored as JSON; keys must be text")
    return {"task": example.task, "id": example.id, "gold": example.gold, "payload": payload}


def examples_from_tfds(data_source: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Returns the examples stored in `builder.as_data_source(split)`, in order, bytes decoded.

    Sequences inside a payload come back as tuples, whatever they were.
    """
    examples = []
    for record in data_source:
        task, example_id, gold, payload = (_text(record[name]) for name in _FIELDS)
        examples.append(Example(task=task, id=example_id, payload=_frozen(json.loads(payload)), gold=gold))
    return examples


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _path(config: SoulConfig, split: str) -> Path | None:
    if config.kind == "generated" or config.path is not None:
        return None if config.path is None else Path(config.path)
    variable = _ROOTS[config.kind]
    root = os.environ.get(variable)
    folder = config.task if config.kind == "files" else part_of(split)
    if not root:
        raise MissingInputError(
            f"{config.name}: no data folder; set {variable} to the folder that holds {folder}/, "
            f"or pass soul_config(path=...)"
        )
    return Path(root) / folder
