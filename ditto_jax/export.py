"""`ditto-jax export`: what a run has trained → a folder that other software loads.

In: the directory of a run. Out: its newest adapters in the format of PEFT; or a whole model in the layout of Hugging
Face with tokenizer files, adapters merged, which is all there is of a run that trained all parameters; or the larger
model whose text tower was trained, with that tower put back. The run is left as it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from ditto_jax.errors import ConfigError, RunDirectoryError
from ditto_jax.policy import Policy, load_policy
from ditto_jax.weights import Weights, on_base_of, trained_params, training_run
from model.errors import WeightsError
from model.families import FAMILIES
from model.hf_io import graft_params, save_params
from model.lora import merge
from model.partition import make_mesh
from model.peft_io import save_adapter
from model.quantization import dequantize_params


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """run: directory of a training run. output: folder to write. merged: a whole model instead of adapters. graft: the
    vision-language model that the run began with, with its text tower trained, in the dtype that it had there.

    dtype: of a whole model's weights.
    """

    run: str = ""
    output: str = ""
    merged: bool = False
    graft: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def __post_init__(self):
        for name in ("run", "output"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} is empty: give a folder, for example --run runs/quickstart --output exported"
                )


def export_run(config: ExportConfig) -> tuple[Path, str]:
    """Returns the folder that was written, an earlier export there being replaced, and what reads it: a class of
    transformers, or PEFT.

    Raises ConfigError (no run; a graft where no larger model was), MissingInputError (no checkpoint),
    RunDirectoryError (it cannot be written). Merging adapters into a base in 8 bits yields the weights that the run
    computed with, no longer in 8 bits.
    """
    run = training_run(config.run)
    if run is None:
        raise ConfigError(
            f"run={config.run}: no directory of a training run (no config.yaml); for example runs/quickstart"
        )
    mesh = make_mesh(1, -1, 1)
    policy = load_policy(
        run.model_name_or_path,
        mesh,
        param_dtype=run.param_dtype,
        compute_dtype=run.dtype,
        quantization=run.quantization,
    )
    family = FAMILIES[policy.config.family]
    if config.graft and family.text_field is None:
        raise ConfigError(
            f"graft: {run.model_name_or_path} is a {family.architecture}, which is no text tower of a larger "
            "model; leave --graft out, or give --merged for a whole model"
        )
    weights = Weights(on_base_of(run, run), policy, mesh)
    trained, _ = trained_params(config.run, weights, run)
    folder = Path(config.output)
    try:
        if weights.lora is not None and not (config.merged or config.graft):
            save_adapter(folder, policy.config, jax.device_get(trained), weights.lora, run.model_name_or_path)
            return folder, "PEFT"
        return folder, _save(config, policy, _merged(weights, trained))
    except (OSError, WeightsError) as error:
        raise RunDirectoryError(f"output={config.output}: {error}") from error


def _merged(weights: Weights, trained: Any) -> Any:
    if weights.lora is None:
        return trained
    return merge(jax.jit(dequantize_params)(weights.base), trained, weights.lora)


def _save(config: ExportConfig, policy: Policy, params: Any) -> str:
    """Writes a whole model; returns its class."""
    if config.graft:
        return graft_params(config.output, policy.folder, policy.config, params)
    files = [path for path in policy.folder.iterdir() if path.is_file() and not _is_weights(path)]
    return save_params(config.output, policy.config, params, dtype=config.dtype, extra_files=files)


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json")
