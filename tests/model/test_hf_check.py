"""An export is loaded and computes before it is believed: what only the logits show is caught, and nothing is replaced.

The bytes of every tensor are compared when it is written (`tests/model/test_hf_io.py`); here they arrive and are wrong.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import hf_save, llama
from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_check import check_export, probe_logits
from model.hf_files import CONFIG_FILE, WEIGHTS_FILE
from model.hf_io import load_params, save_params
from model.hf_layout import tensor_plan
from model.partition import make_mesh, parameter_shardings

CONFIG = ModelConfig(
    family="qwen2",
    vocab_size=48,
    hidden_size=24,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    qkv_bias=True,
)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(llama.init(jax.random.key(0), CONFIG))


@pytest.fixture
def saved(params, tmp_path) -> Path:
    assert save_params(tmp_path / "export", CONFIG, params) == "Qwen2ForCausalLM"
    return tmp_path / "export"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_sound_export_passes_in_every_dtype(saved, params, dtype):
    save_params(saved, CONFIG, params, dtype=dtype)
    check_export(saved, CONFIG, params, dtype)


def test_parameters_on_a_mesh_are_compared_there(params, tmp_path):
    mesh = make_mesh(1, 4, 2)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    save_params(tmp_path / "export", CONFIG, placed)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "export", CONFIG), params)


def with_queries_and_keys_swapped(config):
    names = {"q_proj": "k_proj", "k_proj": "q_proj"}
    return {
        ".".join(names.get(part, part) for part in name.split(".")): slot for name, slot in tensor_plan(config).items()
    }


def test_a_wrong_key_map_is_caught_although_every_byte_arrived(saved, params, monkeypatch):
    before = contents(saved)
    monkeypatch.setattr(hf_save, "tensor_plan", with_queries_and_keys_swapped)
    with pytest.raises(WeightsError, match=r"logits of the saved parameters.*others, by up to"):
        save_params(saved, CONFIG, params)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["export"]


def test_a_write_that_is_damaged_later_is_caught(saved, params, monkeypatch):
    before, write = contents(saved), hf_save.write_file

    def damaging(file, tensors, metadata=None):
        write(file, tensors, metadata)
        bad = load_file(file)
        bad["model.layers.1.mlp.up_proj.weight"][3] *= -1.0
        save_file(bad, file)

    monkeypatch.setattr(hf_save, "write_file", damaging)
    with pytest.raises(WeightsError, match="logits of the saved parameters"):
        save_params(saved, CONFIG, params)
    assert contents(saved) == before


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps", "max_position_embeddings"])
def test_a_setting_that_is_lost_on_the_way_is_caught_and_named(saved, params, monkeypatch, field):
    before, written = contents(saved), ModelConfig.to_hf

    def losing(config):
        return written(dataclasses.replace(config, **{field: 7}))

    monkeypatch.setattr(ModelConfig, "to_hf", losing)
    with pytest.raises(WeightsError, match=rf"{field}=.*on reading back, found 7"):
        save_params(saved, CONFIG, params)
    assert contents(saved) == before


def test_an_export_is_checked_against_the_parameters_that_it_should_hold(saved, params):
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    with pytest.raises(WeightsError, match="logits of the saved parameters"):
        check_export(saved, CONFIG, other, "float32")


def test_probes_cover_the_vocabulary_at_random_and_are_always_the_same(params):
    found = probe_logits(params, CONFIG)
    assert found.shape == (2, 24, CONFIG.vocab_size) and np.std(found) > 0.1
    np.testing.assert_array_equal(found, probe_logits(params, CONFIG))


def test_the_written_class_is_that_of_the_config_file(saved):
    assert json.loads((saved / CONFIG_FILE).read_text())["architectures"] == ["Qwen2ForCausalLM"]
    assert "model.layers.0.self_attn.q_proj.bias" in load_file(saved / WEIGHTS_FILE)
