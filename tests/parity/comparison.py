"""One random model in both worlds, PyTorch and here, and the comparisons of what they compute.

Sizes are tiny, sequences longer than 300 tokens, arithmetic float32. Norm scales, biases and weights are drawn large
enough that every operation matters. Import it behind `pytest.importorskip("torch")`.
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
import torch
from flax.traverse_util import flatten_dict
from transformers import AutoConfig, AutoModelForCausalLM

from model import llama
from model.config import ModelConfig
from model.hf_io import load_config, load_params
from model.hf_layout import tensor_plan
from model.remat import Remat

LENGTH = 320
SHARED, OWN = 100, 40  # tokens of the prefix that both rows share, and of each row's own tail
LOGIT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Pair:
    """One random model in both worlds, and what transformers computes with it; the rows share a prefix."""

    theirs: Any
    folder: Path
    config: ModelConfig
    params: Any
    ids: np.ndarray
    logits: np.ndarray
    gradients: dict[str, np.ndarray]

    @property
    def tokens(self) -> jax.Array:
        return jnp.asarray(self.ids, jnp.int32)


def causal_model(values: dict[str, Any]) -> Any:
    """The random transformers model that a config.json describes."""
    torch.manual_seed(7)
    values = dict(values)
    config = AutoConfig.for_model(values.pop("model_type"), **values, initializer_range=0.1)
    return AutoModelForCausalLM.from_config(config)


def make_pair(theirs: Any, folder: Path) -> Pair:
    """Saves their model and loads it here, after its norms and biases were drawn so that they matter."""
    theirs = theirs.eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.5)
    theirs.save_pretrained(folder)
    config = load_config(folder)
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int64)
    ids[1, :SHARED] = ids[0, :SHARED]
    return Pair(
        theirs,
        folder,
        config,
        load_params(folder, config),
        ids,
        their_logits(theirs, ids),
        their_gradients(theirs, ids),
    )


def their_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def their_gradients(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients by tensor name; what text does not touch (a vision tower) has none."""
    model.zero_grad()
    logprobs = torch.log_softmax(model(torch.tensor(ids)).logits[:, :-1], dim=-1)
    (-torch.gather(logprobs, 2, torch.tensor(ids)[:, 1:, None]).mean()).backward()
    return {name: w.grad.numpy().copy() for name, w in model.named_parameters() if w.grad is not None}


def reload(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    """Loads a folder in transformers, strictly."""
    model, info = cast(Any, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def assert_logits_agree(found: Any, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    difference = np.max(np.abs(np.asarray(found) - expected))
    assert difference <= LOGIT_TOLERANCE, f"logits differ by {difference:.1e}"


def assert_gradients_agree(tree: Any, config: ModelConfig, expected: dict[str, np.ndarray]) -> None:
    leaves = cast(dict[str, Any], flatten_dict(tree, sep="/"))
    plan = tensor_plan(config)
    assert set(plan) == set(expected)
    for name, slot in plan.items():
        found = np.asarray(leaves[slot.path] if slot.layer is None else leaves[slot.path][slot.layer])
        difference = np.max(np.abs((found.T if slot.transposed else found) - expected[name]))
        largest = np.max(np.abs(expected[name]))
        assert difference <= GRADIENT_TOLERANCE * largest, f"{name}: gradients differ by {difference / largest:.1e}"


def loss(params, config: ModelConfig, ids, *, remat: Remat = "none", detach_head: bool = False):
    """Mean negative log-probability of the next token; a detached head passes no gradient to its own weights."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = llama.forward(params, config, ids, positions, jnp.ones(ids.shape, bool), remat=remat)
    scores = llama.logits(jax.lax.stop_gradient(params) if detach_head else params, config, hidden)
    logprobs = jax.nn.log_softmax(scores[:, :-1], axis=-1)
    return -jnp.mean(jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1))


gradients_of_loss = jax.jit(jax.grad(loss), static_argnames=("config", "remat", "detach_head"))


def edited(params: Any, path: str, change: Any) -> Any:
    """A copy of the tree with one leaf changed."""
    tree = copy.deepcopy(params)
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
        node = node[parent]
    node[name] = change(np.asarray(node[name]))
    return tree


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
    grow = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
    columns = jnp.arange(OWN + room)
    cached = jnp.where((columns >= forget) & (columns < OWN), SHARED + columns, -1)
    cached = jnp.broadcast_to(cached, (ids.shape[0], OWN + room))
    cache = llama.Cache(jnp.pad(keys.k, grow), jnp.pad(keys.v, grow), cached, jnp.int32(OWN))

    def step(cache, token_and_position):
        token, position = token_and_position
        hidden, cache = llama.extend(params, config, token[:, None], position[:, None], cache, prefix)
        return cache, llama.logits(params, config, hidden[:, 0])

    after = jnp.broadcast_to(jnp.arange(SHARED + OWN, LENGTH)[:, None] + shift, (room, ids.shape[0]))
    _, decoded = jax.lax.scan(step, cache, (ids[:, SHARED + OWN :].T, after))
    return jnp.concatenate([llama.logits(params, config, hidden), decoded.swapaxes(0, 1)], axis=1)
