"""The policy against transformers' Llama in PyTorch: the same folder, the same logits, the same gradients, and back.

Needs the `parity` extra (PyTorch); skipped as a whole without it. Sizes are tiny, sequences longer than 300 tokens,
arithmetic float32. Norm scales and weights are drawn large enough that every operation matters, and each comparison has
a twin in which one thing is broken on purpose and which must fail.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

torch = pytest.importorskip("torch", reason="install the parity extra: pip install 'ditto-jax[parity]'")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from model import llama  # noqa: E402
from model.config import ModelConfig  # noqa: E402
from model.hf_io import load_config, load_params, save_params  # noqa: E402
from model.hf_layout import tensor_plan  # noqa: E402
from model.rope import Llama3RopeScaling  # noqa: E402

LENGTH = 320
LOGIT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4

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


@dataclasses.dataclass(frozen=True)
class Pair:
    """One random model in both worlds, and what transformers computes with it."""

    theirs: Any
    config: ModelConfig
    params: Any
    ids: np.ndarray
    logits: np.ndarray
    gradients: dict[str, np.ndarray]


def their_logits(model, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def their_gradients(model, ids: np.ndarray) -> dict[str, np.ndarray]:
    model.zero_grad()
    logprobs = torch.log_softmax(model(torch.tensor(ids)).logits[:, :-1], dim=-1)
    (-torch.gather(logprobs, 2, torch.tensor(ids)[:, 1:, None]).mean()).backward()
    return {name: weight.grad.numpy().copy() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def pair(request, tmp_path_factory) -> Pair:
    config = CONFIGS[request.param]
    torch.manual_seed(7)
    theirs = LlamaForCausalLM(LlamaConfig(**config.to_hf(), initializer_range=0.1)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("export")
    theirs.save_pretrained(folder)
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int64)
    loaded = load_config(folder)
    return Pair(
        theirs,
        loaded,
        load_params(folder, loaded),
        ids,
        their_logits(theirs, ids),
        their_gradients(theirs, ids),
    )


def assert_logits_agree(found, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    difference = np.max(np.abs(np.asarray(found) - expected))
    assert difference <= LOGIT_TOLERANCE, f"logits differ by {difference:.1e}"


def assert_gradients_agree(tree, config: ModelConfig, expected: dict[str, np.ndarray]) -> None:
    leaves = cast(dict[str, Any], flatten_dict(tree, sep="/"))
    plan = tensor_plan(config)
    assert set(plan) == set(expected)
    for name, slot in plan.items():
        found = np.asarray(leaves[slot.path] if slot.layer is None else leaves[slot.path][slot.layer])
        difference = np.max(np.abs((found.T if slot.transposed else found) - expected[name]))
        largest = np.max(np.abs(expected[name]))
        assert difference <= GRADIENT_TOLERANCE * largest, f"{name}: gradients differ by {difference / largest:.1e}"


def loss(params, config: ModelConfig, ids, *, remat: bool = False, detach_head: bool = False):
    """Mean negative log-probability of the next token; a detached head passes no gradient to its own weights."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = llama.forward(params, config, ids, positions, jnp.ones(ids.shape, bool), remat=remat)
    scores = llama.logits(jax.lax.stop_gradient(params) if detach_head else params, config, hidden)
    logprobs = jax.nn.log_softmax(scores[:, :-1], axis=-1)
    return -jnp.mean(jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1))


gradients_of_loss = jax.jit(jax.grad(loss), static_argnames=("config", "remat", "detach_head"))


def edited(params, path: str, change):
    """A copy of the tree with one leaf changed."""
    tree = copy.deepcopy(params)
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
        node = node[parent]
    node[name] = change(np.asarray(node[name]))
    return tree


def test_the_config_survives_transformers(pair, request):
    assert pair.config in CONFIGS.values()
    assert pair.config == CONFIGS[request.node.callspec.params["pair"]]


def test_logits_agree(pair):
    assert np.std(pair.logits) > 0.5, "a flat model would agree with anything"
    assert_logits_agree(llama.apply(pair.params, pair.config, jnp.asarray(pair.ids, jnp.int32)), pair.logits)


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
        assert_logits_agree(llama.apply(params, pair.config, jnp.asarray(pair.ids, jnp.int32)), pair.logits)


@pytest.mark.parametrize("field", ["rope_theta", "rope_scaling", "rms_norm_eps"])
def test_logits_of_a_broken_config_do_not_agree(pair, field):
    scaling = None if pair.config.rope_scaling else Llama3RopeScaling(8.0, 1.0, 4.0, 64)
    broken = {"rope_theta": pair.config.rope_theta * 1.1, "rope_scaling": scaling, "rms_norm_eps": 1e-2}[field]
    config = dataclasses.replace(pair.config, **{field: broken})
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(llama.apply(pair.params, config, jnp.asarray(pair.ids, jnp.int32)), pair.logits)


@pytest.mark.parametrize("remat", [False, True], ids=["stored", "recomputed"])
def test_gradients_agree(pair, remat):
    gradients = gradients_of_loss(pair.params, pair.config, jnp.asarray(pair.ids, jnp.int32), remat=remat)
    assert_gradients_agree(gradients, pair.config, pair.gradients)


def test_gradients_of_a_detached_head_do_not_agree(pair):
    """A tied embedding whose head contributes no gradient is the mistake that logits cannot show."""
    gradients = gradients_of_loss(pair.params, pair.config, jnp.asarray(pair.ids, jnp.int32), detach_head=True)
    with pytest.raises(AssertionError, match=r"(embed_tokens|lm_head)\.weight: gradients differ"):
        assert_gradients_agree(gradients, pair.config, pair.gradients)


def test_gradients_of_a_wrong_denominator_do_not_agree(pair):
    gradients = gradients_of_loss(pair.params, pair.config, jnp.asarray(pair.ids, jnp.int32), remat=False)
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


def reload(folder: Path):
    model, info = cast(Any, LlamaForCausalLM).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


SHARED, OWN = 100, 40  # tokens of the prefix that both rows share, and of each row's own tail


@functools.partial(jax.jit, static_argnames="config")
def cached_logits(params, config: ModelConfig, ids, shift: int, forget: int):
    """Logits after the shared prefix by the route of the sampler: prefix, own tail, then one token at a time.

    shift: added to the positions of decoded tokens; forget: cached columns that decoding does not see.
    """
    padded = jnp.pad(ids[:1, :SHARED], ((0, 0), (0, 6)))
    prefix = llama.make_prefix(params, config, padded, jnp.arange(SHARED + 6)[None] < SHARED)
    tail = ids[:, SHARED : SHARED + OWN]
    positions = jnp.broadcast_to(SHARED + jnp.arange(OWN), tail.shape)
    hidden, keys = llama.forward(params, config, tail, positions, jnp.ones(tail.shape, bool), prefix, keep_keys=True)
    assert keys is not None

    room = LENGTH - SHARED - OWN
    grow = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
    columns = jnp.arange(OWN + room)
    cached = jnp.where((columns >= forget) & (columns < OWN), SHARED + columns, -1)
    cached = jnp.broadcast_to(cached, (ids.shape[0], OWN + room))
    cache = llama.Cache(jnp.pad(keys.k, grow), jnp.pad(keys.v, grow), cached, jnp.int32(OWN))

    def step(cache, token_and_position):
        token, position = token_and_position
        hidden, cache = llama.decode(params, config, token, position, cache, prefix)
        return cache, llama.logits(params, config, hidden)

    after = jnp.broadcast_to(jnp.arange(SHARED + OWN, LENGTH)[:, None] + shift, (room, ids.shape[0]))
    _, decoded = jax.lax.scan(step, cache, (ids[:, SHARED + OWN :].T, after))
    return jnp.concatenate([llama.logits(params, config, hidden), decoded.swapaxes(0, 1)], axis=1)


@pytest.fixture(scope="module")
def forked(pair) -> tuple[jax.Array, np.ndarray]:
    """Two rows with one prefix, and what transformers says after it."""
    ids = pair.ids.copy()
    ids[1, :SHARED] = ids[0, :SHARED]
    return jnp.asarray(ids, jnp.int32), their_logits(pair.theirs, ids)[:, SHARED:]


def test_cached_decoding_equals_their_full_forward(pair, forked):
    ids, expected = forked
    assert_logits_agree(cached_logits(pair.params, pair.config, ids, shift=0, forget=0), expected)


@pytest.mark.parametrize(("shift", "forget"), [(1, 0), (0, 1)], ids=["position shifted", "one key forgotten"])
def test_broken_cached_decoding_does_not_agree(pair, forked, shift, forget):
    ids, expected = forked
    with pytest.raises(AssertionError, match="logits differ"):
        assert_logits_agree(cached_logits(pair.params, pair.config, ids, shift=shift, forget=forget), expected)
