"""Files and flags → config: YAML layers over defaults, flags over YAML, with a record of where each value came from.

Precedence: defaults < each --config in order < flags. A config that was resolved and saved can be fed back verbatim.
What the values mean and which are impossible is decided in the dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.strict import adapter, build

ConfigT = TypeVar("ConfigT")


def find_config(name: str) -> Path:
    """Returns a YAML path: as given, or (without a checkout) the packaged preset of the same file name."""
    path = Path(name)
    if path.is_file():
        return path
    packaged = importlib.resources.files("ditto_jax") / "configs" / path.name
    checkout = Path(__file__).resolve().parent.parent / "configs" / path.name
    for candidate in (Path(str(packaged)), checkout):
        if candidate.is_file():
            return candidate
    presets = sorted(p.name for p in checkout.parent.glob("*.yaml")) if checkout.parent.is_dir() else []
    raise MissingInputError(
        f"--config {name}: no such file or packaged preset; presets: {', '.join(presets) or 'none'}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; raises ConfigError with the place for anything else."""
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(content: bytes, where: str) -> dict[str, Any]:
    """Returns the mapping in YAML; raises ConfigError, which begins with `where`, for anything else."""
    try:
        loaded = yaml.safe_load(content.decode("utf-8"))
        json.dumps(loaded, default=str, skipkeys=True)  # raises if an alias makes a value a part of itself
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, a 13th month, a number of thousands of digits
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{where}: the top level must be a mapping of settings, found {type(loaded).__name__}")
    return loaded


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `over` on top; mappings merge key by key, lists and scalars are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def load_config(cls: type[ConfigT], paths: Sequence[str]) -> tuple[ConfigT, dict[str, str]]:
    """Returns (config, dotted key → file that set it) from YAML files, later ones over earlier ones."""
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in paths:
        path = find_config(name)
        layer = read_yaml(path)
        origin.update(dict.fromkeys(flatten(layer), str(path)))
        values = merge(values, layer)
    return build(cls, values), origin


def to_plain(config: Any) -> dict[str, Any]:
    """Returns the config as plain YAML-ready values."""
    return adapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """Returns the resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def explain(config: Any, file_origin: Mapping[str, str], before_flags: Any) -> str:
    """Returns one line per value with where it came from: default, a file, or the command line."""
    final, default = flatten(to_plain(config)), flatten(_defaults_of(type(config)))
    from_files = flatten(to_plain(before_flags))
    lines = []
    for key, value in final.items():
        if from_files.get(key, _ABSENT) != value:
            source = "command line"
        elif key in file_origin or any(key.startswith(f"{known}.") for known in file_origin):
            source = next(
                origin for known, origin in file_origin.items() if key == known or key.startswith(f"{known}.")
            )
        else:
            source = "default" if default.get(key, _ABSENT) == value else "derived"
        lines.append(f"{key}: {value!r}  # {source}")
    return "\n".join(lines)


_ABSENT = object()


def _defaults_of(cls: type) -> dict[str, Any]:
    """Defaults field by field: all defaults together may be a config that is refused (sft without stages)."""
    hints = typing.get_type_hints(cls)
    plain = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            continue
        plain[field.name] = pydantic.TypeAdapter(hints[field.name]).dump_python(value, mode="json")
    return plain
