"""`ditto-jax sample`: the published text of a published model, and what settings do to what is printed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import jax
import pytest

from launch.cli import main
from launch.sample import SampleConfig, sample
from model import llama
from model.config import ModelConfig
from model.hf_io import save_params
from tests.small_tokenizers import save_sentencepiece

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A policy that knows turns, with random weights."""
    vocabulary = save_sentencepiece(tmp_path_factory.mktemp("vocabulary"))
    folder = vocabulary.parent / "policy"
    config = ModelConfig(vocab_size=310, max_position_embeddings=128, bos_token_id=1, **SIZES)
    save_params(folder, config, llama.init(jax.random.key(0), config), extra_files=vocabulary.iterdir())
    return folder


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["sample", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_published_model_writes_its_published_text(capsys, stories260k):
    expected = (stories260k / "expected_greedy.txt").read_text()
    assert len(expected) == 464
    words = ("--model_name_or_path", stories260k, "--prompt", "", "--temperature", 0, "--max_new_tokens", 200)
    assert run(capsys, *words) == (0, expected, "")


def test_a_prompt_is_continued_as_the_published_text_goes_on(capsys, stories260k):
    expected = (stories260k / "expected_greedy.txt").read_text()
    prompt = expected[: expected.index(" Lily")]
    words = ("--model_name_or_path", stories260k, "--prompt", prompt, "--temperature", 0, "--max_new_tokens", 60)
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert len(out) > len(prompt) + 60
    assert expected.startswith(out)


def test_positions_that_turn_a_little_faster_write_another_text(capsys, stories260k, tmp_path):
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / name).symlink_to(stories260k / name)
    config = (stories260k / "config.json").read_text()
    assert '"rope_theta": 10000.0' in config
    (tmp_path / "config.json").write_text(config.replace('"rope_theta": 10000.0', '"rope_theta": 9000.0'))
    _, out, _ = run(capsys, "--model_name_or_path", tmp_path, "--temperature", 0, "--max_new_tokens", 200)
    assert out != (stories260k / "expected_greedy.txt").read_text()


def test_a_sample_depends_on_its_seed_and_number_alone(folder):
    def texts(seed: int, count: int) -> list[str]:
        return sample(SampleConfig(str(folder), "Where is Anne?", seed=seed, num_samples=count, max_new_tokens=12))

    three = texts(1, 3)
    assert texts(1, 2) == three[:2]
    assert len(set(three)) == 3
    assert texts(2, 1) != three[:1]


def test_policies_with_turns_print_their_reply_and_others_continue_the_prompt(folder):
    settings = {"prompt": "Where is Anne?", "temperature": 0.0, "max_new_tokens": 10}
    (reply,) = sample(SampleConfig(str(folder), **settings))
    assert "Where" not in reply
    assert sample(SampleConfig(str(folder), chat=True, **settings)) == [reply]
    (text,) = sample(SampleConfig(str(folder), no_chat=True, **settings))
    assert text.startswith("Where is Anne?")
    assert text != f"Where is Anne?{reply}"
    assert sample(SampleConfig(str(folder), system="Be brief.", **settings)) != [reply]


def test_text_ends_before_the_first_stop_string(folder):
    settings = {"prompt": "a", "no_chat": True, "temperature": 0.0, "max_new_tokens": 24}
    (whole,) = sample(SampleConfig(str(folder), **settings))
    stop = whole[12:15]
    first = whole.index(stop, 1)
    assert sample(SampleConfig(str(folder), stop=(stop, "never written"), **settings)) == [whole[:first]]


def test_several_samples_have_headings(capsys, folder):
    words = ("--model_name_or_path", folder, "--prompt", "a", "--num_samples", 2, "--max_new_tokens", 4)
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert out.startswith("=== sample 1 of 2 ===\n")
    assert "\n=== sample 2 of 2 ===\n" in out


def test_a_prompt_comes_from_a_file_or_standard_input(capsys, folder, tmp_path, monkeypatch):
    words = ("--model_name_or_path", folder, "--no_chat", "--temperature", 0, "--max_new_tokens", 4)
    direct = run(capsys, *words, "--prompt", "Bob leaves")
    file = tmp_path / "prompt.txt"
    file.write_text("Bob leaves")
    assert run(capsys, *words, "--prompt_file", file) == direct
    monkeypatch.setattr(sys, "stdin", io.StringIO("Bob leaves"))
    assert run(capsys, *words, "--prompt_file", "-") == direct


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--temperature", "-1"], 2, ["temperature=-1.0", ">= 0"]),
        (["--top_p", "0"], 2, ["top_p=0.0"]),
        (["--max_new_tokens", "0"], 2, ["max_new_tokens=0", "at least 1"]),
        (["--max_new_tokens", "500"], 2, ["max_new_tokens=500", "context of 128"]),
        (["--prompt", "ball " * 200], 2, ["context of 128", "shorten the prompt"]),
        (["--prompt", "a", "--prompt_file", "b"], 2, ["prompt and prompt_file"]),
        (["--prompt_file", "absent.txt"], 3, ["absent.txt: no such file"]),
        (["--stop", ""], 2, ["stop=''"]),
        (["--chat", "--no_chat"], 2, ["chat and no_chat"]),
        (["--system", "x", "--no_chat"], 2, ["system"]),
        (["--tensor", "1000"], 2, ["needs 1000 devices"]),
    ],
)
def test_settings_that_cannot_work_get_one_message(capsys, folder, words, code, parts):
    ended, out, err = run(capsys, "--model_name_or_path", folder, *words)
    assert (ended, out) == (code, "")
    assert err.startswith("ditto-jax: error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_turns_are_refused_to_a_base_model(capsys, stories260k):
    code, _, err = run(capsys, "--model_name_or_path", stories260k, "--chat")
    assert code == 2
    assert "knows no turns" in err


@pytest.mark.parametrize("damage", ["missing", "truncated", "no tokenizer", "no folder"])
def test_an_incomplete_model_is_refused_with_exit_3(capsys, folder, tmp_path, damage):
    copy = tmp_path / "copy"
    if damage != "no folder":
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no tokenizer":
        (copy / "tokenizer.model").unlink()
    code, out, err = run(capsys, "--model_name_or_path", copy)
    assert (code, out) == (3, "")
    assert err.startswith("ditto-jax: error: ")
    assert str(copy) in err
