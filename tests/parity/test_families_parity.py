"""Every family against its transformers class: logits, gradients, cached decoding, and the way back.

The sizes separate what families do: windows shorter than the text and longer than a row's own tail, head widths that
are not hidden_size over heads, biases and norms drawn far from their initial values. Each comparison has twins in which
one trait of the family is broken and which must fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="install the parity extra: pip install 'ditto-jax[parity]'")

from transformers import Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from model import llama
from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_io import graft_params, load_config, load_params, save_params
from model.hf_layout import tensor_plan
from tests.parity.comparison import (
    LOGIT_TOLERANCE,
    SHARED,
    Pair,
    assert_gradients_agree,
    assert_logits_agree,
    cached_logits,
    causal_model,
    edited,
    gradients_of_loss,
    make_pair,
    reload,
    their_logits,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


SIZES = ModelConfig(
    vocab_size=120,
    hidden_size=48,
    intermediate_size=80,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rms_norm_eps=1e-6,
    rope_theta=5000.0,
)

Breakage = Callable[[ModelConfig, Any], tuple[ModelConfig, Any]]


def other(**changes: Any) -> Breakage:
    """Breaks fields of the config."""
    return lambda config, params: (dataclasses.replace(config, **changes), params)


def leaf(path: str, change: Callable[[np.ndarray], np.ndarray]) -> Breakage:
    """Breaks one leaf of the parameters."""
    return lambda config, params: (config, edited(params, path, change))


def swapped_norms(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    attn = params["layers"]["attn"]
    broken = edited(params, "layers/attn/q_norm/scale", lambda _: attn["k_norm"]["scale"])
    return config, edited(broken, "layers/attn/k_norm/scale", lambda _: attn["q_norm"]["scale"])


QK_NORM = {
    "query norm forgotten": leaf("layers/attn/q_norm/scale", np.ones_like),
    "key norms of other layers": leaf("layers/attn/k_norm/scale", lambda scale: scale[::-1]),
    "query and key norms swapped": swapped_norms,
}
BIASES = {
    f"{name} bias forgotten": leaf(f"layers/{part}/{name}/bias", np.zeros_like)
    for part, name in (("attn", "q"), ("attn", "k"), ("attn", "v"), ("attn", "o"), ("mlp", "gate"), ("mlp", "down"))
}
QKV_BIASES = dict(list(BIASES.items())[:3])


def windows(window: int) -> dict[str, Breakage]:
    return {
        "window one too wide": other(sliding_window=window + 1),
        "window one too narrow": other(sliding_window=window - 1),
        "no window": other(sliding_window=None, full_attention_layers=()),
    }


CASES: dict[str, tuple[dict[str, Any], dict[str, Breakage]]] = {
    "llama with biases": (
        {"family": "llama", "qkv_bias": True, "output_bias": True, "mlp_bias": True},
        BIASES,
    ),
    "mistral": ({"family": "mistral", "sliding_window": 23}, windows(23)),
    "mistral with a wide window": ({"family": "mistral", "sliding_window": 150}, windows(150)),
    "mistral without a window": (
        {"family": "mistral", "head_dim": 16},
        {"a window": other(sliding_window=250)},
    ),
    "qwen2": ({"family": "qwen2", "qkv_bias": True, "tie_embeddings": True}, QKV_BIASES),
    "qwen2 with windows": (
        {"family": "qwen2", "qkv_bias": True, "sliding_window": 23, "full_attention_layers": (0,)},
        {**windows(23), "the window in another layer": other(full_attention_layers=(1,))},
    ),
    "qwen3": ({"family": "qwen3", "qk_norm": True, "num_heads": 10, "head_dim": 8}, QK_NORM),
    "qwen3 with biases and windows": (
        {
            "family": "qwen3",
            "qk_norm": True,
            "qkv_bias": True,
            "output_bias": True,
            "head_dim": 16,
            "sliding_window": 150,
            "full_attention_layers": (0, 2),
        },
        {**windows(150), "the window in other layers": other(full_attention_layers=(1,)), **QKV_BIASES},
    ),
    "smollm3": (
        {"family": "smollm3", "num_layers": 4, "no_rope_layers": (3,), "tie_embeddings": True},
        {
            "rotary in every layer": other(no_rope_layers=()),
            "rotary missing in another layer": other(no_rope_layers=(2,)),
        },
    ),
    "smollm3 with windows": (
        {
            "family": "smollm3",
            "no_rope_layers": (0, 2),
            "sliding_window": 23,
            "full_attention_layers": (1,),
        },
        {**windows(23), "rotary in every layer": other(no_rope_layers=())},
    ),
    "qwen3_vl": ({"family": "qwen3_vl", "qk_norm": True, "head_dim": 16}, QK_NORM),
}

VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": SIZES.hidden_size,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "patch_size": 4,
}
TEXT_FIELDS = ("architectures", "model_type", "rope_scaling", "rope_theta", "rope_parameters", "tie_word_embeddings")


def config_of(name: str) -> ModelConfig:
    return dataclasses.replace(SIZES, **CASES[name][0])


def vision_language_model(config: ModelConfig) -> Any:
    text = {key: value for key, value in config.to_hf().items() if key not in TEXT_FIELDS}
    # Sections as in the published models: time, height and width take turns.
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": [4, 2, 2]}
    text |= {"rope_parameters": {**rope, "mrope_interleaved": True}, "initializer_range": 0.1}
    whole = Qwen3VLConfig(
        text_config=text,
        vision_config=VISION,
        tie_word_embeddings=config.tie_embeddings,
        image_token_id=116,
        video_token_id=117,
        vision_start_token_id=118,
        vision_end_token_id=119,
    )
    return Qwen3VLForConditionalGeneration(whole)


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "_"))
def case(request, tmp_path_factory) -> tuple[str, Pair]:
    config = config_of(request.param)
    make = vision_language_model if config.family == "qwen3_vl" else lambda c: causal_model(c.to_hf())
    return request.param, make_pair(make(config), tmp_path_factory.mktemp("export"))


def test_the_config_survives_transformers(case):
    name, pair = case
    assert pair.config == config_of(name)


def test_tensor_names_are_theirs_both_ways(case):
    _, pair = case
    theirs = {name for name in pair.theirs.state_dict() if ".visual." not in name}
    if pair.config.tie_embeddings:
        theirs -= {"lm_head.weight"}
    assert set(tensor_plan(pair.config)) == theirs


def test_logits_agree_and_those_of_broken_twins_do_not(case):
    name, pair = case
    assert np.std(pair.logits) > 0.5, "a flat model would agree with anything"
    assert_logits_agree(llama.apply(pair.params, pair.config, pair.tokens), pair.logits)
    for what, breakage in CASES[name][1].items():
        config, params = breakage(pair.config, pair.params)
        difference = np.max(np.abs(llama.apply(params, config, pair.tokens) - pair.logits))
        assert difference > 10 * LOGIT_TOLERANCE, f"with this broken the logits still agree: {what}"


def test_gradients_agree_and_those_of_a_broken_twin_do_not(case):
    name, pair = case
    found = gradients_of_loss(pair.params, pair.config, pair.tokens, remat="full")
    assert_gradients_agree(found, pair.config, pair.gradients)
    config, params = next(iter(CASES[name][1].values()))(pair.config, pair.params)
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_agree(gradients_of_loss(params, config, pair.tokens), pair.config, pair.gradients)


def test_cached_decoding_agrees_and_that_of_a_broken_twin_does_not(case):
    name, pair = case
    after = pair.logits[:, SHARED:]
    found = cached_logits(pair.params, pair.config, pair.tokens, shift=0, forget=0)
    assert_logits_agree(found, after)
    config, params = next(iter(CASES[name][1].values()))(pair.config, pair.params)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(cached_logits(params, config, pair.tokens, shift=0, forget=0), after)
    if pair.config.sliding_window is None:
        with pytest.raises(AssertionError, match="logits differ"):
            assert_logits_agree(cached_logits(pair.params, pair.config, pair.tokens, shift=0, forget=1), after)


def test_exports_load_back_in_the_class_that_they_name(case, tmp_path):
    _, pair = case
    written = save_params(tmp_path / "export", pair.config, pair.params)
    again = reload(tmp_path / "export")
    assert type(again).__name__ == written == load_architecture(tmp_path / "export")
    np.testing.assert_array_equal(their_logits(again, pair.ids), pair.logits)


def load_architecture(folder) -> str:
    return load_config(folder).to_hf()["architectures"][0]


# The text tower of a vision-language model.


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tower(request, tmp_path_factory) -> Pair:
    config = dataclasses.replace(config_of("qwen3_vl"), tie_embeddings=request.param)
    pair = make_pair(vision_language_model(config), tmp_path_factory.mktemp("whole"))
    (pair.folder / "preprocessor_config.json").write_text('{"patch_size": 4}')
    return pair


def trained(pair: Pair) -> Any:
    rng = np.random.default_rng(11)
    return jax.tree.map(lambda w: w + 0.05 * rng.standard_normal(w.shape).astype(w.dtype), pair.params)


def test_a_grafted_tower_computes_the_trained_logits_and_nothing_else_has_changed(tower, tmp_path):
    assert graft_params(tmp_path / "whole", tower.folder, tower.config, trained(tower)) == type(tower.theirs).__name__
    again = reload(tmp_path / "whole", Qwen3VLForConditionalGeneration)
    expected = np.asarray(llama.apply(trained(tower), tower.config, tower.tokens))
    assert_logits_agree(their_logits(again, tower.ids), expected)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(tower.logits, expected)
    before, after = tower.theirs.state_dict(), again.state_dict()
    visual = [name for name in before if ".visual." in name]
    assert len(visual) > 20 and before.keys() == after.keys()
    for name in visual:
        np.testing.assert_array_equal(after[name].numpy(), before[name].numpy(), err_msg=name)
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tower.folder / name).read_bytes()


def test_a_text_export_grafts_like_the_tower_itself(tower, tmp_path):
    assert save_params(tmp_path / "text", tower.config, trained(tower)) == Qwen3ForCausalLM.__name__
    text = load_config(tmp_path / "text")
    assert text.family == "qwen3"
    graft_params(tmp_path / "whole", tower.folder, text, load_params(tmp_path / "text", text))
    again = reload(tmp_path / "whole", Qwen3VLForConditionalGeneration)
    np.testing.assert_array_equal(
        their_logits(again, tower.ids), their_logits(reload(tmp_path / "text", Qwen3ForCausalLM), tower.ids)
    )


def test_towers_are_grafted_only_where_they_came_from(tower, tmp_path):
    save_params(tmp_path / "text", tower.config, tower.params)
    with pytest.raises(WeightsError, match=r"Qwen3VLForConditionalGeneration, found a Qwen3ForCausalLM"):
        graft_params(tmp_path / "whole", tmp_path / "text", tower.config, tower.params)
    other_model = dataclasses.replace(tower.config, rope_theta=77.0)
    with pytest.raises(WeightsError, match=r"rope_theta=77"):
        graft_params(tmp_path / "whole", tower.folder, other_model, tower.params)
    assert not (tmp_path / "whole").exists()
