"""Streaming: every way of cutting gives the same values, a host reads its own bytes, and little memory is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from model import hf_load
from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_io import load_params, save_params
from model.hf_layout import param_shapes
from model.partition import make_mesh, parameter_shardings

# Sizes with odd factors: not everything divides evenly into shards, or shards into pieces.
CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=88,
    hidden_size=40,
    intermediate_size=56,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    qkv_bias=True,
    output_bias=True,
    qk_norm=True,
)
MESHES = [(1, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


def random_params(config: ModelConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = param_shapes(config).items()
    return unflatten_dict({path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes}, sep="/")


def leaves_of(params: Any) -> dict[str, Any]:
    return cast(dict[str, Any], flatten_dict(params, sep="/"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "export"
    save_params(folder, CONFIG, random_params(CONFIG), shard_bytes=40_000)
    return folder


def mesh_of(sizes: tuple[int, int, int]):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


@pytest.mark.parametrize("values", [10**6, 3000, 500, 37], ids="pieces of {} values".format)
@pytest.mark.parametrize("sizes", MESHES, ids="data {0[0]} fsdp {0[1]} tensor {0[2]}".format)
def test_weights_arrive_in_their_shards_however_they_are_cut(folder, monkeypatch, sizes, values):
    monkeypatch.setattr(hf_load, "PIECE_VALUES", values)
    loaded = load_params(folder, CONFIG, mesh=mesh_of(sizes))
    wanted = parameter_shardings(random_params(CONFIG), mesh_of(sizes))
    jax.tree.map(np.testing.assert_array_equal, loaded, random_params(CONFIG))
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == wanted


@pytest.mark.parametrize("values", [10**6, 37])
def test_weights_arrive_on_the_host_however_they_are_cut(folder, monkeypatch, values):
    monkeypatch.setattr(hf_load, "PIECE_VALUES", values)
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, CONFIG), random_params(CONFIG))


@pytest.mark.parametrize("values", [10**6, 37])
def test_values_are_cast_on_the_way(folder, monkeypatch, values):
    monkeypatch.setattr(hf_load, "PIECE_VALUES", values)
    loaded = load_params(folder, CONFIG, "bfloat16", mesh_of((1, 2, 2)))
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}


def values_read(monkeypatch, folder: Path, config: ModelConfig, sizes: tuple[int, int, int]) -> dict[str, list[int]]:
    """Loads the folder; returns the size of every block that was read, by leaf."""
    read: dict[str, list[int]] = {path: [] for path in param_shapes(config)}
    real = hf_load.read_block

    def counting(tensor, slot, index, dtype):
        block = real(tensor, slot, index, dtype)
        read[slot.path].append(block.size)
        return block

    monkeypatch.setattr(hf_load, "read_block", counting)
    load_params(folder, config, mesh=mesh_of(sizes))
    return read


@pytest.mark.parametrize("sizes", MESHES, ids="data {0[0]} fsdp {0[1]} tensor {0[2]}".format)
def test_every_value_is_read_once_whatever_the_number_of_replicas(monkeypatch, folder, sizes):
    read = values_read(monkeypatch, folder, CONFIG, sizes)
    assert {path: sum(blocks) for path, blocks in read.items()} == {
        path: int(np.prod(shape)) for path, shape in param_shapes(CONFIG).items()
    }


def test_no_block_is_larger_than_a_shard(monkeypatch, folder):
    read = values_read(monkeypatch, folder, CONFIG, (1, 4, 2))
    kernel = CONFIG.hidden_size * CONFIG.num_heads * CONFIG.head_dim
    assert set(read["layers/attn/q/kernel"]) == {kernel // 8}


def test_damage_is_named_on_a_mesh_too(tmp_path):
    params = random_params(CONFIG)
    params["layers"]["attn"]["k"]["kernel"][2, 7, 3] = 1e6
    save_params(tmp_path / "large", CONFIG, params)
    with pytest.raises(WeightsError, match=r"layers\.2\.self_attn\.k_proj\.weight.*float16 can hold"):
        load_params(tmp_path / "large", CONFIG, "float16", mesh_of((1, 4, 2)))


# Memory. The checkpoint has 142 MiB, its largest tensor 64 MiB.

LARGE = ModelConfig(
    vocab_size=32768,
    hidden_size=512,
    intermediate_size=2048,
    num_layers=5,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    tie_embeddings=True,
)
MEASURE = """import sys, threading, time
import jax
from model.hf_io import load_config, load_params
from model.partition import make_mesh, parameter_shardings

def anonymous():
    # Memory that belongs to this process alone; pages of mapped files are the kernel's.
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)

folder, way, fsdp, tensor = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
mesh = make_mesh(-1, fsdp, tensor)
config = load_config(folder)
jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(8)))
done, peak = threading.Event(), 0
watcher = threading.Thread(target=watch)
before = anonymous()
watcher.start()
if way == "streamed":
    params = load_params(folder, config, mesh=mesh)
else:
    params = load_params(folder, config)
    params = jax.device_put(params, parameter_shardings(params, mesh))
jax.block_until_ready(params)
done.set()
watcher.join()
destination = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print(peak - before - destination)
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    shapes = param_shapes(LARGE).items()
    leaves = {path: 0.02 * rng.standard_normal(shape, np.float32) for path, shape in shapes}
    folder = tmp_path_factory.mktemp("large") / "export"
    save_params(folder, LARGE, unflatten_dict(leaves, sep="/"))
    return folder


def memory_beyond_the_destination(folder: Path, way: str, fsdp: int, tensor: int) -> int:
    """Bytes at the peak, in a process of its own with as many devices as the mesh needs."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(fsdp * tensor),
        "JAX_PLATFORMS": "cpu",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # or freed blocks would be kept and counted
    }
    command = [sys.executable, "-c", MEASURE, str(folder), way, str(fsdp), str(tensor)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)], ids="fsdp {0[0]} tensor {0[1]}".format)
def test_loading_needs_at_most_one_and_a_half_of_the_largest_tensor(large_folder, mesh):
    largest = 4 * LARGE.vocab_size * LARGE.hidden_size
    assert memory_beyond_the_destination(large_folder, "streamed", *mesh) <= 1.5 * largest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
def test_the_measurement_notices_a_load_by_way_of_the_host(large_folder):
    largest = 4 * LARGE.vocab_size * LARGE.hidden_size
    assert memory_beyond_the_destination(large_folder, "whole", 4, 2) > 1.5 * largest
