"""The work that peers are timed on is what the benchmarks say it is, and our own peers do it without others."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from benchmarks import grpo_step, sampling
from benchmarks.recompiles import RaggedSteps, compiled_programs, count_recompiles, told
from benchmarks.reward import distinct_share
from benchmarks.sampling import agreement
from benchmarks.word_task import WordOptions, WordTask
from benchmarks.workloads import SIZES, batches, equal_work, export, parameters, ragged_work
from ditto_jax.tasks.base import Source
from ditto_jax.text.chat import make_chat_format
from ditto_jax.text.tokenizer import load_tokenizer
from model.llama import init


def test_the_sizes_have_the_parameters_that_name_them():
    assert round(parameters(SIZES["3.9M"].config) / 1e6, 1) == 3.9
    assert round(parameters(SIZES["39M"].config) / 1e6) == 39
    tiny = SIZES["tiny"].config
    counted = jax.eval_shape(lambda key: init(key, tiny), jax.random.key(0))
    assert parameters(tiny) == sum(leaf.size for leaf in jax.tree.leaves(counted))


def test_equal_work_is_one_batch_and_ragged_work_has_the_stated_spread():
    equal = equal_work(SIZES["39M"]).facts()
    assert (equal["requests"], equal["cv"], equal["static_batch_utilisation"]) == (16, 0.0, 1.0)
    for name in ("3.9M", "39M"):
        work = ragged_work(SIZES[name])
        facts = work.facts()
        assert facts["requests"] == 4 * SIZES[name].rows
        assert 0.8 < facts["cv"] < 1.1 and 85 < facts["mean"] < 100
        assert facts["shortest"] >= 1 and facts["longest"] <= 512
        longest = sum(max(part) * len(part) for part in batches(work.new_tokens, work.rows))
        assert facts["static_batch_utilisation"] == pytest.approx(sum(work.new_tokens) / longest)


def test_prompts_differ_from_the_first_token_on_or_soon_after():
    prompts = np.array(equal_work(SIZES["3.9M"]).prompts)
    assert len({tuple(row[:3]) for row in prompts.tolist()}) == len(prompts)
    assert prompts.min() >= 1


def test_the_word_tokenizer_gives_the_prompts_back(tmp_path):
    folder = export(tmp_path / "model", SIZES["tiny"].config)
    tokenizer = load_tokenizer(folder, model_vocab_size=SIZES["tiny"].config.vocab_size)
    task = WordTask(WordOptions(SIZES["tiny"].config.vocab_size, 8))
    first, second = task.load(Source(limit=2))
    ids = make_chat_format(tokenizer).open(task.opening(first))
    assert len(ids) == 8 and tokenizer.decode(ids) == first.payload["words"] != second.payload["words"]
    assert tokenizer.eos_ids == ()


def test_distinct_share_counts_words():
    assert distinct_share("a b a c") == 0.75
    assert distinct_share("") == 0.0


def test_agreement_ends_at_the_first_difference_of_a_row():
    assert agreement([[1, 2, 3, 4], [1, 2, 3, 4]], [[1, 2, 9, 4], [1, 2, 3, 4]]) == 0.75


def test_what_compiles_late_is_named_and_what_a_warm_up_compiled_is_counted_apart():
    def program(x):
        return x + 1

    program.__name__ = "late_program"
    jitted = jax.jit(program)
    lengths = (2, 2, 2, 3, 3)

    def warm_up() -> int:
        jitted(np.zeros(1))
        return 7

    result = count_recompiles(warm_up, lambda number: jitted(np.zeros(lengths[number])), warmup=1, steps=4)
    assert result["compiled_later"] == [{"step": 3, "program": "jit(late_program)"}]
    assert result["compiled_in_warmup_steps"] == 1
    before = result["sampler_warm_up"]
    assert (before["shapes_of_calls"], before["compiled"]) == (7, 1)
    lines = told(result).splitlines()
    assert lines[0].startswith("1 programs for 7 shapes of sampler calls compiled beforehand")
    assert lines[2:] == ["programs compiled in 4 steps after 1 of warm-up: 1", "  step 3: jit(late_program)"]


@pytest.mark.slow
def test_repeating_a_ragged_step_compiles_nothing():
    step = RaggedSteps()
    step(0)
    state = step.rng.bit_generator.state
    step(1)
    step.rng.bit_generator.state = state
    with compiled_programs() as names:
        step(1)
    assert names == []


@pytest.mark.slow
def test_the_benchmarks_run_without_peers(tmp_path, capsys):
    small = ["--rounds", "2", "--new", "4", "--prompt", "4", "--output", str(tmp_path)]
    sampling.main([*small, "--sizes", "tiny", "--mean", "3", "--longest", "6", "--hf_python", "", "--tunix_python", ""])
    step = ["--size", "tiny", "--prompts", "2", "--group", "2", "--examples", "4", "--trl_python", ""]
    grpo_step.main([*small, *step])
    sampled = json.loads((tmp_path / "sampling.json").read_text())["sizes"]["tiny"]
    assert sampled["greedy"]["agreement"] == {"ours": 1.0}
    assert len(sampled["ragged"]["peers"]["ours"]["values"]) == 2 and sampled["ragged"]["ratios"] == {}
    stepped = json.loads((tmp_path / "grpo_step.json").read_text())
    assert stepped["work"]["new_tokens"] == 16 and stepped["ours_split_s"]["time/draft_s"] > 0
    assert "tiny, equal lengths" in (tmp_path / "sampling.md").read_text()
