"""The files of a Hugging Face folder: which there are, what their headers say, and blocks of their tensors.

In: a folder with config.json and safetensors, whole or sharded, in float32, bfloat16 or float16. Out: open tensors by
name, and checked blocks of them as NumPy arrays. Damage is named, with the file and the tensor. With `model.hf_save`
and `model.hf_graft`, which write, the only rooms that touch safetensors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from model.config import DTYPES, ModelConfig
from model.errors import WeightsError
from model.families import FAMILIES
from model.folder_swap import previous_of
from model.hf_layout import HEAD_TENSOR, Slot

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

FILE_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FETCH_AGAIN = "the file is damaged or incomplete: fetch or export it again"
_MIXED_UP = "config.json and the weights belong to different models: fetch both again"
_NOT_A_PARAMETER = (".rotary_emb.inv_freq",)  # a buffer that old exports carry along


class StoredTensor(NamedTuple):
    """A tensor of an open file; `values` is read by slicing, and only what is sliced is read."""

    file: Path
    name: str
    values: Any


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, StoredTensor]]:
    """Yields every tensor of a model folder by name. Raises WeightsError (missing, damaged or repeated)."""
    found: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as stack:
        for file in weight_files(folder):
            tensors = stack.enter_context(opened(file))
            for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                if name in found:
                    where = found[name].file.name
                    raise WeightsError(file, name, "each tensor once", f"it also in {where}", _FETCH_AGAIN)
                found[name] = StoredTensor(file, name, tensors.get_slice(name))
        yield found


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder; transformers prefers the single file too."""
    if not folder.is_dir():
        raise no_folder(folder)
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        other = sorted(path.name for path in folder.glob("*.bin")) or "neither"
        raise WeightsError(
            folder,
            None,
            f"{WEIGHTS_FILE} or {INDEX_FILE}",
            str(other),
            "only safetensors are read: export the model as such",
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(index, None, "a 'weight_map' of tensor names to files", repr(weight_map), _FETCH_AGAIN)
    files = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name:
            raise WeightsError(index, None, "file names without a folder", repr(name), _FETCH_AGAIN)
        if not (folder / name).is_file():
            raise WeightsError(folder / name, None, f"the shard that {INDEX_FILE} names", "no such file", _FETCH_AGAIN)
        files.append(folder / name)
    return files


def check_headers(
    folder: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor], plan: Mapping[str, Slot]
) -> None:
    """Raises WeightsError unless the files hold exactly the planned tensors, in the planned shapes.

    What belongs to another part of the model (`Family.other_tensors`) is passed over.
    """
    family = FAMILIES[config.family]
    for name, slot in plan.items():
        if name in tensors:
            check_header(tensors[name], slot)
    missing = [name for name in plan if name not in tensors]
    if missing:
        files = {tensor.file for tensor in tensors.values()}
        where = files.pop() if len(files) == 1 else folder
        raise WeightsError(
            where, missing[0], f"{len(plan)} tensors", f"{len(missing)} of them missing, this the first", _FETCH_AGAIN
        )
    for name, tensor in tensors.items():
        is_tied_copy = name == HEAD_TENSOR  # some exports of tied models repeat the embedding
        is_other_part = family.other_tensors is not None and name.startswith(family.other_tensors)
        if name not in plan and not is_tied_copy and not is_other_part and not name.endswith(_NOT_A_PARAMETER):
            expected = f"only the tensors of config.json's {family.architecture}"
            raise WeightsError(tensor.file, name, expected, "one it does not have", _MIXED_UP)


def check_header(tensor: StoredTensor, slot: Slot) -> None:
    """Raises WeightsError unless a stored tensor has the shape of its slot and a dtype that can be read."""
    shape, kind = tuple(tensor.values.get_shape()), tensor.values.get_dtype()
    if shape != slot.file_shape:
        raise WeightsError(tensor.file, tensor.name, f"shape {slot.file_shape}", f"shape {shape}", _MIXED_UP)
    if kind not in FILE_DTYPES:
        raise WeightsError(
            tensor.file,
            tensor.name,
            f"one of {', '.join(FILE_DTYPES)}",
            str(kind),
            f"export the weights as one of {', '.join(DTYPES)}",
        )


def read_block(tensor: StoredTensor, slot: Slot, index: tuple[slice, ...], dtype: str) -> np.ndarray:
    """Returns the block `index` of a tensor as `dtype`, laid out like its leaf (`index` counts the leaf's axes).

    Reads no other bytes of the file. Raises WeightsError for values that are not finite or that `dtype` cannot hold.
    """
    try:
        stored = tensor.values[index[::-1] if slot.transposed else index]
    except SafetensorError as error:
        raise WeightsError(tensor.file, tensor.name, "a readable tensor", str(error), _FETCH_AGAIN) from error
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        value = stored.astype(jnp.dtype(dtype), copy=False)
    wrong = value.size - int(np.count_nonzero(np.isfinite(value)))
    if wrong:
        expected, found, advice = "finite values", f"{wrong} NaN or infinite of {value.size}", _FETCH_AGAIN
        if np.isfinite(stored).all():
            expected, found, advice = f"values that {dtype} can hold", f"{wrong} too large", "load it as float32"
        raise WeightsError(tensor.file, tensor.name, expected, found, advice)
    return value.T if slot.transposed else value


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Yields an open safetensors file; a damaged header becomes a WeightsError that names the file."""
    try:
        handle = safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise WeightsError(file, None, "a whole safetensors file", str(error), _FETCH_AGAIN) from error
    with handle as tensors:
        yield tensors


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object of a JSON file of a model folder."""
    if not file.is_file():
        raise WeightsError(
            file, None, "this file in the model folder", "no such file", "name a Hugging Face model folder"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(file, None, "JSON", str(error), _FETCH_AGAIN) from error
    if not isinstance(values, dict):
        raise WeightsError(file, None, "a JSON object", type(values).__name__, _FETCH_AGAIN)
    return values


def no_folder(folder: Path) -> WeightsError:
    """Returns the error for a model folder that is not there."""
    advice = "give the path of a Hugging Face model folder (config.json and *.safetensors)"
    if previous_of(folder).is_dir():
        advice = f"an interrupted save left the earlier export in {previous_of(folder)}: rename it back"
    return WeightsError(folder, None, "a model folder", "a file" if folder.exists() else "nothing", advice)


def check_dtype(dtype: str) -> str:
    """Returns a dtype that parameters can have, or raises ValueError with those that they can."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    return dtype
