"""What a run trains and what it samples from: all parameters, or adapters on a frozen base.

update → **parameter value** → draft rollout, evaluation

In: the configuration and the loaded policy; or the directory of a run, whose newest checkpoint holds what was trained.
Out: trees on the mesh. The update itself is `train_step.py`; files are `checkpoint.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ditto_jax.config import RunConfig
from ditto_jax.config_io import read_yaml
from ditto_jax.errors import ConfigError, MissingInputError, ModelError
from ditto_jax.keys import derive
from ditto_jax.policy import Policy, load_policy
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.strict import build
from ditto_jax.update.state import copied, whole_params
from model.errors import WeightsError
from model.lora import LoraConfig, combine, init_adapters, merge
from model.partition import make_mesh, parameter_shardings
from model.peft_io import load_adapter


def require_trainable(config: RunConfig) -> None:
    """Returns nothing; raises ConfigError for a base in 8 bits or adapters to begin with, where lora.rank is 0."""
    if config.quantization != "none" and not config.lora.rank:
        raise ConfigError(
            f"quantization={config.quantization} with lora.rank=0: weights in 8 bits cannot be trained; set "
            "lora.rank to 32 to train adapters beside them, or quantization to none to train all parameters"
        )
    if config.adapter_name_or_path and not config.lora.rank:
        raise ConfigError(
            f"adapter_name_or_path={config.adapter_name_or_path} with lora.rank=0: all parameters would be trained "
            "and the adapters not used; set lora.rank to theirs, for example 32"
        )


class Weights:
    """The trained tree and the frozen one of a run. `lora` and `base` are None where all parameters are trained.

    Raises ConfigError or ModelError for adapters to begin with that do not fit the settings or the model.
    """

    def __init__(self, config: RunConfig, policy: Policy, mesh: Mesh):
        self.lora = config.lora if config.lora.rank else None
        self._start = None
        if config.adapter_name_or_path:
            self._start, self.lora = _read_adapters(config, policy)
        self.base = policy.params if self.lora else None
        self._policy = policy
        self._mesh = mesh
        self._seed = derive(config.seed, "lora") % 2**31
        self._merge = bool(self.lora) and config.sampler.merge_adapters
        self._merged: tuple[Any, Any] = (None, None)

    def initial(self) -> Any:
        """Returns what is trained, before the first update: all parameters, new adapters, or those given."""
        if self.lora is None:
            return self._policy.params
        return self._adapters(self.lora) if self._start is None else self._start

    def abstract(self) -> Any:
        """Returns shapes, dtypes and shardings of what is trained, to restore a checkpoint into."""
        if self.lora is None:
            return self._policy.params
        shapes = jax.eval_shape(functools.partial(self._adapters, self.lora))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            parameter_shardings(shapes, self._mesh),
        )

    def _adapters(self, lora: LoraConfig) -> Any:
        return init_adapters(jax.random.key(self._seed), self._policy.config, lora)

    def whole(self, trained: Any) -> Any:
        """Returns the one value that every function of `model` takes; the base in it is not a copy."""
        return whole_params(trained, self.base, self.lora)

    def untrained(self, trained: Any) -> Any:
        """Returns `whole(trained)` of the state before the first update, as a value that training leaves as it is.

        New adapters change nothing, so that this is the base itself; else it is a copy of what is trained.
        """
        if self.lora is not None and self._start is None:
            return self.base
        return self.whole(copied(trained))

    def for_sampling(self, trained: Any) -> Any:
        """Returns `whole(trained)` with adapters in the compute dtype, in which they multiply in any case.

        With `sampler.merge_adapters` returns a base into which the adapters were added. That copy is made once for each
        `trained` and kept until the next.
        """
        if self.lora is None:
            return trained
        if not self._merge:
            return combine(self.base, trained, self.lora, self._policy.config.compute_dtype)
        first = jax.tree.leaves(trained)[0]
        if self._merged[0] is not first:
            self._merged = (None, None)  # frees the old copy before the new one is made
            merged = _merge(self.base, trained, self.lora)
            self._merged = (first, jax.device_put(merged, parameter_shardings(merged, self._mesh)))
        return self._merged[1]


_merge = jax.jit(merge, static_argnums=2)


def _read_adapters(config: RunConfig, policy: Policy) -> tuple[Any, LoraConfig]:
    name, wanted = config.adapter_name_or_path, config.lora
    try:
        adapters, found = load_adapter(Path(name).expanduser(), policy.config, wanted.dtype)
    except WeightsError as error:
        raise ModelError(f"adapter_name_or_path={name}: {error}") from error
    if wanted.rank and dataclasses.replace(wanted, target_modules=found.target_modules) != found:
        raise ConfigError(
            f"lora.rank={wanted.rank}, lora.alpha={wanted.alpha}: the adapters of {name} have rank {found.rank} and "
            f"alpha {found.alpha}; set these"
        )
    if wanted.rank and set(wanted.target_modules) != set(found.target_modules):
        raise ConfigError(
            f"lora.target_modules={list(wanted.target_modules)}: those of {name} are {list(found.target_modules)}; set "
            "these"
        )
    return adapters, found


def training_run(name: str) -> RunConfig | None:
    """Returns the config of the training run at `name`, None if that is no run directory."""
    folder = Path(name).expanduser()
    saved = folder / "config.yaml"
    if not name or not saved.is_file() or (folder / "config.json").exists():
        return None
    return build(RunConfig, read_yaml(saved), where=str(saved))


def on_base_of(run: RunConfig, config: RunConfig) -> RunConfig:
    """Returns `config` with the base model, its quantization and the adapters' settings of a training run."""
    return dataclasses.replace(
        config,
        model_name_or_path=run.model_name_or_path,
        quantization=run.quantization,
        lora=run.lora,
        adapter_name_or_path="",
    )


def on_base_of_adapters(config: RunConfig) -> RunConfig:
    """Returns `config` with the base of a PEFT folder where model_name_or_path is one, else `config` as it is.

    Raises MissingInputError for a folder that does not say which model its adapters belong to.
    """
    folder = Path(config.model_name_or_path).expanduser()
    saved = folder / "adapter_config.json"
    if not config.model_name_or_path or not saved.is_file() or (folder / "config.json").exists():
        return config
    try:
        base = json.loads(saved.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not base or not isinstance(base, str):
        raise MissingInputError(
            f"model_name_or_path={config.model_name_or_path}: {saved} names no base model; set model_name_or_path to "
            "the base and adapter_name_or_path to this folder"
        )
    return dataclasses.replace(config, model_name_or_path=base, adapter_name_or_path=str(folder))


def trained_params(folder: str, weights: Weights, run: RunConfig) -> tuple[Any, int]:
    """Returns (what the run at `folder` trained, its step), from the newest checkpoint.

    Raises MissingInputError if there is none, RunDirectoryError if it is damaged.
    """
    directory = RunDirectory(Path(folder).expanduser())
    with contextlib.closing(Checkpoints(directory.checkpoints, run.save_total_limit)) as saved:
        if saved.latest_step() is None:
            raise MissingInputError(
                f"model_name_or_path={folder}: the run has no checkpoint yet; continue it, or name the model it "
                f"started from, {run.model_name_or_path}"
            )
        return saved.restore_params(weights.abstract())


def policy_for_sampling(name: str, dtype: str, *, fsdp: int = 1, tensor: int = 1) -> tuple[Policy, Mesh]:
    """Returns the policy of a model folder, a packaged policy or the newest checkpoint of a run, and its mesh.

    Raises ConfigError (too few devices), and what `load_policy` and `trained_params` raise.
    """
    wanted, devices = fsdp * tensor, jax.devices()
    if wanted > len(devices):
        raise ConfigError(f"fsdp={fsdp} x tensor={tensor} needs {wanted} devices, {len(devices)} are present")
    mesh = make_mesh(1, fsdp, tensor, devices[:wanted])
    run = training_run(name)
    policy = load_policy(
        name if run is None else run.model_name_or_path,
        mesh,
        param_dtype=dtype,
        compute_dtype=dtype,
        quantization="none" if run is None else run.quantization,
    )
    if run is not None:
        weights = Weights(on_base_of(run, run), policy, mesh)
        trained, _ = trained_params(name, weights, run)
        policy = dataclasses.replace(policy, params=weights.for_sampling(trained))
    return policy, mesh
