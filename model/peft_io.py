"""Adapters in and out in the format of PEFT: a folder of adapter_config.json and adapter_model.safetensors.

In: adapters of `model.lora`, layers stacked, A [in, r] and B [r, out]. Out: one contiguous tensor a layer, transposed,
named `base_model.model.<module of Hugging Face>.lora_A.weight`; and back. Kinds of adapter that compute something else
(DoRA, rank-stabilised scale, ranks that differ by layer, biases) are refused. The base is neither read nor written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_files import read_json
from model.hf_layout import tensor_plan
from model.lora import TARGETS, LoraConfig, adapter_shapes
from model.quantization import flat

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_FETCH_AGAIN = "the file is damaged or incomplete: fetch or export it again"
_OTHER_MODEL = "the adapter belongs to another model: name the base that it was trained on"
# Settings of PEFT under which an adapter computes something else, with the only values that are plain LoRA.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}


def save_adapter(folder: str | Path, config: ModelConfig, adapters: Any, lora: LoraConfig, base: str) -> None:
    """Writes a PEFT folder and reads it back; `base` is the name of the model that the adapters stand on.

    Raises WeightsError (adapters that do not fit the config, or other bytes on reading back), FileExistsError (the
    folder holds something else), OSError (the disk).
    """
    folder, leaves = Path(folder), flat(adapters)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    if shapes != adapter_shapes(config, lora):
        raise WeightsError(folder, None, f"adapters of {lora}", f"leaves {shapes}", "save them with their own settings")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ADAPTER_CONFIG).is_file()):
        raise FileExistsError(f"{folder}: exists and is no earlier adapter (no {ADAPTER_CONFIG}); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(np.asarray(leaves[path][layer]).T) for name, path, layer in _plan(config, lora)
    }
    partial = folder / f".{ADAPTER_WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    for name, tensor in _read(partial).items():
        if not np.array_equal(tensor.view(np.uint8), tensors[name].view(np.uint8)):
            raise WeightsError(
                partial, name, "what was written", "other bytes on reading back", "check disk and memory"
            )
    (folder / ADAPTER_CONFIG).write_text(json.dumps(_settings(lora, base), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / ADAPTER_WEIGHTS)


def load_adapter(folder: str | Path, config: ModelConfig, dtype: str = "float32") -> tuple[Any, LoraConfig]:
    """Returns (adapters as NumPy arrays of `dtype`, their settings) of a PEFT folder, for a base with `config`.

    Raises WeightsError for what is missing, damaged, of another model, or no plain LoRA.
    """
    folder = Path(folder)
    lora = _lora_config(folder / ADAPTER_CONFIG, dtype)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise WeightsError(file, None, "the adapter's weights", "no such file", "name a folder that PEFT has saved")
    tensors = _read(file)
    leaves = {path: np.empty(shape, jnp.dtype(dtype)) for path, shape in adapter_shapes(config, lora).items()}
    expected = set()
    for name, path, layer in _plan(config, lora):
        expected.add(name)
        shape = leaves[path].shape[:0:-1]
        if name not in tensors:
            raise WeightsError(file, name, f"shape {shape}", "no such tensor", _OTHER_MODEL)
        if tensors[name].shape != shape:
            raise WeightsError(file, name, f"shape {shape}", f"shape {tensors[name].shape}", _OTHER_MODEL)
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise WeightsError(file, name, "finite values", "others", _FETCH_AGAIN)
        leaves[path][layer] = tensors[name].T.astype(leaves[path].dtype)
    unexpected = sorted(set(tensors) - expected)
    if unexpected:
        raise WeightsError(file, unexpected[0], "only the adapters of its settings", "one more", _OTHER_MODEL)
    return unflatten_dict(leaves, sep="/"), lora


def _plan(config: ModelConfig, lora: LoraConfig) -> Iterator[tuple[str, str, int]]:
    """Yields (name in the file, path of the leaf, layer)."""
    shapes = adapter_shapes(config, lora)
    for name, slot in tensor_plan(config).items():
        parent, _, leaf = slot.path.rpartition("/")
        if leaf == "kernel" and slot.layer is not None and f"{parent}/lora_a" in shapes:
            module = name.removesuffix(".weight")
            for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                yield f"base_model.model.{module}.{theirs}.weight", f"{parent}/{ours}", slot.layer


def _settings(lora: LoraConfig, base: str) -> dict[str, Any]:
    """What PEFT reads; settings that are left out have the value of plain LoRA there."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": [TARGETS[name] for name in lora.target_modules],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _lora_config(file: Path, dtype: str) -> LoraConfig:
    advice = "name a folder that PEFT has saved"
    if not file.is_file():
        raise WeightsError(file, None, "the settings of an adapter", "no such file", advice)
    values = read_json(file)
    for name, plain in _PLAIN.items():
        if values.get(name, plain[0]) not in plain:
            raise WeightsError(file, None, f"{name} one of {plain}", repr(values[name]), "only plain LoRA can be read")
    named = values.get("target_modules")
    if not isinstance(named, list) or not set(named) <= set(TARGETS.values()):
        known = ", ".join(TARGETS.values())
        raise WeightsError(file, None, f"target_modules among {known}", repr(named), "list them by name")
    try:
        targets = tuple(name for name in TARGETS if TARGETS[name] in named)
        return LoraConfig(int(values["r"]), float(values["lora_alpha"]), targets, dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(file, None, "numbers r and lora_alpha that can work", str(error), _FETCH_AGAIN) from error


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(file, None, "a whole safetensors file", str(error), _FETCH_AGAIN) from error
