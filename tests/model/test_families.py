"""Families: a config.json of each is read as its class reads it, written back alike, and refused where it is not
understood.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import transformers

from model.config import ModelConfig
from model.errors import UnsupportedModel
from model.families import FAMILIES, PLAIN
from model.hf_layout import param_shapes, tensor_plan
from model.presets import TINY

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 3,
}


def hf(kind: str, **changes: Any) -> dict[str, Any]:
    """A config.json of a family; changes go to its text model."""
    text = {**SIZES, **changes}
    if FAMILIES[kind].text_field is None:
        return {"model_type": kind, **text}
    return {"model_type": kind, "text_config": text, "vision_config": {"depth": 2, "hidden_act": "gelu"}}


def read(kind: str, **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(hf(kind, **changes))


def their_class(kind: str) -> Any:
    config = transformers.AutoConfig.for_model(kind)
    return type(config if FAMILIES[kind].text_field is None else config.text_config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_absent_fields_take_the_defaults_of_the_class(kind):
    needed = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads",)}
    needed = {**needed, "vocab_size": 200_000, "num_attention_heads": 32}
    del needed["bos_token_id"], needed["eos_token_id"]
    values = {"model_type": kind, **needed} if FAMILIES[kind].text_field is None else hf(kind)
    if FAMILIES[kind].text_field is not None:
        values["text_config"] = needed
    ours, theirs = ModelConfig.from_hf(values), their_class(kind)(**needed)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.to_dict()["rope_parameters"]["rope_theta"]
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.sliding_window == (theirs.sliding_window if kind == "mistral" else None)
    if kind == "qwen3_vl":
        return
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


FEATURES: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True}],
    "mistral": [{"sliding_window": 7}, {"sliding_window": None, "head_dim": 32}],
    "qwen2": [
        {},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
        {"use_sliding_window": True, "max_window_layers": 0},
    ],
    "qwen3": [
        {"num_attention_heads": 6},
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
    ],
    "smollm3": [
        {},
        {"no_rope_layers": [0, 1, 1, 0]},
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    ],
    "qwen3_vl": [{}, {"attention_bias": True}],
}


@pytest.mark.parametrize(("kind", "changes"), [(kind, c) for kind, all_ in FEATURES.items() for c in all_])
def test_configs_survive_our_writing_and_the_class_of_transformers(kind, changes):
    config = read(kind, **changes)
    written = config.to_hf()
    expected = dataclasses.replace(config, family=FAMILIES[kind].exports_as)
    assert ModelConfig.from_hf(written) == expected
    theirs = transformers.AutoConfig.for_model(
        written["model_type"], **{name: value for name, value in written.items() if name != "model_type"}
    )
    assert ModelConfig.from_hf(theirs.to_dict()) == expected
    assert written["architectures"] == [FAMILIES[FAMILIES[kind].exports_as].architecture]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("first", [0, 1, 4, 9])
def test_layer_patterns_are_those_of_the_class(kind, window, first):
    changes = {"use_sliding_window": window is not None, "sliding_window": window}
    changes |= {"max_window_layers": first} if kind != "smollm3" else {"no_rope_layer_interval": first or 1}
    theirs, ours = their_class(kind)(**SIZES, pad_token_id=None, **changes), read(kind, **changes)
    windowed = [
        ours.sliding_window is not None and layer not in ours.full_attention_layers for layer in range(ours.num_layers)
    ]
    assert windowed == [kind == "sliding_attention" for kind in theirs.layer_types]
    if any(windowed):
        assert ours.sliding_window == theirs.sliding_window
    rotated = getattr(theirs, "no_rope_layers", [1] * ours.num_layers)
    assert ours.no_rope_layers == tuple(layer for layer, rotary in enumerate(rotated) if not rotary)


def test_layer_types_say_which_layers_have_the_window():
    kinds = ["full_attention", "sliding_attention"] * 2
    config = read("qwen3", use_sliding_window=True, sliding_window=5, layer_types=kinds, max_window_layers=0)
    assert (config.sliding_window, config.full_attention_layers) == (5, (0, 2))
    assert read("qwen2", layer_types=["full_attention"] * 4).sliding_window is None
    assert read("mistral", sliding_window=5, layer_types=["sliding_attention"] * 4).sliding_window == 5


def test_families_differ_in_the_neutral_fields_alone():
    assert read("qwen2").qkv_bias and not read("qwen2").output_bias
    assert read("qwen3").qk_norm and read("qwen3").head_dim == 128
    assert read("smollm3").no_rope_layers == (3,) and read("smollm3").tie_embeddings
    for name, plain in PLAIN.items():
        assert getattr(read("llama"), name) == plain


def test_the_text_tower_of_a_vision_language_model_is_read_and_exported_as_a_text_model():
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    older = read("qwen3_vl", rope_theta=5e6, rope_scaling=rope)
    newer = read("qwen3_vl", rope_parameters={"rope_theta": 5e6, **rope})
    assert older == newer and older.rope_theta == 5e6 and older.rope_scaling is None
    assert older.to_hf()["architectures"] == ["Qwen3ForCausalLM"]
    assert ModelConfig.from_hf({**hf("qwen3_vl"), "tie_word_embeddings": True}).tie_embeddings


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_leaf_is_filled_and_every_tensor_has_a_leaf(kind):
    config = read(kind, **FEATURES[kind][-1])
    shapes, plan = param_shapes(config), tensor_plan(config)
    assert {slot.path for slot in plan.values()} == set(shapes)
    for path, shape in shapes.items():
        slots = [slot for slot in plan.values() if slot.path == path]
        assert [slot.layer for slot in slots] == (list(range(shape[0])) if path.startswith("layers") else [None])
    assert len({(slot.path, slot.layer) for slot in plan.values()}) == len(plan)
    before = "model.language_model." if kind == "qwen3_vl" else "model."
    assert all(name.startswith(before) or name == "lm_head.weight" for name in plan)


def test_the_tensors_of_a_text_tower_keep_their_leaves_under_the_names_of_the_export():
    config = read("qwen3_vl")
    inside = tensor_plan(config)
    outside = tensor_plan(dataclasses.replace(config, family="qwen3"))
    renamed = {name.replace("model.language_model.", "model."): slot for name, slot in inside.items()}
    assert renamed == outside and inside.keys() != outside.keys()


REFUSED = [
    ("llama", {"sliding_window": 8}, "sliding_window"),
    ("llama", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ("llama", {"num_local_experts": 8}, "num_local_experts"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Other"}}, "auto_map"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
    ("llama", {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}}, "rope_scaling.mrope_section"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("mistral", {"attention_bias": True}, "attention_bias"),
    ("mistral", {"mlp_bias": True}, "mlp_bias"),
    ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}, "layer_types"),
    ("mistral", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type"),
    ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 2.5}, "sliding_window"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ("qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    ("qwen3", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
    ("qwen3", {"num_experts": 128}, "num_experts"),
    ("qwen3", {"attention_sinks": True}, "attention_sinks"),
    ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type"),
    ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 1, 2, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ("qwen3_vl", {"hidden_act": "relu"}, "hidden_act"),
    ("qwen3_vl", {"sliding_window": 8}, "sliding_window"),
    ("qwen3_vl", {"tie_word_embeddings": True}, "text_config.tie_word_embeddings"),
]


@pytest.mark.parametrize(("kind", "change", "field"), REFUSED, ids=[f"{k} {f}" for k, _, f in REFUSED])
def test_what_is_not_understood_is_refused_by_its_field(kind, change, field):
    with pytest.raises(UnsupportedModel) as caught:
        read(kind, **change)
    assert caught.value.field == field


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_vl_moe", "gemma3_text", "gpt_oss", "qwen3_vl_vision", None])
def test_an_unknown_model_type_is_refused_with_those_that_are_known(kind):
    with pytest.raises(UnsupportedModel, match=r"model_type=.*llama, mistral, qwen2, qwen3, smollm3, qwen3_vl"):
        ModelConfig.from_hf({**SIZES, "model_type": kind})


def test_a_vision_model_without_text_is_refused():
    with pytest.raises(UnsupportedModel, match="text_config"):
        ModelConfig.from_hf({"model_type": "qwen3_vl", "vision_config": {}})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"family": "gpt2"}, "family"),
        ({"qk_norm": True}, "qk_norm"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"no_rope_layers": (1,)}, "no_rope_layers"),
        ({"qkv_bias": True}, "output_bias"),
        ({"family": "qwen2"}, "qkv_bias"),
        ({"family": "qwen3"}, "qk_norm"),
        ({"family": "mistral", "sliding_window": 4, "full_attention_layers": (0,)}, "full_attention_layers"),
        ({"family": "smollm3", "full_attention_layers": (0,)}, "full_attention_layers"),
        ({"family": "smollm3", "sliding_window": 4, "full_attention_layers": (0, 1, 2, 3)}, "full_attention_layers"),
        ({"family": "smollm3", "no_rope_layers": (1, 0)}, "no_rope_layers"),
        ({"family": "smollm3", "no_rope_layers": (4,)}, "no_rope_layers"),
        ({"family": "smollm3", "no_rope_layers": [1]}, "no_rope_layers"),
        ({"family": "smollm3", "sliding_window": True}, "sliding_window"),
    ],
    ids=str,
)
def test_fields_that_the_class_of_a_family_cannot_express_are_refused(change, field):
    with pytest.raises(UnsupportedModel) as caught:
        dataclasses.replace(TINY, **change)
    assert caught.value.field == field
