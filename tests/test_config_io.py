"""Files and defaults become one config; every mistake names its key and what would work."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.ablation.config import AblationConfig
from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from ditto_jax.config_io import explain, find_config, flatten, load_config, merge, to_plain, to_yaml
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.sft_run import SFTConfig
from ditto_jax.update.state import OptimizerConfig

PRESETS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str | bytes) -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_round_trips(preset, tmp_path):
    keys = yaml.safe_load(preset.read_text())
    cls = SFTConfig if "stages" in keys else AblationConfig if "arms" in keys else RunConfig
    config, origin = load_config(cls, [str(preset)])
    assert set(origin.values()) == {str(preset)}
    again, _ = load_config(cls, [write(tmp_path, "resolved.yaml", to_yaml(config))])
    assert again == config


def test_presets_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart.yaml").is_file()
    assert find_config("configs/quickstart.yaml").read_text() == find_config("quickstart.yaml").read_text()
    own = write(tmp_path, "quickstart.yaml", "seed: 3\n")
    assert find_config("quickstart.yaml").read_text() == Path(own).read_text()
    with pytest.raises(
        MissingInputError, match=r"--config nope\.yaml: no such file or packaged preset; presets: .*quick"
    ):
        find_config("nope.yaml")


def test_later_files_override_earlier_ones_key_by_key(tmp_path):
    first = write(tmp_path, "a.yaml", "seed: 1\nrollout: {prompts_per_step: 4, num_generations: 4}\n")
    second = write(tmp_path, "b.yaml", "rollout: {num_generations: 2}\nprofile_steps: [3]\n")
    config, origin = load_config(RunConfig, [first, second])
    assert (config.seed, config.rollout.prompts_per_step, config.rollout.num_generations) == (1, 4, 2)
    assert config.profile_steps == (3,)
    assert origin == {
        "seed": first,
        "rollout.prompts_per_step": first,
        "rollout.num_generations": second,
        "profile_steps": second,
    }


def test_lists_are_replaced_whole(tmp_path):
    first = write(tmp_path, "a.yaml", "tasks: [{name: hitom, source: {limit: 2}}, {name: paratomi}]\n")
    second = write(tmp_path, "b.yaml", "tasks: [{name: paratomi, source: {limit: 3}}]\n")
    config, _ = load_config(RunConfig, [first, second])
    assert config.tasks == (TaskConfig("paratomi", source=SourceConfig(limit=3)),)


def test_every_value_is_explained_by_where_it_came_from(tmp_path):
    file = write(tmp_path, "a.yaml", "seed: 1\nsampler: {prefix: [8, 16]}\n")
    config, origin = load_config(RunConfig, [file])
    flagged = dataclasses.replace(config, run_name="flagged", seed=2)
    lines = explain(flagged, origin, config).splitlines()
    assert "seed: 2  # command line" in lines
    assert "run_name: 'flagged'  # command line" in lines
    assert f"sampler.prefix: [8, 16]  # {file}" in lines
    assert "optimizer.schedule: 'constant'  # default" in lines
    assert len(lines) == len(flatten(to_plain(flagged)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", r"sed: unknown key; did you mean 'seed'\?"),
        ("rollout: {num_generation: 4}", r"rollout\.num_generation: unknown key; did you mean 'num_generations'\?"),
        ("zzz: 1", r"zzz: unknown key; known keys: .*seed"),
        ("seed: one", r"seed='one': Input should be a valid integer"),
        ("optimizer: {learning_rate: 5e-6x}", r"optimizer\.learning_rate='5e-6x': Input should be a valid number"),
        ("dtype: int8", r"dtype='int8': .*float32"),
        ("resume: maybe", r"resume='maybe'"),
        ("rollout: 3", r"rollout=3"),
        ("- seed: 1", r"top level must be a mapping of settings, found list"),
        ("seed: [1", r"not valid YAML"),
        ("run_name: 2026-13-01", r"not valid YAML: month must be in 1\.\.12"),
        (f"seed: {'9' * 5000}", r"not valid YAML"),
        ("[" * 5000, r"not valid YAML: nested too deeply"),
        ("run_name: caf\xe9".encode("latin-1"), r"not valid YAML: .*utf-8"),
        ("tasks: [{name: hitom, options: &a {b: *a}}]", r"not valid YAML: Circular reference"),
        ("optimizer: {learning_rate: .nan}", r"optimizer\.learning_rate=nan: must be positive"),
        ("optimizer: {beta2: nan}", r"optimizer\.beta2=nan: must be a number; leave it out for the default"),
        ("tasks: [{name: hitom, weight: .nan}]", r"tasks\[0\]\.weight=nan: must be a number"),
    ],
)
def test_a_mistake_in_a_file_names_its_key(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, [write(tmp_path, "a.yaml", text)])


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    config, _ = load_config(RunConfig, [write(tmp_path, "a.yaml", "optimizer: {learning_rate: 5e-6}")])
    assert config.optimizer.learning_rate == 5e-6


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_config(RunConfig, [write(tmp_path, "a.yaml", "")])[0] == RunConfig()


TASK = TaskConfig("hitom", source=SourceConfig(limit=2))
IMPOSSIBLE: list[tuple[Any, str]] = [
    (lambda: SourceConfig(kind="files"), r"source\.kind=files: set source\.path"),
    (lambda: SourceConfig(kind="generated"), r"set source\.limit"),
    (lambda: SourceConfig(limit=0), r"source\.limit=0: must be at least 1"),
    (lambda: TaskConfig("hitom", weight=0), r"tasks\.hitom\.weight=0: must be positive"),
    (lambda: TaskConfig("hitom", label="../up"), r"tasks\.hitom\.label='\.\./up'.*plain folder name"),
    (lambda: RolloutConfig(prompts_per_step=0), r"rollout\.prompts_per_step=0"),
    (lambda: TrainConfig(max_steps=0), r"train\.max_steps=0: must be at least 1"),
    (lambda: EvalConfig(num_samples=4), r"evaluation\.num_samples: greedy samples are all alike"),
    (lambda: RunConfig(rollout=RolloutConfig(max_completion_length=0)), r"max_completion_length=0"),
    (lambda: RunConfig(save_steps=0), r"save_steps=0"),
    (lambda: RunConfig(tasks=(TASK, TASK)), r"tasks: labels \['hitom', 'hitom'\] must differ; set `label`"),
    (lambda: RunConfig(evaluation=EvalConfig(tasks=(TASK, TASK))), r"evaluation\.tasks: labels"),
    (lambda: RunConfig(overwrite=True, resume="must"), r"overwrite with resume=must"),
    (lambda: RunConfig(run_name=".."), r"run_name='\.\.'"),
    (lambda: RunConfig(run_name="..\\up"), r"run_name=.*plain folder name"),
    (lambda: RunConfig(run_name="run\0"), r"run_name='run\\x00'.*plain folder name"),
    (lambda: RunConfig(run_name="\ud800"), r"run_name=.*plain folder name"),
    (lambda: RunConfig(run_name=" "), r"run_name=.*plain folder name"),
    (lambda: TaskConfig("hitom", label="up\\.."), r"label=.*plain folder name"),
    (lambda: OptimizerConfig(learning_rate=float("nan")), r"optimizer\.learning_rate=nan: must be positive"),
    (lambda: JudgeConfig(kind="openai"), r"judge\.model=None"),
    (lambda: SFTConfig(), r"stages: names \[\] must be distinct and at least one"),
]


@pytest.mark.parametrize(("make", "message"), IMPOSSIBLE)
def test_an_impossible_value_or_combination_is_refused_when_the_config_is_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


keys = st.sampled_from(["a", "b", "c"])
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=6
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_merging_keeps_the_upper_layer_and_what_it_does_not_mention(base, over):
    merged, upper = flatten(merge(base, over)), flatten(over)
    assert {key: merged[key] for key in upper} == upper
    for key, value in flatten(base).items():
        above = {".".join(parts) for parts in itertools.accumulate(([p] for p in key.split(".")), lambda a, b: a + b)}
        covered = above & set(upper) or any(name.startswith(f"{key}.") for name in upper)
        assert covered or merged[key] == value
