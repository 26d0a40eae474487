"""`ditto-jax export`: adapters and whole models come out of a run and compute what the run computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ditto_jax.errors import ConfigError, ModelError, RunDirectoryError
from ditto_jax.export import ExportConfig, export_run
from ditto_jax.loop import train
from ditto_jax.policy import load_policy
from ditto_jax.run_dir import RunDirectory
from ditto_jax.setup import assemble
from ditto_jax.weights import Weights, on_base_of, trained_params, training_run
from launch.cli import main
from model import llama
from model.lora import LoraConfig
from model.partition import make_mesh
from model.peft_io import load_adapter
from tests.tiny_run import run_config, train_config, train_quietly

LORA = LoraConfig(rank=4, alpha=8.0)


def _run(policy: Path, folder: Path, **changes: Any) -> RunDirectory:
    return train_quietly(run_config(policy, folder, train=train_config(1), **changes))


@pytest.fixture(scope="module")
def of_adapters(policy_folder, tmp_path_factory) -> RunDirectory:
    return _run(policy_folder, tmp_path_factory.mktemp("adapters"), lora=LORA, quantization="int8")


@pytest.fixture(scope="module")
def of_everything(policy_folder, tmp_path_factory) -> RunDirectory:
    return _run(policy_folder, tmp_path_factory.mktemp("everything"))


def logits(policy: Any, params: Any) -> np.ndarray:
    ids = np.random.default_rng(0).integers(3, policy.config.vocab_size, (2, 40)).astype(np.int32)
    return np.asarray(llama.apply(params, policy.config, ids))


def of_run(run: RunDirectory) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of the run's newest weights, and those of the model that it started from."""
    config, mesh = training_run(str(run.path)), make_mesh()
    assert config is not None
    policy = load_policy(config.model_name_or_path, mesh, quantization=config.quantization)
    weights = Weights(on_base_of(config, config), policy, mesh)
    trained, _ = trained_params(str(run.path), weights, config)
    return logits(policy, weights.whole(trained)), logits(policy, policy.params)


def of_folder(folder: Path) -> np.ndarray:
    policy = load_policy(str(folder), make_mesh())
    return logits(policy, policy.params)


@pytest.mark.parametrize("name", ["of_adapters", "of_everything"])
def test_a_whole_model_computes_what_the_run_computed(name, request, tmp_path, capsys):
    run = request.getfixturevalue(name)
    words = ["--run", run.path, "--output", tmp_path / "model", "--merged", "--dtype", "float32"]
    assert main(["export", *map(str, words)]) == 0
    assert capsys.readouterr().out == f"exported: {tmp_path / 'model'}\n"
    expected, start = of_run(run)
    np.testing.assert_allclose(of_folder(tmp_path / "model"), expected, atol=1e-4)
    assert np.abs(start - expected).max() > 1e-3


def test_adapters_come_out_as_the_checkpoint_holds_them_and_a_new_run_begins_with_them(
    of_adapters, policy_folder, tmp_path
):
    folder = export_run(ExportConfig(str(of_adapters.path), str(tmp_path / "adapter")))
    policy = load_policy(str(policy_folder), make_mesh())
    found, lora = load_adapter(folder, policy.config)
    assert lora == LORA
    config = run_config(policy_folder, tmp_path, lora=LORA, quantization="int8", adapter_name_or_path=str(folder))
    parts = assemble(config)
    weights = Weights(config, parts.policy, parts.mesh)
    jax.tree.map(np.testing.assert_array_equal, weights.initial(), found)
    np.testing.assert_allclose(
        logits(parts.policy, weights.whole(weights.initial())), of_run(of_adapters)[0], atol=1e-5
    )


def test_adapters_of_another_rank_or_without_one_are_refused(of_adapters, policy_folder, tmp_path):
    folder = export_run(ExportConfig(str(of_adapters.path), str(tmp_path / "adapter")))
    values: dict[str, Any] = {"adapter_name_or_path": str(folder), "output_dir": tmp_path / "runs"}
    config = run_config(policy_folder, **values, lora=LoraConfig(rank=8))
    parts = assemble(config)
    with pytest.raises(ConfigError, match="lora.rank=8, lora.alpha=64.0: the adapters of .* rank 4 and alpha 8.0"):
        Weights(config, parts.policy, parts.mesh)
    config = run_config(policy_folder, **values, lora=LoraConfig(rank=4, alpha=8.0, target_modules=("q",)))
    with pytest.raises(ConfigError, match=r"lora.target_modules=\['q'\]"):
        Weights(config, parts.policy, parts.mesh)
    with pytest.raises(ConfigError, match="with lora.rank=0: all parameters would be trained"):
        train(run_config(policy_folder, **values), [])
    config = run_config(policy_folder, tmp_path, lora=LORA, adapter_name_or_path=str(tmp_path / "none"))
    with pytest.raises(ModelError, match="adapter_name_or_path=.*none: .*adapter_config.json.*no such file"):
        Weights(config, parts.policy, parts.mesh)


def test_what_cannot_be_exported_is_said(of_everything, tmp_path):
    with pytest.raises(ConfigError, match="output is empty"):
        ExportConfig(run="runs/quickstart")
    with pytest.raises(ConfigError, match="no directory of a training run"):
        export_run(ExportConfig(str(tmp_path), str(tmp_path / "out")))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="output=.*notes"):
        export_run(ExportConfig(str(of_everything.path), str(tmp_path / "notes")))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["diary.txt"]
