"""Exported adapters against PEFT over transformers: the same folder, the same logits; and adapters that PEFT saved.

Needs the `parity` extra (PyTorch, PEFT); skipped as a whole without it. B is not zero, so that every adapter shows, and
each comparison has a twin in which one adapter is broken on purpose and which must fail.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch", reason="install the parity extra: pip install 'ditto-jax[parity]'")
peft = pytest.importorskip("peft", reason="install the parity extra: pip install 'ditto-jax[parity]'")

from transformers import AutoModelForCausalLM  # noqa: E402

from model import llama  # noqa: E402
from model.config import ModelConfig  # noqa: E402
from model.hf_io import load_config, load_params, save_params  # noqa: E402
from model.lora import LoraConfig, combine, init_adapters, merge  # noqa: E402
from model.peft_io import ADAPTER_WEIGHTS, load_adapter, save_adapter  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]
LENGTH, TOLERANCE = 320, 1e-4
CONFIG = ModelConfig(
    vocab_size=120, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16
)
SETTINGS = {
    "all layers": LoraConfig(rank=4, alpha=10.0),
    "queries and values": LoraConfig(rank=8, alpha=4.0, target_modules=("q", "v")),
}


@functools.cache
def params() -> Any:
    return jax.tree.map(np.asarray, jax.jit(llama.init, static_argnums=1)(jax.random.key(0), CONFIG))


@functools.cache
def adapters(lora: LoraConfig) -> Any:
    rng = np.random.default_rng(1)
    drawn = init_adapters(jax.random.key(0), CONFIG, lora)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.15, size=leaf.shape).astype(np.float32), drawn)


def tokens() -> np.ndarray:
    return np.random.default_rng(2).integers(0, CONFIG.vocab_size, (2, LENGTH)).astype(np.int32)


def ours(weights: Any, config: ModelConfig = CONFIG) -> np.ndarray:
    return np.asarray(llama.apply(weights, config, tokens()))


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens()).long()).logits.numpy()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_params(folder, CONFIG, params())
    return folder


def over_transformers(base: Path, adapter: Path) -> Any:
    """The base with the adapter on it, both as PEFT and transformers load them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    assert np.isfinite(found).all() and found.shape == expected.shape
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("name", SETTINGS)
def test_peft_loads_exported_adapters_and_computes_our_logits(name, base, tmp_path):
    lora = SETTINGS[name]
    save_adapter(tmp_path, CONFIG, adapters(lora), lora, str(base))
    expected = ours(combine(params(), adapters(lora), lora))
    assert worst(theirs(over_transformers(base, tmp_path)), expected) <= TOLERANCE
    assert worst(ours(params()), expected) > 0.1


def test_the_comparison_notices_that_one_layers_adapter_is_another(base, tmp_path):
    lora = SETTINGS["all layers"]
    save_adapter(tmp_path, CONFIG, adapters(lora), lora, str(base))
    file = tmp_path / ADAPTER_WEIGHTS
    tensors = load_file(file)
    first, second = (f"base_model.model.model.layers.{n}.mlp.down_proj.lora_B.weight" for n in (0, 2))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, file, metadata={"format": "pt"})
    assert worst(theirs(over_transformers(base, tmp_path)), ours(combine(params(), adapters(lora), lora))) > 1e-2


def test_every_tensor_has_the_name_and_shape_that_peft_gives_it(base, tmp_path):
    lora = SETTINGS["all layers"]
    save_adapter(tmp_path / "ours", CONFIG, adapters(lora), lora, str(base))
    over_transformers(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    mine, other = (load_file(tmp_path / who / ADAPTER_WEIGHTS) for who in ("ours", "theirs"))
    assert mine.keys() == other.keys()
    assert all(np.array_equal(mine[name], other[name]) for name in mine)


def test_adapters_that_peft_made_and_saved_compute_its_logits_here(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    settings = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=["o_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(model, settings).eval()
    model.save_pretrained(tmp_path)
    loaded, lora = load_adapter(tmp_path, CONFIG)
    assert lora == LoraConfig(rank=6, alpha=9.0, target_modules=("o", "up"))
    assert worst(ours(combine(params(), loaded, lora)), theirs(model)) <= TOLERANCE
    assert worst(ours(combine(params(), loaded, dataclasses.replace(lora, alpha=10.0))), theirs(model)) > 1e-3


def test_an_export_with_the_adapters_merged_computes_the_same_logits(base, tmp_path):
    lora = SETTINGS["all layers"]
    save_params(tmp_path / "merged", CONFIG, merge(params(), adapters(lora), lora))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager")
    expected = ours(combine(params(), adapters(lora), lora))
    assert worst(theirs(model), expected) <= TOLERANCE
    config = load_config(tmp_path / "merged")
    assert worst(ours(load_params(tmp_path / "merged", config), config), expected) <= TOLERANCE


def test_what_was_saved_is_read_back_bit_for_bit(tmp_path):
    lora = SETTINGS["queries and values"]
    save_adapter(tmp_path, CONFIG, adapters(lora), lora, "base")
    loaded, settings = load_adapter(tmp_path, CONFIG)
    assert settings == lora
    found, expected = flatten_dict(loaded), flatten_dict(adapters(lora))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in expected)
