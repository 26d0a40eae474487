"""Command-line words → a config: YAML layers first, then one flag for every field.

In: the arguments after a verb. Out: the config, where each value came from, and the verb's own options. Flags accept
underscores and hyphens. Lists of records (tasks, stages) are one flag that takes YAML; which values are possible is
decided in the config classes themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ditto_jax.config_io import explain, flatten, load_config, to_plain
from ditto_jax.errors import ConfigError
from ditto_jax.strict import build, refuse_nan

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[ConfigT]):
    """A verb's settings; `options` are those that belong to the verb and not to the config."""

    config: ConfigT
    options: Mapping[str, Any]


def parse(
    cls: type[ConfigT],
    args: Sequence[str],
    verb: str,
    description: str,
    options: Sequence[tuple[str, Any, Any]] = (),
    default: ConfigT | None = None,
) -> Parsed[ConfigT]:
    """Returns the settings of one verb; `options` are (name, type, default), types annotated with their help.

    default: where the flags start from without --config, if not from the defaults of the class.

    Raises ConfigError or MissingInputError. Exits with 0 once --print_config or --help has been printed, with 2 for a
    value of the wrong type.
    """
    paths = _config_paths(args)
    loaded, origin = load_config(cls, paths) if paths else (default, {})
    with own_errors():
        flags, unknown = tyro.cli(
            _flags_class(cls, loaded, options),
            args=list(args),
            prog=f"ditto-jax {verb}",
            description=description,
            return_unknown_args=True,
            use_underscores=True,
            registry=_registry(),
        )
    if unknown:
        raise ConfigError(_unknown(unknown, flags))
    if flags.print_config:
        before = loaded if loaded is not None else load_config(cls, [])[0]
        print(explain(flags.settings, origin, before))
        sys.exit(0)
    refuse_nan(flags.settings)
    return Parsed(flags.settings, {name: getattr(flags, name) for name, _, _ in options})


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Around a call of tyro: a ConfigError that a config class raised comes out as itself, not in tyro's frame."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as exit_:
        error = _config_error_in(exit_)
        if error is not None:
            raise error from None
        sys.stderr.write(printed.getvalue())
        raise


def _config_error_in(error: BaseException | None) -> ConfigError | None:
    while error is not None and not isinstance(error, ConfigError):
        error = error.__context__
    return error


def _config_paths(args: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        return parser.parse_known_args(args)[0].config
    except argparse.ArgumentError:
        raise ConfigError("--config: name a YAML file, for example --config configs/quickstart.yaml") from None


_CONFIG = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(help="YAML file or name of a packaged preset; later ones override earlier ones", metavar="FILE"),
]
_PRINT_CONFIG = Annotated[
    tyro.conf.FlagCreatePairsOff[bool],
    tyro.conf.arg(help="print every setting and where it came from, and stop"),
]


def _flags_class(cls: type, loaded: Any, options: Sequence[tuple[str, Any, Any]]) -> Any:
    """Builds the dataclass whose fields are the flags; those of the config stand at the top level.

    Without a loaded config the defaults of its fields are shown, but not built: together they may be impossible.
    """
    settings: Any = dataclasses.MISSING if loaded is None else loaded
    fields = [("config", _CONFIG, ()), ("print_config", _PRINT_CONFIG, False), *options]
    fields = [*fields, ("settings", Annotated[cls, tyro.conf.arg(name="")], settings)]
    return dataclasses.make_dataclass(
        "Flags",
        [(name, type_, dataclasses.field(default=default)) for name, type_, default in fields],
        frozen=True,
        kw_only=True,
    )


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def records_as_yaml(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        """A tuple of dataclasses is one flag: spelled out, the fields of every task would bury all others."""
        arguments = typing.get_args(info.type)
        if info.type_origin is not tuple or len(arguments) != 2 or not dataclasses.is_dataclass(arguments[0]):
            return None
        record: Any = arguments[0]
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda words: _records(record, words[0]),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(v, record) for v in value),
            str_from_instance=lambda value: [f"<{len(value)} of {record.__name__}>"],
        )

    @registry.primitive_rule
    def settings_as_yaml(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        """A mapping without fixed keys is one flag."""
        if info.type_origin is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda words: _mapping(words[0]),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"<{len(value)} settings>"],
        )

    return registry


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError("give a mapping, for example '{seed: 3}'; a YAML file is easier to read")
    return value


def _records(record: Any, text: str) -> tuple[Any, ...]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ConfigError("give a list of mappings, for example '[{name: hitom}]'; a YAML file is easier to read")
    return tuple(build(record, value) for value in values)


def _unknown(unknown: Sequence[str], flags: Any) -> str:
    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag is None:
        return f"unexpected argument {unknown[0]!r}; settings are given as --name value"
    wanted = flag.lstrip("-").split("=")[0].replace("-", "_")
    known = _names(flags)
    # `--learning_rate` for `--optimizer.learning_rate`: the last part says what was meant.
    same_end = [name for name in known if name.rpartition(".")[2] == wanted.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(wanted, known, n=1)
    if not near:
        ends = {name.rpartition(".")[2]: name for name in known}
        near = [ends[end] for end in difflib.get_close_matches(wanted.rpartition(".")[2], ends, n=1)]
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?" if near else "see --help"
    return f"unknown flag {flag}; {hint}"


def _names(flags: Any) -> list[str]:
    own = [field.name for field in dataclasses.fields(flags) if field.name != "settings"]
    return own + list(flatten(to_plain(flags.settings)))
