"""Runs that train adapters: what is saved, that a stopped run continues equal, and that eval and sample read them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from ditto_jax import loop
from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.export import ExportConfig, export_run
from ditto_jax.policy import load_policy
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.setup import assemble
from ditto_jax.weights import Weights, on_base_of_adapters, trained_params
from launch.sample import SampleConfig, sample
from model.lora import LoraConfig, adapter_shapes
from model.partition import make_mesh
from tests.tiny_run import STEPS, assert_same_run, learned, run_config, train_quietly

LORA = LoraConfig(rank=4, alpha=8.0)
SHAPES = {"prefix": (96,), "tail": (1, 48), "max_new_tokens": 32, "max_rows": 32, "chunk": 32}


def lora_config(policy: Path, folder: Path, **changes: Any) -> RunConfig:
    return run_config(policy, folder, **{"lora": LORA, **changes})


@pytest.fixture(scope="module")
def run(policy_folder, tmp_path_factory) -> RunDirectory:
    return train_quietly(lora_config(policy_folder, tmp_path_factory.mktemp("lora")))


def saved_state(run: RunDirectory) -> dict[str, Any]:
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(run.checkpoints.resolve() / str(STEPS) / "state")


def test_a_checkpoint_holds_adapters_and_their_moments_and_nothing_of_the_base(run, policy_folder):
    config = load_policy(str(policy_folder), make_mesh()).config
    state = saved_state(run)
    found = {path: leaf.shape for path, leaf in flatten_dict(state["params"], sep="/").items()}
    assert found == adapter_shapes(config, LORA)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == sorted(3 * list(found.values()))  # parameters, first and second moments


def test_the_adapters_learn_and_the_sampler_agrees_with_the_update(run):
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(saved_state(run)["params"]) if leaf.shape[1] == 4)
    assert all(row["policy/sampler_logprob_gap_max"] < 1e-4 for row in learned(run))
    assert len({row["entropy"] for row in learned(run)}) == STEPS


def test_a_run_stopped_in_its_second_step_ends_bit_for_bit_like_the_straight_one(
    run, policy_folder, tmp_path, monkeypatch
):
    config, original = lora_config(policy_folder, tmp_path), loop.Trainer.step

    async def dies(self, watch):
        if self.done_steps == 1:
            raise OSError("the machine is going down")
        return await original(self, watch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", dies)
        with pytest.raises(OSError, match="going down"):
            train_quietly(config)
    assert_same_run(train_quietly(config), run)


def test_sampling_from_a_merged_copy_learns_the_same_up_to_rounding(run, policy_folder, tmp_path):
    merged = train_quietly(lora_config(policy_folder, tmp_path, sampler=SamplerShapes(**SHAPES, merge_adapters=True)))
    for mine, theirs in zip(learned(merged), learned(run), strict=True):
        assert mine["reward"] == theirs["reward"]
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["policy/sampler_logprob_gap_max"] < 1e-4


def test_the_merged_copy_is_made_once_for_each_state(policy_folder, tmp_path):
    config = lora_config(policy_folder, tmp_path, sampler=SamplerShapes(**SHAPES, merge_adapters=True))
    parts = assemble(config)
    weights = Weights(config, parts.policy, parts.mesh)
    first, second = weights.initial(), weights.initial()
    copy = weights.for_sampling(first)
    assert weights.for_sampling(first) is copy
    assert weights.for_sampling(second) is not copy
    assert jax.tree.structure(copy) == jax.tree.structure(parts.policy.params)


def test_evaluation_of_the_run_measures_its_newest_adapters(run, policy_folder, tmp_path):
    config = run_config(policy_folder, tmp_path, model_name_or_path=str(run.path), run_name="measured")
    with contextlib.redirect_stdout(io.StringIO()):
        (record,) = read_evaluations(RunDirectory(run_evaluation(config, [])))
    (last,) = [record for record in read_evaluations(run) if record["step"] == STEPS]
    assert record == last
    (first,) = [record for record in read_evaluations(run) if record["step"] == 0]
    assert {**first, "step": STEPS} != last


def test_exported_adapters_are_measured_by_the_name_of_their_folder(run, policy_folder, tmp_path):
    folder, _ = export_run(ExportConfig(str(run.path), str(tmp_path / "adapter")))
    config = run_config(policy_folder, tmp_path, model_name_or_path=str(folder), run_name="measured", tasks=())
    with contextlib.redirect_stdout(io.StringIO()):
        measured = RunDirectory(run_evaluation(config, []))
    (record,) = read_evaluations(measured)
    (last,) = [record for record in read_evaluations(run) if record["step"] == STEPS]
    assert {**record, "step": STEPS} == last
    policy = json.loads((measured.path / "evaluation.json").read_text())["policy"]
    assert (policy["base"], policy["adapters"]) == (str(policy_folder), str(folder))


def test_adapters_that_name_no_base_say_what_to_set(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    config = run_config(tmp_path, tmp_path)
    with pytest.raises(MissingInputError, match=r"names no base model; set model_name_or_path to the base"):
        on_base_of_adapters(config)
    assert on_base_of_adapters(run_config(tmp_path / "elsewhere", tmp_path)).adapter_name_or_path == ""


def test_the_sample_command_reads_the_runs_adapters(run, monkeypatch):
    words: dict[str, Any] = {"prompt": "Where is the milk?", "max_new_tokens": 24, "num_samples": 4}
    settings = SampleConfig(model_name_or_path=str(run.path), **words)
    found = sample(settings)
    assert found == sample(settings)

    def larger(folder, *others):
        adapters, step = trained_params(folder, *others)
        assert step == STEPS
        saved, leaves = saved_state(run)["params"], flatten_dict(adapters, sep="/")
        assert all(np.array_equal(leaves[path], leaf) for path, leaf in flatten_dict(saved, sep="/").items())
        return jax.tree.map(lambda leaf: 50 * leaf, adapters), step

    monkeypatch.setattr("ditto_jax.weights.trained_params", larger)
    assert found != sample(settings)


def test_a_base_in_8_bits_cannot_be_trained_whole(policy_folder, tmp_path):
    with pytest.raises(ConfigError, match="quantization=int8 with lora.rank=0.*set lora.rank to 32"):
        train_quietly(run_config(policy_folder, tmp_path, quantization="int8"))
    assert not any(tmp_path.iterdir())


def test_merging_into_a_base_in_8_bits_is_refused(policy_folder, tmp_path):
    with pytest.raises(ConfigError, match="sampler.merge_adapters with quantization=int8"):
        lora_config(policy_folder, tmp_path, quantization="int8", sampler=SamplerShapes(**SHAPES, merge_adapters=True))


def test_a_run_on_a_base_in_8_bits_trains_its_adapters(policy_folder, tmp_path):
    run = train_quietly(lora_config(policy_folder, tmp_path, quantization="int8_all"))
    assert all(row["policy/sampler_logprob_gap_max"] < 1e-4 for row in learned(run))
    assert any(row["grad_norm"] > 0 for row in learned(run))
