"""ModelConfig: what config.json says is what is computed, and what cannot be computed is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from model.config import ModelConfig
from model.errors import UnsupportedModel
from model.presets import TINY
from model.rope import Llama3RopeScaling

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SCALED = dataclasses.replace(
    TINY,
    rope_theta=500000.0,
    rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 64),
    tie_embeddings=False,
    eos_token_ids=(2, 5),
    param_dtype="bfloat16",
)


def test_absent_fields_take_the_defaults_of_transformers():
    from transformers import LlamaConfig

    ours = ModelConfig.from_hf(HF)
    theirs = LlamaConfig(**{name: value for name, value in HF.items() if name != "model_type"})
    rope = theirs.to_dict()["rope_parameters"]
    assert (ours.head_dim, ours.rms_norm_eps, ours.tie_embeddings) == (16, 1e-6, False)
    assert ours.head_dim == theirs.head_dim
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3_ROPE}},
        {
            "rope_theta": 500000.0,
            "rope_scaling": {"type": "llama3", **{k: LLAMA3_ROPE[k] for k in list(LLAMA3_ROPE)[1:]}},
        },
    ],
    ids=["rope_scaling", "rope_parameters", "type"],
)
def test_both_spellings_of_the_rotary_settings_are_read(rope):
    config = ModelConfig.from_hf({**HF, **rope})
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == Llama3RopeScaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize("config", [TINY, SCALED], ids=["tiny", "scaled"])
def test_transformers_reads_what_is_written_and_writes_what_is_read(config):
    from transformers import LlamaConfig

    written = config.to_hf()
    theirs = LlamaConfig(**{name: value for name, value in written.items() if name != "model_type"})
    rope = theirs.to_dict()["rope_parameters"]
    assert rope["rope_theta"] == config.rope_theta
    assert rope["rope_type"] == ("llama3" if config.rope_scaling else "default")
    for values in (written, theirs.to_dict()):
        assert ModelConfig.from_hf(values, param_dtype=config.param_dtype) == config


def test_configs_are_hashable_and_equal_by_value():
    copy = ModelConfig.from_hf(SCALED.to_hf(), param_dtype="bfloat16")
    assert copy is not SCALED
    assert {SCALED: "static argument"}[copy] == "static argument"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "qwen3_moe"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"mlp_bias": "no"}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": {**LLAMA3_ROPE, "factor": "8"}}, "rope_scaling.factor"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_parameters": 7}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 5, "head_dim": 16, "num_key_value_heads": 5}, "num_attention_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"head_dim": "16"}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": 96.0}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": 96}, "eos_token_id"),
        ({"eos_token_id": [2, "</s>"]}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_unsupported_and_impossible_values_are_refused_by_name(change, field):
    with pytest.raises(UnsupportedModel) as caught:
        ModelConfig.from_hf({**HF, **change})
    assert field in caught.value.field
    assert repr(caught.value.value) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_config_without_its_sizes_is_refused(field):
    with pytest.raises(UnsupportedModel, match=field):
        ModelConfig.from_hf({name: value for name, value in HF.items() if name != field})


def test_unknown_dtypes_are_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModel, match=r"param_dtype='float8'.*bfloat16"):
        dataclasses.replace(TINY, param_dtype="float8")
