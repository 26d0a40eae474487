"""`ditto-jax export`: adapters and whole models come out of a run and compute what the run computed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ditto_jax.errors import ConfigError, ModelError, RunDirectoryError
from ditto_jax.evaluation.evaluate import TaskEvaluation, write_evaluation
from ditto_jax.export import ExportConfig, export_run
from ditto_jax.export_card import Exported, card
from ditto_jax.loop import train
from ditto_jax.policy import load_policy
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.setup import assemble
from ditto_jax.text.chat import make_chat_format
from ditto_jax.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from ditto_jax.types import Message
from ditto_jax.weights import Weights, on_base_of, trained_params, training_run
from launch.cli import main
from model import llama
from model.hf_io import load_config, save_params
from model.lora import LoraConfig, init_adapters
from model.partition import make_mesh
from model.peft_io import load_adapter, save_adapter
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
    words = [run.path, "--output", tmp_path / "model", "--format", "hf", "--dtype", "float32"]
    assert main(["export", *map(str, words)]) == 0
    assert capsys.readouterr().out == f"exported: {tmp_path / 'model'} (for LlamaForCausalLM)\n"
    expected, start = of_run(run)
    np.testing.assert_allclose(of_folder(tmp_path / "model"), expected, atol=1e-4)
    assert np.abs(start - expected).max() > 1e-3
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "made by this project's generators" in card
    assert "ditto-jax train --config tiny.yaml" in card and "| scored by |" in card
    drawn = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert drawn["do_sample"] and set(drawn["eos_token_id"]) == set(load_config(tmp_path / "model").eos_token_ids)
    mine, theirs = load_tokenizer(run_base(run)), load_tokenizer(tmp_path / "model")
    assert isinstance(theirs, HuggingFaceTokenizer) and theirs.encode("Anne") == mine.encode("Anne")
    chat = [Message("user", " Where is  the <answer>ball?")]
    assert make_chat_format(theirs).open(chat) == make_chat_format(mine).open(chat)


def run_base(run: RunDirectory) -> str:
    config = training_run(str(run.path))
    assert config is not None
    return config.model_name_or_path


def test_adapters_come_out_as_the_checkpoint_holds_them_and_a_new_run_begins_with_them(
    of_adapters, policy_folder, tmp_path
):
    folder, reader = export_run(ExportConfig(str(of_adapters.path), str(tmp_path / "adapter")))
    assert reader == "PEFT"
    policy = load_policy(str(policy_folder), make_mesh())
    found, lora = load_adapter(folder, policy.config)
    assert lora == LORA
    assert "rank 4, alpha 8.0" in (folder / "README.md").read_text()
    assert {"generation_config.json", "tokenizer.model", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    config = run_config(policy_folder, tmp_path, lora=LORA, quantization="int8", adapter_name_or_path=str(folder))
    parts = assemble(config)
    weights = Weights(config, parts.policy, parts.mesh)
    jax.tree.map(np.testing.assert_array_equal, weights.initial(), found)
    np.testing.assert_allclose(
        logits(parts.policy, weights.whole(weights.initial())), of_run(of_adapters)[0], atol=1e-5
    )


TOWER = "model.visual.patch_embed.proj.weight"


def _vision_language_model(text_from: Path, folder: Path) -> Path:
    """Returns `folder` with a Qwen3-VL of the small policy's sizes: random text weights, and one tensor that is none of
    the text model's.
    """
    small = load_config(text_from)
    config = dataclasses.replace(small, family="qwen3", qk_norm=True)
    params = jax.jit(llama.init, static_argnums=1)(jax.random.key(5), config)
    files = [path for path in text_from.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    save_params(folder, config, params, extra_files=[path for path in files if path.name != "config.json"])
    text = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {}}
    whole |= {"text_config": text | {"model_type": "qwen3_vl_text"}, "tie_word_embeddings": config.tie_embeddings}
    (folder / "config.json").write_text(json.dumps(whole))
    stored = load_file(folder / "model.safetensors")
    stored = {name.replace("model.", "model.language_model.", 1): values for name, values in stored.items()}
    save_file(stored | {TOWER: np.arange(6, dtype=np.float32)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_trained_text_tower_goes_back_into_the_vision_language_model(policy_folder, tmp_path, capsys):
    whole = _vision_language_model(policy_folder, tmp_path / "vl")
    config = load_config(whole)
    drawn = init_adapters(jax.random.key(6), config, LORA)
    drawn = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), drawn)
    save_adapter(tmp_path / "drawn", config, jax.device_get(drawn), LORA, str(whole))
    run = _run(whole, tmp_path / "runs", lora=LORA, adapter_name_or_path=str(tmp_path / "drawn"))
    assert main(["export", "--run", str(run.path), "--output", str(tmp_path / "new"), "--format", "graft"]) == 0
    assert capsys.readouterr().out == f"exported: {tmp_path / 'new'} (for Qwen3VLForConditionalGeneration)\n"
    expected, start = of_run(run)
    np.testing.assert_allclose(of_folder(tmp_path / "new"), expected, atol=1e-4)
    assert np.abs(start - expected).max() > 1e-3
    stored = load_file(tmp_path / "new" / "model.safetensors")
    np.testing.assert_array_equal(stored[TOWER], np.arange(6))
    assert (tmp_path / "new" / "config.json").read_bytes() == (whole / "config.json").read_bytes()


def test_adapters_of_another_rank_or_without_one_are_refused(of_adapters, policy_folder, tmp_path):
    folder, _ = export_run(ExportConfig(str(of_adapters.path), str(tmp_path / "adapter")))
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


def test_a_card_shows_the_newest_figures_that_are_not_newer_than_what_is_exported(of_everything, tmp_path):
    config = training_run(str(of_everything.path))
    assert config is not None
    run = RunDirectory(tmp_path)
    for step, value in ((0, 0.125), (1, 0.375), (2, 0.875)):
        record = {
            "label": "hitom",
            "task": "hitom",
            "task_version": "1",
            "source": None,
            "value": value,
            "n": 8,
            "interval": {"low": 0.1, "high": 0.9, "confidence": 0.95, "method": "wilson"},
            "clustered_interval": None,
            "metric": "mean_score",
            "trials": 1,
            "breakdown": {},
            "metrics": {},
            "faults": None,
            "truncated_fraction": 0.0,
            "judges": [],
            "step": step,
            "rows": {"found": 8, "used": 8, "refused": 0, "refused_first": "", "left_out": {}},
            "outcomes": {},
            "scored_by": ["rules@hitom-1"],
            "partners": {},
        }
        write_evaluation(run, TaskEvaluation("hitom", record, []), step)
    policy = load_policy(config.model_name_or_path, make_mesh())
    text = card(run, config, policy, Exported("it", "a whole model", "transformers", 1, False))
    assert "0.375" in text and "0.875" not in text and "rules@hitom-1" in text and "step 1" in text


def test_what_cannot_be_exported_is_said(of_everything, tmp_path):
    with pytest.raises(ConfigError, match="format=peft: .* trained all parameters"):
        export_run(ExportConfig(str(of_everything.path), str(tmp_path / "out"), "peft"))
    with pytest.raises(ConfigError, match="output is empty"):
        ExportConfig(run="runs/quickstart")
    with pytest.raises(ConfigError, match="no directory of a training run"):
        export_run(ExportConfig(str(tmp_path), str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="format=graft: .* is a LlamaForCausalLM"):
        export_run(ExportConfig(str(of_everything.path), str(tmp_path / "out"), "graft"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="output=.*notes"):
        export_run(ExportConfig(str(of_everything.path), str(tmp_path / "notes")))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["diary.txt"]
