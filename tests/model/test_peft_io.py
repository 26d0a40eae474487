"""Adapter folders: what is refused, with the file and the field, and that a failed save leaves the older one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.errors import WeightsError
from model.lora import LoraConfig, init_adapters
from model.peft_io import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from tests.tiny_policy import CONFIG

LORA = LoraConfig(rank=3, alpha=5.0, target_modules=("k", "down"))
A = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    save_adapter(tmp_path, CONFIG, init_adapters(jax.random.key(0), CONFIG, LORA), LORA, "some/base")
    return tmp_path


def test_tensors_are_contiguous_with_the_shapes_of_torch(folder):
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    assert len(tensors) == CONFIG.num_layers * 2 * 2
    assert tensors[A].shape == (3, CONFIG.intermediate_size)
    assert tensors[A.replace("lora_A", "lora_B")].shape == (CONFIG.hidden_size, 3)
    ours = init_adapters(jax.random.key(0), CONFIG, LORA)["layers"]["mlp"]["down"]["lora_a"][1]
    np.testing.assert_array_equal(tensors[A], np.asarray(ours).T)


def test_settings_say_what_peft_needs(folder):
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert settings["base_model_name_or_path"] == "some/base"
    assert (settings["r"], settings["lora_alpha"]) == (3, 5)
    assert settings["target_modules"] == ["k_proj", "down_proj"]


def change_settings(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"use_dora": True}, "use_dora one of"),
        ({"use_rslora": True}, "use_rslora one of"),
        ({"bias": "all"}, "bias one of"),
        ({"peft_type": "LOHA"}, "peft_type one of"),
        ({"rank_pattern": {"k_proj": 8}}, "rank_pattern one of"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save one of"),
        ({"target_modules": ["lm_head"]}, "target_modules among q_proj"),
        ({"target_modules": ".*proj"}, "target_modules among q_proj"),
        ({"lora_alpha": None}, "numbers r and lora_alpha"),
        ({"r": "many"}, "numbers r and lora_alpha"),
    ],
)
def test_adapters_that_compute_something_else_are_refused(folder, changes, text):
    change_settings(folder, **changes)
    with pytest.raises(WeightsError, match=text):
        load_adapter(folder, CONFIG)


def change_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(folder / ADAPTER_WEIGHTS), **changes}
    save_file({name: leaf for name, leaf in tensors.items() if leaf is not None}, folder / ADAPTER_WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({A: None}, "found no such tensor; the adapter belongs to another model"),
        ({A: np.zeros((3, 8), np.float32)}, r"expected shape \(3, 64\), found shape \(3, 8\)"),
        ({A: np.full((3, 64), np.nan, np.float32)}, "expected finite values"),
        ({"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32), np.float32)}, "lm_head.*one more"),
    ],
    ids=["missing", "of another shape", "not finite", "unexpected"],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, text):
    change_tensors(folder, **changes)
    with pytest.raises(WeightsError, match=text):
        load_adapter(folder, CONFIG)


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_missing_and_damaged_files_are_named(folder, name):
    (folder / name).write_bytes(b"\x00 no adapter")
    with pytest.raises(WeightsError, match=f"{name}.*fetch or export it again"):
        load_adapter(folder, CONFIG)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}.*no such file"):
        load_adapter(folder, CONFIG)


def test_another_folder_is_never_overwritten_and_an_earlier_adapter_is(folder, tmp_path):
    other = tmp_path / "notes"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    adapters = init_adapters(jax.random.key(1), CONFIG, LORA)
    with pytest.raises(FileExistsError, match="is no earlier adapter"):
        save_adapter(other, CONFIG, adapters, LORA, "base")
    assert [path.name for path in other.iterdir()] == ["diary.txt"]
    before = load_file(folder / ADAPTER_WEIGHTS)
    save_adapter(folder, CONFIG, adapters, LORA, "base")
    assert not np.array_equal(load_file(folder / ADAPTER_WEIGHTS)[A], before[A])


def test_adapters_of_other_settings_are_refused(tmp_path):
    adapters = init_adapters(jax.random.key(1), CONFIG, LORA)
    with pytest.raises(WeightsError, match="save them with their own settings"):
        save_adapter(tmp_path, CONFIG, adapters, LoraConfig(rank=4), "base")
