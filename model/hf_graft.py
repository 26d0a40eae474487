"""A trained text tower → back into the folder of the larger model that it came from.

In: the folder of a vision-language model (Qwen3-VL) and the parameters of its text model. Out: the same folder with the
text model's tensors replaced; all other tensors, the index, the config and the processor files are copied as they are.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.errors import WeightsError
from model.families import FAMILIES
from model.folder_swap import replacing, restore_previous
from model.hf_check import check_export
from model.hf_files import FILE_DTYPES, check_headers, open_tensors, opened, weight_files
from model.hf_layout import HEAD_TENSOR, tensor_plan
from model.hf_load import load_config
from model.hf_save import check_target, check_tree, tensor_of, write_file

# Fields that change no logit, or that the larger model spells differently.
_FREE = ("family", "param_dtype", "compute_dtype", "bos_token_id", "eos_token_ids", "max_position_embeddings")


def graft_params(folder: str | Path, source: str | Path, config: ModelConfig, params: Mapping[str, Any]) -> str:
    """Writes `source`, a larger model, to `folder` with its text model replaced; returns its transformers class.

    `params` are stored in the dtype that the text model of `source` has. One file of `source` is in memory at a time.
    As in `save_params`, the text model is loaded again and its logits are compared before `folder` is replaced, which
    may be `source` itself. Raises WeightsError (`source` holds no larger model, or another one; the tree does not fit;
    what was written reads back differently) or OSError (the disk).
    """
    source, folder = Path(source).resolve(), Path(folder).resolve()
    target = load_config(source, param_dtype=config.param_dtype, compute_dtype=config.compute_dtype)
    _check_same_model(source, target, config)
    leaves = check_tree(folder, config, params)
    plan = tensor_plan(target)
    with open_tensors(source) as tensors:
        check_headers(source, target, tensors, plan)
        if target.tie_embeddings and HEAD_TENSOR in tensors:  # a copy of the embedding
            plan[HEAD_TENSOR] = plan[f"{FAMILIES[target.family].tensors}embed_tokens.weight"]
        dtype = FILE_DTYPES[tensors[next(iter(plan))].values.get_dtype()]
    restore_previous(folder)
    check_target(folder)
    weights = weight_files(source)
    with replacing(folder) as partial:
        shutil.copytree(
            source, partial, ignore=lambda _, names: {f.name for f in weights} & set(names), dirs_exist_ok=True
        )
        for file in weights:
            stored, metadata = _read_file(file)
            for name in stored.keys() & plan.keys():
                stored[name] = tensor_of(partial / file.name, name, leaves, plan[name], dtype)
            write_file(partial / file.name, stored, metadata)
        check_export(partial, target, params, dtype)
    return FAMILIES[target.family].architecture


def _check_same_model(source: Path, target: ModelConfig, config: ModelConfig) -> None:
    family = FAMILIES[target.family]
    if family.exports_as == target.family:
        whole = [other.architecture for other in FAMILIES.values() if other.text_field is not None]
        raise WeightsError(
            source, None, f"a {' or '.join(whole)}", f"a {family.architecture}", "write it with save_params"
        )
    for field in dataclasses.fields(ModelConfig):
        theirs, ours = getattr(target, field.name), getattr(config, field.name)
        if field.name not in _FREE and theirs != ours:
            raise WeightsError(
                source, None, f"{field.name}={ours!r} in its text model", repr(theirs), "name the folder it came from"
            )


def _read_file(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str] | None]:
    with opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, tensors.metadata()  # noqa: SIM118
