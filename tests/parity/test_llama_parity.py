"""The policy against transformers' Llama in PyTorch: the same folder, the same logits, the same gradients, and back.

Needs the `parity` extra (PyTorch); skipped as a whole without it. Sizes are tiny, sequences longer than 300 tokens,
arithmetic float32. Norm scales and weights are drawn large enough that every operation matters, and each comparison has
a twin in which one thing is broken on purpose and which must fail.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="install the parity extra: pip install 'ditto-jax[parity]'")

from model import llama
from model.config import ModelConfig
from model.hf_io import save_params
from model.rope import Llama3RopeScaling
from tests.parity.comparison import (
    LENGTH,
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

CONFIGS = {
    "tied, grouped queries": ModelConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        tie_embeddings=True,
    ),
    "untied, scaled rotary, wide heads": ModelConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=80,
        num_layers=2,
        num_heads=8,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-3,
        rope_theta=5000.0,
        rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 64),
        eos_token_ids=(2, 3),
    ),
    "untied, one head a key": ModelConfig(
        vocab_size=120,
        hidden_size=48,
        intermediate_size=64,
        num_layers=2,
        num_heads=3,
        num_kv_heads=3,
        head_dim=16,
        rope_theta=500.0,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def pair(request, tmp_path_factory) -> Pair:
    return make_pair(causal_model(CONFIGS[request.param].to_hf()), tmp_path_factory.mktemp("export"))


def test_the_config_survives_transformers(pair, request):
    assert pair.config in CONFIGS.values()
    assert pair.config == CONFIGS[request.node.callspec.params["pair"]]


def test_logits_agree(pair):
    assert np.std(pair.logits) > 0.5, "a flat model would agree with anything"
    assert_logits_agree(llama.apply(pair.params, pair.config, pair.tokens), pair.logits)


def test_padding_on_the_left_changes_nothing(pair):
    padding = 9
    ids = np.concatenate([np.zeros((2, padding), np.int64), pair.ids], axis=1)
    valid = np.arange(LENGTH + padding)[None] >= padding
    valid = jnp.asarray(np.broadcast_to(valid, ids.shape))
    found = llama.apply(pair.params, pair.config, jnp.asarray(ids, jnp.int32), valid)
    assert_logits_agree(found[:, padding:], pair.logits)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(
            llama.apply(pair.params, pair.config, jnp.asarray(ids, jnp.int32))[:, padding:], pair.logits
        )


BROKEN_WEIGHTS = {
    "output rows reversed": ("layers/attn/o/kernel", lambda leaf: leaf[:, ::-1]),
    "interleaved rotary order": (
        "layers/attn/q/kernel",
        lambda leaf: leaf.reshape(*leaf.shape[:2], -1, 2, 8).swapaxes(3, 4).reshape(leaf.shape),
    ),
    "layers in the wrong order": ("layers/mlp/down/kernel", lambda leaf: leaf[::-1]),
    "norm scale forgotten": ("layers/mlp_norm/scale", np.ones_like),
    "last norm forgotten": ("final_norm/scale", np.ones_like),
}


@pytest.mark.parametrize("broken", BROKEN_WEIGHTS)
def test_logits_of_broken_weights_do_not_agree(pair, broken):
    path, change = BROKEN_WEIGHTS[broken]
    params = edited(pair.params, path, change)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(llama.apply(params, pair.config, pair.tokens), pair.logits)


@pytest.mark.parametrize("field", ["rope_theta", "rope_scaling", "rms_norm_eps"])
def test_logits_of_a_broken_config_do_not_agree(pair, field):
    scaling = None if pair.config.rope_scaling else Llama3RopeScaling(8.0, 1.0, 4.0, 64)
    broken = {"rope_theta": pair.config.rope_theta * 1.1, "rope_scaling": scaling, "rms_norm_eps": 1e-2}[field]
    config = dataclasses.replace(pair.config, **{field: broken})
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(llama.apply(pair.params, config, pair.tokens), pair.logits)


@pytest.mark.parametrize("remat", ["none", "full"], ids=["stored", "recomputed"])
def test_gradients_agree(pair, remat):
    gradients = gradients_of_loss(pair.params, pair.config, pair.tokens, remat=remat)
    assert_gradients_agree(gradients, pair.config, pair.gradients)


def test_gradients_of_a_detached_head_do_not_agree(pair):
    """A tied embedding whose head contributes no gradient is the mistake that logits cannot show."""
    gradients = gradients_of_loss(pair.params, pair.config, pair.tokens, detach_head=True)
    with pytest.raises(AssertionError, match=r"(embed_tokens|lm_head)\.weight: gradients differ"):
        assert_gradients_agree(gradients, pair.config, pair.gradients)


def test_gradients_of_a_wrong_denominator_do_not_agree(pair):
    gradients = gradients_of_loss(pair.params, pair.config, pair.tokens, remat="none")
    wrong = jax.tree.map(lambda gradient: gradient * (LENGTH - 1) / LENGTH, gradients)
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_agree(wrong, pair.config, pair.gradients)


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000], ids=["whole", "sharded"])
def test_exports_load_back_in_transformers(pair, tmp_path, shard_bytes):
    save_params(tmp_path / "export", pair.config, jax.tree.map(jnp.asarray, pair.params), shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "export").glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    again = reload(tmp_path / "export")
    np.testing.assert_array_equal(their_logits(again, pair.ids), pair.logits)


def test_a_broken_export_does_not_load_back_equal(pair, tmp_path):
    broken = edited(pair.params, "layers/attn/k/kernel", lambda leaf: leaf[:, ::-1])
    save_params(tmp_path / "export", pair.config, broken)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(their_logits(reload(tmp_path / "export"), pair.ids), pair.logits)
    save_params(tmp_path / "export", dataclasses.replace(pair.config, rope_theta=77.0), pair.params)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(their_logits(reload(tmp_path / "export"), pair.ids), pair.logits)


def test_cached_decoding_equals_their_full_forward(pair):
    assert_logits_agree(
        cached_logits(pair.params, pair.config, pair.tokens, shift=0, forget=0), pair.logits[:, SHARED:]
    )


@pytest.mark.parametrize(("shift", "forget"), [(1, 0), (0, 1)], ids=["position shifted", "one key forgotten"])
def test_broken_cached_decoding_does_not_agree(pair, shift, forget):
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(
            cached_logits(pair.params, pair.config, pair.tokens, shift=shift, forget=forget), pair.logits[:, SHARED:]
        )
