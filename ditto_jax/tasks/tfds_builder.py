"""SOUL examples as a TensorFlow Datasets data set that needs no TensorFlow: array_record files, read as a data source.

In: a configuration (task, generated or files, sizes, seed). Out: splits of text records (task, id, gold, payload as
JSON), and the examples decoded from them. tfds is a storage format here, not the task API: prompts and scorers stay
in the task. Importing this module imports tensorflow_datasets, which is slow; nothing else in the package does.
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
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Example

_FIELDS = ("task", "id", "gold", "payload")
_GENERATED_SIZES = {"train": 1024, "validation": 100, "test": 100}  # as many as SOUL trains and reports on
_FILE_SPLITS = {"hitom": ("test",), "paratomi": ("train", "validation", "test")}  # Hi-ToM was released as a test set


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

    task: "hitom" or "paratomi". kind: "generated" or "files". sizes: examples per split ("train", "validation",
    "test"); None means all of a file. path: file or folder for "files"; default `$SOUL_DATA_DIR/<task>`. options: task
    options. Raises ConfigError for settings that cannot work.
    """
    if task not in _FILE_SPLITS:
        raise ConfigError(f"task={task!r}: has no tfds configuration; use one of {', '.join(_FILE_SPLITS)}")
    if kind not in ("generated", "files"):
        raise ConfigError(f"kind={kind!r}: must be 'generated' or 'files'")
    defaults = _GENERATED_SIZES if kind == "generated" else dict.fromkeys(_FILE_SPLITS[task])
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


class DittoSoul(tfds.core.GeneratorBasedBuilder):
    """SOUL tasks as text records in file order. `DittoSoul(config="hitom_generated", data_dir=...)`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Tasks hitom and paratomi, generated or from the public files."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        soul_config(task, kind) for task in _FILE_SPLITS for kind in ("generated", "files")
    ]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Theory-of-mind questions with their gold answers; payload is the task's row as JSON.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in _FIELDS}),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(task=config.task, kind=config.kind, seed=config.seed),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        config = self._config()
        task = get_task(config.task, config.options)
        path = _folder(config) if config.kind == "files" else None
        # All splits are loaded before anything is written: a bad row leaves no half-written data set behind.
        loaded = {
            split: task.load(Source(kind=config.kind, path=path, split=split, limit=size, seed=config.seed))
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


def _folder(config: SoulConfig) -> Path:
    if config.path is not None:
        return Path(config.path)
    root = os.environ.get("SOUL_DATA_DIR")
    if not root:
        raise MissingInputError(
            f"{config.name}: no data folder; set SOUL_DATA_DIR to the folder that holds {config.task}/, "
            f"pass soul_config(path=...), or use '{config.task}_generated'"
        )
    return Path(root) / config.task
