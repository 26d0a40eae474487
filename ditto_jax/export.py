"""`ditto-jax export`: what a run has trained → a folder that other software loads.

In: the directory of a run. Out: its newest adapters in the format of PEFT; or a whole model in the layout of Hugging
Face, adapters merged, which is all there is of a run that trained all parameters; or the larger model whose text tower
was trained, with that tower put back. All with tokenizer, chat template, generation settings and a model card, and read
back and compared in their logits. The run is left as it is.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, RunDirectoryError
from ditto_jax.export_card import CARD, GENERATION, Exported, card, generation_config
from ditto_jax.policy import Policy, load_policy
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.text.tokenizer import SentencePieceTokenizer
from ditto_jax.text.tokenizer_conversion import write_huggingface_tokenizer
from ditto_jax.weights import Weights, on_base_of, trained_params, training_run
from model.errors import WeightsError
from model.families import FAMILIES
from model.hf_check import TOLERANCE, probe_logits
from model.hf_io import graft_params, save_params
from model.lora import LoraConfig, merge
from model.partition import make_mesh
from model.peft_io import ADAPTER_WEIGHTS, load_adapter, save_adapter
from model.quantization import dequantize_params


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """run: directory of a training run. output: folder to write. format: "peft" writes adapters, "hf" a whole model,
    "graft" the vision-language model that the run began with, its text tower trained, in the dtype that it had there;
    "auto" adapters where the run trained them, else a whole model. dtype: of the weights of "hf".
    """

    run: str = ""
    output: str = ""
    format: Literal["auto", "hf", "peft", "graft"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def __post_init__(self):
        for name in ("run", "output"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} is empty: give a folder, for example `export runs/quickstart --output exported`"
                )


def export_run(config: ExportConfig) -> tuple[Path, str]:
    """Returns the folder that was written, an earlier export there being replaced, and what reads it: a class of
    transformers, or PEFT.

    Raises ConfigError (no run; adapters of a run that trained none; a graft where no larger model was),
    MissingInputError (no checkpoint), RunDirectoryError (it cannot be written, or reads back otherwise), ModelError (a
    SentencePiece model whose ids other libraries would not give). Merging adapters into a base in 8 bits yields the
    weights that the run computed with, no longer in 8 bits.
    """
    run = training_run(config.run)
    if run is None:
        raise ConfigError(
            f"run={config.run}: no directory of a training run (no config.yaml); for example runs/quickstart"
        )
    if config.format == "peft" and not run.lora.rank:
        raise ConfigError(f"format=peft: {config.run} trained all parameters and has no adapters; use hf")
    mesh = make_mesh(1, -1, 1)
    policy = load_policy(
        run.model_name_or_path,
        mesh,
        param_dtype=run.param_dtype,
        compute_dtype=run.dtype,
        quantization=run.quantization,
    )
    family = FAMILIES[policy.config.family]
    if config.format == "graft" and family.text_field is None:
        raise ConfigError(
            f"format=graft: {run.model_name_or_path} is a {family.architecture}, which is no text tower of a larger "
            "model; use hf for a whole model"
        )
    weights = Weights(on_base_of(run, run), policy, mesh)
    trained, step = trained_params(config.run, weights, run)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _write(config, run, policy, weights, trained, step, Path(scratch))
    except (OSError, WeightsError) as error:
        raise RunDirectoryError(f"output={config.output}: {error}") from error


def _write(
    config: ExportConfig, run: RunConfig, policy: Policy, weights: Weights, trained: Any, step: int, scratch: Path
) -> tuple[Path, str]:
    folder, lora = Path(config.output), weights.lora
    apart = lora is not None and config.format in ("auto", "peft")
    about = Exported(folder.name, _contents(config, lora, apart), "peft" if apart else "transformers", step, apart)
    (scratch / CARD).write_text(card(RunDirectory(Path(config.run)), run, policy, about), encoding="utf-8")
    if config.format == "graft":
        reader = graft_params(folder, policy.folder, policy.config, _merged(weights, trained))
        shutil.copyfile(scratch / CARD, folder / CARD)
        return folder, reader
    (scratch / GENERATION).write_text(generation_config(policy, run), encoding="utf-8")
    if isinstance(policy.tokenizer, SentencePieceTokenizer):
        write_huggingface_tokenizer(policy.tokenizer, policy.chat_format, scratch)
    own = list(scratch.iterdir())
    extra = [*own, *_other_files(policy, apart, {path.name for path in own})]
    if lora is None or not apart:
        whole = _merged(weights, trained)
        return folder, save_params(folder, policy.config, whole, dtype=config.dtype, extra_files=extra)
    save_adapter(folder, policy.config, jax.device_get(trained), lora, run.model_name_or_path)
    _check_adapter(folder, policy, weights, trained, lora)
    for file in extra:
        shutil.copyfile(file, folder / file.name)
    return folder, "PEFT"


def _contents(config: ExportConfig, lora: LoraConfig | None, apart: bool) -> str:
    if apart:
        return "adapters in the format of PEFT"
    what = f"a whole model in {config.dtype}"
    if config.format == "graft":
        what = "the larger model, its text tower trained"
    return what if lora is None else f"{what}, adapters merged"


def _merged(weights: Weights, trained: Any) -> Any:
    if weights.lora is None:
        return trained
    return merge(jax.jit(dequantize_params)(weights.base), trained, weights.lora)


def _check_adapter(folder: Path, policy: Policy, weights: Weights, trained: Any, lora: LoraConfig) -> None:
    """Raises WeightsError unless the adapters that were written give the run's logits on its base."""
    found, _ = load_adapter(folder, policy.config, lora.dtype)
    expected = probe_logits(weights.whole(trained), policy.config)
    worst = float(np.abs(probe_logits(weights.whole(found), policy.config) - expected).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise WeightsError(
            folder / ADAPTER_WEIGHTS,
            None,
            "the run's logits on reading back",
            f"others, by up to {worst:.1e}",
            "do not use it; check disk and memory",
        )


def _other_files(policy: Policy, tokenizer_only: bool, own: Collection[str]) -> list[Path]:
    """The base's files that an export keeps: its tokenizer, and for a whole model whatever else is no weights. own:
    names of files that the export has written itself.
    """
    files = policy.tokenizer.files if tokenizer_only else policy.folder.iterdir()
    return [path for path in files if path.is_file() and path.name not in own and not _is_weights(path)]


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json")
