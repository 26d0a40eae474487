"""One optimiser batch of the tiny policy, and meshes over the simulated devices: what tests of the update share.

Rewards and log-probabilities of the sampler are drawn at random; nothing here is sampled from a policy.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ditto_jax.rollouts.views import View
from ditto_jax.types import ViewRole
from ditto_jax.update.batch import TrainBatch, by_prompt, pack
from ditto_jax.update.packing import batch_shapes
from model.partition import make_mesh, row_sharding
from tests.tiny_policy import some_ids

Sizes = tuple[int, int, int]
ONE: Sizes = (1, 1, 1)
PROMPTS, ROWS = 8, 3


def mesh_of(sizes: Sizes) -> Mesh:
    count = int(np.prod(sizes))
    if len(jax.devices()) < 8:
        pytest.fail(f"{len(jax.devices())} devices are present: start jax with JAX_NUM_CPU_DEVICES=8")
    return make_mesh(*sizes, devices=jax.devices()[:count])


@functools.cache
def views() -> list[View]:
    """A draft and a refined rollout under both contexts for each of eight prompts, of different lengths."""
    rng = np.random.default_rng(5)
    found = []
    for prompt in range(PROMPTS):
        plain = some_ids(prompt, 5 + prompt % 3)
        hinted = np.concatenate([plain[:-1], some_ids(40 + prompt, 2), plain[-1:]])
        replies = [some_ids(80 + 2 * prompt + n, 3 + (prompt + n) % 4) for n in range(2)]
        for role in (ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB):
            reply = replies[role is not ViewRole.DRAFT]
            found.append(
                View(
                    role=role,
                    prompt=prompt,
                    rollout=2 * prompt + (role is not ViewRole.DRAFT),
                    context=hinted if role is ViewRole.REFINED_FB else plain,
                    response=reply,
                    loss_mask=rng.random(len(reply)) < 0.8,
                    behaviour=-rng.random(len(reply)).astype(np.float32),
                    reward=0.0,
                    truncated=False,
                    cross=role is ViewRole.REFINED_PLAIN,
                )
            )
    return found


def batch_of(groups: int = PROMPTS) -> TrainBatch:
    """The same rows in micro-batches of `groups` groups."""
    weights = np.random.default_rng(6).normal(size=len(views())).astype(np.float32)
    shapes = batch_shapes(PROMPTS, ROWS, groups, lanes=ROWS, prefix=(8,), suffix=(16,))
    return pack(views(), list(by_prompt(views()).values()), weights, np.ones(len(views()), bool), shapes)


def place(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
    return jax.device_put(batch, row_sharding(mesh, leading=1))
