"""Weights: what is saved is what loads, and every kind of damage is named, with nothing saved earlier lost."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from model import hf_save
from model.config import ModelConfig
from model.errors import UnsupportedModel, WeightsError
from model.hf_files import INDEX_FILE, WEIGHTS_FILE
from model.hf_io import load_config, load_params, save_params
from model.hf_layout import param_shapes

TIED = ModelConfig(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=20,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=True,
)
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
QUERY = "model.layers.1.self_attn.q_proj.weight"


def random_params(config, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    leaves = {path: rng.standard_normal(shape).astype(jnp.dtype(dtype)) for path, shape in param_shapes(config).items()}
    return unflatten_dict(leaves, sep="/")


def leaves_of(params) -> dict[str, Any]:
    return cast(dict[str, Any], flatten_dict(params, sep="/"))


def assert_same(found, expected):
    found, expected = leaves_of(found), leaves_of(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_params(tmp_path / "export", UNTIED, random_params(UNTIED))
    return tmp_path / "export"


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_saved_is_what_loads(tmp_path, config, dtype):
    config = dataclasses.replace(config, param_dtype=dtype)
    params = random_params(config, dtype=dtype)
    save_params(tmp_path / "export", config, params)
    assert load_config(tmp_path / "export", param_dtype=dtype) == config
    assert_same(load_params(tmp_path / "export", config), params)


def test_sharded_folders_load_like_whole_ones(tmp_path):
    params = random_params(UNTIED)
    save_params(tmp_path / "export", UNTIED, params, shard_bytes=8000)
    shards = sorted((tmp_path / "export").glob("*.safetensors"))
    assert len(shards) > 3
    assert not (tmp_path / "export" / WEIGHTS_FILE).exists()
    index = json.loads((tmp_path / "export" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert_same(load_params(tmp_path / "export", UNTIED), params)


def test_kernels_are_stored_transposed_as_hugging_face_expects(saved):
    stored = load_file(saved / WEIGHTS_FILE)[QUERY]
    kernel = random_params(UNTIED)["layers"]["attn"]["q"]["kernel"][1]
    assert kernel.shape == (24, 32)
    assert stored.shape == (32, 24)
    np.testing.assert_array_equal(stored, kernel.T)


def test_transposed_and_strided_arrays_survive(tmp_path):
    params = random_params(UNTIED)
    params["head"]["kernel"] = np.asarray(jnp.asarray(params["head"]["kernel"].T)).T
    wide = np.repeat(params["final_norm"]["scale"], 2)
    params["final_norm"]["scale"] = wide[::2]
    assert not params["head"]["kernel"].flags.c_contiguous
    save_params(tmp_path / "export", UNTIED, params)
    assert_same(load_params(tmp_path / "export", UNTIED), random_params(UNTIED))


def test_a_writer_that_corrupts_transposes_is_noticed(tmp_path, monkeypatch):
    def raw_buffer_writer(tensors, file, metadata):
        save_file({k: np.ascontiguousarray(v.T).reshape(v.shape) for k, v in tensors.items()}, file, metadata=metadata)

    monkeypatch.setattr(hf_save, "save_file", raw_buffer_writer)
    with pytest.raises(WeightsError, match="reading back"):
        save_params(tmp_path / "export", UNTIED, random_params(UNTIED))
    assert list(tmp_path.iterdir()) == []


def test_device_arrays_are_saved(tmp_path):
    params = random_params(TIED)
    save_params(tmp_path / "export", TIED, jax.tree.map(jnp.asarray, params))
    assert_same(load_params(tmp_path / "export", TIED), params)


def test_weights_load_in_another_dtype(saved):
    loaded = load_params(saved, UNTIED, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(
        loaded["final_norm"]["scale"], random_params(UNTIED)["final_norm"]["scale"].astype(jnp.dtype("bfloat16"))
    )


def test_stop_tokens_of_the_generation_config_are_added(saved):
    (saved / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_config(saved).eos_token_ids == (2, 7)


def test_a_copied_head_of_a_tied_model_is_accepted_and_another_head_is_not(tmp_path):
    folder = tmp_path / "export"
    save_params(folder, TIED, random_params(TIED))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert_same(load_params(folder, TIED), random_params(TIED))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    with pytest.raises(WeightsError, match=r"lm_head\.weight.*tie_word_embeddings"):
        load_params(folder, TIED)


def test_rotary_buffers_of_old_exports_are_ignored(saved):
    rewrite(saved, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    assert_same(load_params(saved, UNTIED), random_params(UNTIED))


def test_a_missing_tensor_is_named(saved):
    rewrite(saved, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(WeightsError, match=r"1 of them missing") as caught:
        load_params(saved, UNTIED)
    assert caught.value.tensor == QUERY
    assert caught.value.file == saved / WEIGHTS_FILE


def test_an_unexpected_tensor_is_named(saved):
    rewrite(saved, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}))
    with pytest.raises(WeightsError, match=r"q_proj\.bias.*does not have"):
        load_params(saved, UNTIED)


def test_a_wrong_shape_states_both_shapes(saved):
    rewrite(saved, lambda tensors: tensors.update({QUERY: tensors[QUERY].T}))
    with pytest.raises(WeightsError, match=r"q_proj.*expected shape \(32, 24\), found shape \(24, 32\)"):
        load_params(saved, UNTIED)


def test_a_dtype_that_is_no_parameter_dtype_is_refused(saved):
    rewrite(saved, lambda tensors: tensors.update({QUERY: tensors[QUERY].astype(np.int8)}))
    with pytest.raises(WeightsError, match=r"q_proj.*found I8"):
        load_params(saved, UNTIED)


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.999], ids=str)
def test_a_truncated_file_is_named(saved, keep):
    file = saved / WEIGHTS_FILE
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match="whole safetensors file") as caught:
        load_params(saved, UNTIED)
    assert caught.value.file == file
    assert "again" in caught.value.advice


def test_values_that_are_not_numbers_are_named(saved):
    def poison(tensors):
        tensors[QUERY] = tensors[QUERY].copy()
        tensors[QUERY][3, 4] = np.nan

    rewrite(saved, poison)
    with pytest.raises(WeightsError, match=r"q_proj.*1 NaN or infinite of 768"):
        load_params(saved, UNTIED)


def test_values_too_large_for_the_asked_dtype_are_named(saved):
    rewrite(saved, lambda tensors: tensors.update({QUERY: tensors[QUERY] * 1e6}))
    with pytest.raises(WeightsError, match=r"q_proj.*float16 can hold"):
        load_params(saved, UNTIED, "float16")


def test_missing_files_are_named(tmp_path, saved):
    with pytest.raises(WeightsError, match="a model folder"):
        load_config(tmp_path / "absent")
    (saved / WEIGHTS_FILE).rename(saved / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*only safetensors"):
        load_params(saved, UNTIED)
    (saved / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json.*no such file"):
        load_config(saved)


def test_a_broken_config_is_named(saved):
    (saved / "config.json").write_text('{"model_type": "llama", ')
    with pytest.raises(WeightsError, match=r"config\.json: expected JSON"):
        load_config(saved)
    (saved / "config.json").write_text(json.dumps({**UNTIED.to_hf(), "model_type": "gemma3"}))
    with pytest.raises(UnsupportedModel, match="gemma3"):
        load_config(saved)


def test_damaged_indexes_are_named(tmp_path):
    folder = tmp_path / "export"
    save_params(folder, UNTIED, random_params(UNTIED), shard_bytes=8000)
    index = json.loads((folder / INDEX_FILE).read_text())
    shard = index["weight_map"][QUERY]

    shutil.move(folder / shard, tmp_path / shard)
    with pytest.raises(WeightsError, match=rf"{shard}.*no such file"):
        load_params(folder, UNTIED)

    outside = {name: f"../{file}" if file == shard else file for name, file in index["weight_map"].items()}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(WeightsError, match="without a folder"):
        load_params(folder, UNTIED)

    (folder / INDEX_FILE).write_text("{}")
    with pytest.raises(WeightsError, match="weight_map"):
        load_params(folder, UNTIED)


def test_a_shard_in_the_place_of_another_is_noticed(tmp_path):
    folder = tmp_path / "export"
    save_params(folder, UNTIED, random_params(UNTIED), shard_bytes=8000)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(WeightsError, match="each tensor once"):
        load_params(folder, UNTIED)


def test_a_tree_that_does_not_fit_the_config_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"head/kernel.*no such leaf"):
        save_params(tmp_path / "export", UNTIED, random_params(TIED))
    with pytest.raises(WeightsError, match=r"head/kernel"):
        save_params(tmp_path / "export", TIED, random_params(UNTIED))
    with pytest.raises(WeightsError, match=r"embed/embedding.*\(49, 24\).*\(48, 24\)"):
        save_params(tmp_path / "export", dataclasses.replace(TIED, vocab_size=49), random_params(TIED))
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_not_finite_are_not_exported(saved):
    broken = random_params(UNTIED, seed=1)
    broken["final_norm"]["scale"][0] = np.inf
    with pytest.raises(WeightsError, match=r"model\.norm\.weight.*finite"):
        save_params(saved, UNTIED, broken)
    assert_same(load_params(saved, UNTIED), random_params(UNTIED))


def test_a_new_export_replaces_the_old_one_and_keeps_its_other_files(saved, tmp_path):
    save_params(saved, UNTIED, random_params(UNTIED), shard_bytes=8000)
    (saved / "tokenizer.model").write_bytes(b"pieces")
    (tmp_path / "card.md").write_text("card")
    save_params(saved, UNTIED, random_params(UNTIED, seed=1), extra_files=[tmp_path / "card.md"])
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", WEIGHTS_FILE, "tokenizer.model", "card.md"}
    assert_same(load_params(saved, UNTIED), random_params(UNTIED, seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"export", "card.md"}


def test_a_folder_that_is_no_export_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WeightsError, match="without config"):
        save_params(tmp_path, TIED, random_params(TIED))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_leaves_the_older_export_as_it_was(saved, tmp_path):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            save_params(saved, UNTIED, random_params(UNTIED, seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("crash_at", [0, 1], ids=["before the swap", "inside the swap"])
def test_a_killed_save_loses_nothing(saved, tmp_path, monkeypatch, crash_at):
    class Killed(BaseException):
        pass

    renames = []

    def replace(source, target):
        if len(renames) == crash_at:
            raise Killed
        renames.append(target)
        real_replace(source, target)

    real_replace = os.replace
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
    with pytest.raises(Killed):
        save_params(saved, UNTIED, random_params(UNTIED, seed=1))
    monkeypatch.undo()

    older = saved if crash_at == 0 else tmp_path / ".export.previous"
    assert_same(load_params(older, UNTIED), random_params(UNTIED))
    if crash_at == 1:
        with pytest.raises(WeightsError, match=r"\.export\.previous.*rename it back"):
            load_config(saved)
    save_params(saved, UNTIED, random_params(UNTIED, seed=2))
    assert_same(load_params(saved, UNTIED), random_params(UNTIED, seed=2))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_exports_are_readable_by_whoever_may_read_new_files(saved):
    modes = {path.stat().st_mode & 0o777 for path in saved.iterdir()}
    (saved / "new").write_text("")
    assert modes == {(saved / "new").stat().st_mode & 0o777}


def test_errors_keep_their_facts_across_processes():
    error = WeightsError("model.safetensors", "w", "shape (2,)", "shape (3,)", "fetch it again")
    rebuilt = copy.copy(error)  # by class and arguments, as between processes
    assert str(rebuilt) == ("model.safetensors: tensor 'w': expected shape (2,), found shape (3,); fetch it again")
    assert (str(rebuilt), rebuilt.tensor) == (str(error), "w")


def test_parameters_of_the_model_have_the_documented_names_and_shapes():
    from model import llama

    for config in (TIED, UNTIED):
        made = leaves_of(jax.eval_shape(lambda c=config: llama.init(jax.random.key(0), c)))
        assert {path: leaf.shape for path, leaf in made.items()} == param_shapes(config)
