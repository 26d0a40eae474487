"""Weights in and out: a Hugging Face folder (config.json + safetensors) ↔ the parameter tree.

In: a folder, whole or sharded, in float32, bfloat16 or float16. Out: a nested dictionary of NumPy arrays (names and
shapes: `model.hf_layout`), and back. Nothing is downloaded, unpickled or silently skipped, and an interrupted save
damages nothing that was there. The only file of the project that touches safetensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from model.config import DTYPES, ModelConfig
from model.errors import WeightsError
from model.hf_layout import Slot, param_shapes, tensor_plan

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

_FILE_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FETCH_AGAIN = "the file is damaged or incomplete: fetch or export it again"
_MIXED_UP = "config.json and the weights belong to different models: fetch both again"
_NOT_A_PARAMETER = (".rotary_emb.inv_freq",)  # a buffer that old exports carry along


def load_config(folder: str | Path, *, param_dtype: str = "float32", compute_dtype: str = "float32") -> ModelConfig:
    """Returns the config of a model folder, with the stop tokens of its generation_config.json added.

    Raises WeightsError (no folder, no or unreadable config.json) or UnsupportedModel (a model this package cannot run).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_folder(folder)
    config = ModelConfig.from_hf(_read_json(folder / CONFIG_FILE), param_dtype=param_dtype, compute_dtype=compute_dtype)
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    stops = _read_json(generation).get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    added = tuple(stop for stop in stops if stop not in config.eos_token_ids)
    return dataclasses.replace(config, eos_token_ids=config.eos_token_ids + added)


def load_params(folder: str | Path, config: ModelConfig, dtype: str | None = None) -> dict[str, Any]:
    """Returns the parameter tree of a model folder as NumPy arrays of `dtype` (default: `config.param_dtype`).

    Names, shapes and dtypes of all files are checked before any tensor is read; then one tensor at a time goes into
    preallocated stacked arrays. Raises WeightsError for whatever is missing, unexpected, damaged or not finite.
    """
    folder = Path(folder)
    dtype = _check_dtype(dtype or config.param_dtype)
    plan = tensor_plan(config)
    files = _weight_files(folder)
    _check_headers(folder, files, plan)

    leaves = {path: np.empty(shape, jnp.dtype(dtype)) for path, shape in param_shapes(config).items()}
    for file in files:
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                if name in plan:
                    slot = plan[name]
                    leaf = leaves[slot.path] if slot.layer is None else leaves[slot.path][slot.layer]
                    leaf[...] = _read_tensor(file, tensors, name, slot, dtype)
    if config.tie_embeddings:
        _check_tied_copies(files, leaves["embed/embedding"], dtype)
    return unflatten_dict(leaves, sep="/")


def save_params(
    folder: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    extra_files: Iterable[Path] = (),
) -> None:
    """Writes a Hugging Face folder (config.json, safetensors, copies of `extra_files`) and compares it with `params`.

    Tensors are stored as `dtype` (default: `config.param_dtype`), in several files with an index once they exceed
    `shard_bytes`. Everything is written beside `folder` and renamed at the end: an interrupted save leaves an older
    export as it was. Replacing an older export keeps its other files (tokenizer, card). Raises WeightsError (the tree
    does not fit the config; `folder` is something else than an export; what was written reads back differently) or
    OSError (the disk).
    """
    folder = Path(folder).resolve()
    dtype = _check_dtype(dtype or config.param_dtype)
    leaves = _check_tree(folder, config, params)
    previous = _previous(folder)
    if previous.exists() and not folder.exists():
        os.replace(previous, folder)
    _check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _keep_other_files(folder, partial)
        for file in extra_files:
            shutil.copy2(file, partial / Path(file).name)
        (partial / CONFIG_FILE).write_text(
            json.dumps(dataclasses.replace(config, param_dtype=dtype).to_hf(), indent=2) + "\n"
        )
        _write_weights(partial, config, leaves, dtype, shard_bytes)
        _swap(partial, folder, previous)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Reading


def _weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder; transformers prefers the single file too."""
    if not folder.is_dir():
        raise _no_folder(folder)
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
    weight_map = _read_json(index).get("weight_map")
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


def _check_headers(folder: Path, files: list[Path], plan: Mapping[str, Slot]) -> None:
    """Raises WeightsError unless the files hold exactly the planned tensors, each once, in the planned shape."""
    found: dict[str, Path] = {}
    for file in files:
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name in found:
                    raise WeightsError(file, name, "each tensor once", f"it also in {found[name].name}", _FETCH_AGAIN)
                found[name] = file
                if name in plan:
                    _check_header(file, name, tensors.get_slice(name), plan[name])
    missing = [name for name in plan if name not in found]
    if missing:
        where = files[0] if len(files) == 1 else folder
        raise WeightsError(
            where, missing[0], f"{len(plan)} tensors", f"{len(missing)} of them missing, this the first", _FETCH_AGAIN
        )
    for name, file in found.items():
        is_tied_copy = name == "lm_head.weight"  # some exports of tied models repeat the embedding
        if name not in plan and not is_tied_copy and not name.endswith(_NOT_A_PARAMETER):
            raise WeightsError(file, name, "only the tensors of config.json's Llama", "one it does not have", _MIXED_UP)


def _check_header(file: Path, name: str, header: Any, slot: Slot) -> None:
    shape, kind = tuple(header.get_shape()), header.get_dtype()
    if shape != slot.file_shape:
        raise WeightsError(file, name, f"shape {slot.file_shape}", f"shape {shape}", _MIXED_UP)
    if kind not in _FILE_DTYPES:
        raise WeightsError(
            file,
            name,
            f"one of {', '.join(_FILE_DTYPES)}",
            str(kind),
            f"export the weights as one of {', '.join(DTYPES)}",
        )


def _read_tensor(file: Path, tensors: Any, name: str, slot: Slot, dtype: str) -> np.ndarray:
    try:
        stored = tensors.get_tensor(name)
    except SafetensorError as error:
        raise WeightsError(file, name, "a readable tensor", str(error), _FETCH_AGAIN) from error
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        value = stored.astype(jnp.dtype(dtype), copy=False)
    wrong = value.size - int(np.count_nonzero(np.isfinite(value)))
    if wrong:
        if np.isfinite(stored).all():
            raise WeightsError(file, name, f"values that {dtype} can hold", f"{wrong} too large", "load it as float32")
        raise WeightsError(file, name, "finite values", f"{wrong} NaN or infinite of {value.size}", _FETCH_AGAIN)
    return value.T if slot.transposed else value


def _check_tied_copies(files: list[Path], embedding: np.ndarray, dtype: str) -> None:
    """Raises WeightsError if a tied model comes with a head that is not its embedding."""
    name = "lm_head.weight"
    slot = Slot("embed/embedding", None, False, embedding.shape)
    for file in files:
        with _opened(file) as tensors:
            if name not in tensors.keys():  # noqa: SIM118
                continue
            _check_header(file, name, tensors.get_slice(name), slot)
            if not np.array_equal(_read_tensor(file, tensors, name, slot, dtype), embedding):
                raise WeightsError(
                    file,
                    name,
                    "a copy of the embedding, because tie_word_embeddings is true",
                    "other values",
                    "set tie_word_embeddings to false in config.json if the head was trained apart",
                )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Yields an open safetensors file; a damaged header becomes a WeightsError that names the file."""
    try:
        handle = safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise WeightsError(file, None, "a whole safetensors file", str(error), _FETCH_AGAIN) from error
    with handle as tensors:
        yield tensors


def _read_json(file: Path) -> dict[str, Any]:
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


def _no_folder(folder: Path) -> WeightsError:
    advice = "give the path of a Hugging Face model folder (config.json and *.safetensors)"
    if _previous(folder).is_dir():
        advice = f"an interrupted save left the earlier export in {_previous(folder)}: rename it back"
    return WeightsError(folder, None, "a model folder", "a file" if folder.exists() else "nothing", advice)


# Writing


def _write_weights(folder: Path, config: ModelConfig, leaves: Mapping[str, Any], dtype: str, shard_bytes: int) -> None:
    plan = tensor_plan(config)
    shards = list(_shards(plan, jnp.dtype(dtype).itemsize, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _tensor_of(folder / file, name, leaves, plan[name], dtype) for name in names}
        _write_file(folder / file, tensors)
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


def _tensor_of(file: Path, name: str, leaves: Mapping[str, Any], slot: Slot, dtype: str) -> np.ndarray:
    leaf = leaves[slot.path]
    value = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        # safetensors 0.8 writes the raw buffer of a transposed view under the transposed shape, without an error.
        tensor = np.ascontiguousarray(value.T if slot.transposed else value, dtype=jnp.dtype(dtype))
    if not np.isfinite(tensor).all():
        raise WeightsError(file, name, f"finite values that {dtype} can hold", "others", "the older export is kept")
    return tensor


def _write_file(file: Path, tensors: dict[str, np.ndarray]) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file}: cannot write the weights: {error}") from error
    with _opened(file) as written:
        for name, tensor in tensors.items():
            if not np.array_equal(written.get_tensor(name).view(np.uint8), tensor.view(np.uint8)):
                raise WeightsError(
                    file, name, "what was written", "other bytes on reading back", "check disk and memory"
                )


def _check_tree(folder: Path, config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves by path after comparing names and shapes with the config."""
    leaves = cast(dict[str, Any], flatten_dict(params, sep="/"))
    shapes = param_shapes(config)
    advice = "save the parameters with the config that they were made with"
    for path in [*shapes, *leaves]:
        found = f"shape {tuple(leaves[path].shape)}" if path in leaves else "no such leaf"
        expected = f"shape {shapes[path]}" if path in shapes else "no such leaf"
        if found != expected:
            raise WeightsError(folder, path, expected, found, advice)
    return leaves


def _check_target(folder: Path) -> None:
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file() and any(folder.iterdir()):
        raise WeightsError(
            folder, None, "a new folder or an earlier export", "a folder without config.json", "name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise WeightsError(folder, None, "a folder", "a file", "name another folder")


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


def _swap(partial: Path, folder: Path, previous: Path) -> None:
    mode = (partial / CONFIG_FILE).stat().st_mode  # safetensors makes its files readable by their owner alone
    for path in partial.iterdir():
        if path.suffix == ".safetensors":
            path.chmod(mode)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)
    try:
        os.replace(partial, folder)
    except OSError:
        if previous.exists():
            os.replace(previous, folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    """Makes bytes durable before the rename, so that a power cut cannot leave a renamed but empty export."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _check_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    return dtype
