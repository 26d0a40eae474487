"""The parameter tree → a Hugging Face folder that transformers loads.

In: a `ModelConfig` and its parameters, on the host or on devices. Out: config.json and safetensors, whole or sharded,
which were read back and compared (`model.hf_check`) before they took the place of an older export. An interrupted save
damages nothing that was there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import save_file

from model.config import ModelConfig
from model.errors import WeightsError
from model.families import FAMILIES
from model.folder_swap import replacing, restore_previous
from model.hf_check import check_export
from model.hf_files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, check_dtype, opened
from model.hf_layout import Slot, param_shapes, tensor_plan


def save_params(
    folder: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    extra_files: Iterable[Path] = (),
) -> str:
    """Writes a Hugging Face folder (config.json, safetensors, copies of `extra_files`) and checks it against `params`.

    Returns the name of the transformers class that reads it: that of the family, for the text tower of a larger model
    the text class (`model.hf_graft` writes the larger model). Tensors are stored as `dtype` (default:
    `config.param_dtype`), in several files with an index once they exceed `shard_bytes`. Before the new folder takes
    the place of an older one it is loaded again and its logits are compared. Replacing an older export keeps its other
    files (tokenizer, card). Raises WeightsError (the tree does not fit the config; `folder` is something else than an
    export; what was written reads back differently) or OSError (the disk).
    """
    folder = Path(folder).resolve()
    dtype = check_dtype(dtype or config.param_dtype)
    leaves = check_tree(folder, config, params)
    written = dataclasses.replace(config, family=FAMILIES[config.family].exports_as, param_dtype=dtype)
    restore_previous(folder)
    check_target(folder)
    with replacing(folder) as partial:
        _keep_other_files(folder, partial)
        for file in extra_files:
            shutil.copy2(file, partial / Path(file).name)
        (partial / CONFIG_FILE).write_text(json.dumps(written.to_hf(), indent=2) + "\n")
        _write_weights(partial, written, leaves, dtype, shard_bytes)
        check_export(partial, written, params, dtype)
    return FAMILIES[written.family].architecture


def check_tree(folder: Path, config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves by path after comparing names and shapes with the config; raises WeightsError."""
    leaves = cast(dict[str, Any], flatten_dict(params, sep="/"))
    shapes = param_shapes(config)
    advice = "save the parameters with the config that they were made with"
    for path in [*shapes, *leaves]:
        found = f"shape {tuple(leaves[path].shape)}" if path in leaves else "no such leaf"
        expected = f"shape {shapes[path]}" if path in shapes else "no such leaf"
        if found != expected:
            raise WeightsError(folder, path, expected, found, advice)
    return leaves


def check_target(folder: Path) -> None:
    """Raises WeightsError if something lies at `folder` that is no earlier export."""
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file() and any(folder.iterdir()):
        raise WeightsError(
            folder, None, "a new folder or an earlier export", "a folder without config.json", "name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise WeightsError(folder, None, "a folder", "a file", "name another folder")


def tensor_of(file: Path, name: str, leaves: Mapping[str, Any], slot: Slot, dtype: str) -> np.ndarray:
    """Returns a tensor as it stands in a file: contiguous, in `dtype`; raises WeightsError if it is not finite."""
    leaf = leaves[slot.path]
    value = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        # safetensors 0.8 writes the raw buffer of a transposed view under the transposed shape, without an error.
        tensor = np.ascontiguousarray(value.T if slot.transposed else value, dtype=jnp.dtype(dtype))
    if not np.isfinite(tensor).all():
        raise WeightsError(file, name, f"finite values that {dtype} can hold", "others", "the older export is kept")
    return tensor


def write_file(file: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes one safetensors file, readable like any new file, and compares its bytes on reading back."""
    file.touch()
    mode = file.stat().st_mode  # safetensors makes its files readable by their owner alone
    try:
        save_file(dict(tensors), file, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file}: cannot write the weights: {error}") from error
    file.chmod(mode)
    with opened(file) as written:
        for name, tensor in tensors.items():
            if not np.array_equal(written.get_tensor(name).view(np.uint8), tensor.view(np.uint8)):
                raise WeightsError(
                    file, name, "what was written", "other bytes on reading back", "check disk and memory"
                )


def _write_weights(folder: Path, config: ModelConfig, leaves: Mapping[str, Any], dtype: str, shard_bytes: int) -> None:
    plan = tensor_plan(config)
    shards = list(_shards(plan, jnp.dtype(dtype).itemsize, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: tensor_of(folder / file, name, leaves, plan[name], dtype) for name in names})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(int(np.prod(slot.file_shape)) for slot in plan.values()) * jnp.dtype(dtype).itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _shards(plan: Mapping[str, Slot], item_bytes: int, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, slot in plan.items():
        tensor_bytes = int(np.prod(slot.file_shape)) * item_bytes
        if names and size + tensor_bytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_bytes
    yield names


def _keep_other_files(folder: Path, partial: Path) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name in (CONFIG_FILE, INDEX_FILE) or path.suffix == ".safetensors":
            continue
        if path.is_dir():
            shutil.copytree(path, partial / path.name)
        else:
            shutil.copy2(path, partial / path.name)
