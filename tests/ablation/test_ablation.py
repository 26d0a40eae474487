"""An ablation: what it refuses, what it reads from runs, and that its figures are those of the runs."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import scipy.stats
from rich.console import Console

from ditto_jax.ablation.config import CollapseConfig
from ditto_jax.ablation.curves import collapses, read_curve
from ditto_jax.ablation.write import write_results
from ditto_jax.errors import ConfigError
from ditto_jax.evaluation.statistics import estimate_clustered
from tests.ablation_runs import STEPS, plan_of, settings, write_all, write_run


def results_of(plan) -> tuple[dict, str]:
    printed = io.StringIO()
    folder = write_results(plan, Console(file=printed, width=200, highlight=False))
    return json.loads((folder / "results.json").read_text()), printed.getvalue()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"arms": []}, "at least one"),
        ({"references": ["ppo"]}, "'ppo' is no arm"),
        ({"seeds": 3}, "set seeds to 4"),
        ({"updates": 3}, "measures nothing at step 3"),
        ({"updates": 6}, "ends before updates=6; set it to 6 or more"),
        ({"setting": {"evaluation": {"tasks": []}}}, "nothing is measured"),
        ({"score": {"without": ["0"]}}, "set score.breakdown too"),
        ({"arms": [{"name": "a", "settings": {"seed": 3}}], "references": []}, "arms.a.settings.seed"),
        ({"arms": [{"name": "a", "settings": {"objective": {"name": "gppo"}}}], "references": []}, "arms.a: objective"),
        ({"warm_starts": {"count": 0}}, "must be at least 1"),
    ],
)
def test_an_ablation_that_cannot_work_is_refused_with_the_rule(changes, rule, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(rule)):
        plan_of(tmp_path, **changes)


def test_the_plan_has_every_arm_with_every_seed_from_its_warm_start(tmp_path):
    plan = plan_of(tmp_path, seeds=4)
    assert [(run.arm, run.seed, run.warm_start) for run in plan.runs] == [
        (arm, seed, seed % 2) for seed in range(4) for arm in ("grpo", "ditto")
    ]
    for run in plan.runs:
        assert run.config.seed == run.seed and run.config.objective.name == run.arm
        assert run.config.model_name_or_path == str(tmp_path / "policies" / f"seed-{run.warm_start}")
        assert run.config.train.max_steps == (2 * STEPS if run.arm == "grpo" else STEPS)
    assert len({run.folder for run in plan.runs}) == 8
    assert [start.seed for start in plan.warm_starts] == [0, 1]


def test_the_hash_names_settings_and_not_places(tmp_path):
    digest = plan_of(tmp_path).digest
    (tmp_path / "elsewhere").mkdir()
    assert plan_of(tmp_path / "elsewhere").digest == digest
    assert (
        plan_of(tmp_path, setting={**settings(tmp_path)["setting"], "rollout": {"num_generations": 4}}).digest != digest
    )
    warm = {**settings(tmp_path)["warm_starts"], "settings": {"save_dtype": "float32"}}
    assert plan_of(tmp_path, warm_starts=warm).digest != digest


def test_a_curve_counts_the_samples_that_were_generated_and_leaves_out_what_is_not_the_score(tmp_path):
    plan = plan_of(tmp_path)
    run = plan.runs[1]
    write_run(run, {0: 0.2, 2: 0.6, 4: 0.8}, [8, 6, 6, 4])
    curve = read_curve(run, plan.config.score)
    assert [(p.updates, p.samples, p.tokens, p.n) for p in curve.points] == [
        (0, 0, 0, 8),
        (2, 14, 140, 8),
        (4, 24, 240, 8),
    ]
    assert curve.at("updates", 3) == pytest.approx(0.7)
    assert curve.at("samples", 7) == pytest.approx(0.4)
    assert curve.at("samples", 25) is None
    assert curve.gap == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_results_are_the_means_of_the_runs_at_equal_updates_and_at_equal_samples(tmp_path):
    plan = plan_of(tmp_path)
    write_all(plan)
    results, _ = results_of(plan)
    assert results["places"] == ["4 updates", "12 samples"]
    grpo, ditto = results["arms"]["grpo"], results["arms"]["ditto"]
    assert grpo["at"]["4 updates"]["mean"] == pytest.approx(0.5)
    half = scipy.stats.t.ppf(0.975, 1) * 0.1
    assert grpo["at"]["4 updates"]["high"] - 0.5 == pytest.approx(half)
    assert ditto["at"]["4 updates"]["mean"] == pytest.approx(0.8)
    # 12 samples: three steps of grpo, halfway between its evaluations; ditto is 12/14 of the way to its first.
    assert grpo["at"]["12 samples"]["mean"] == pytest.approx((0.35 + 0.45) / 2)
    assert ditto["at"]["12 samples"]["mean"] == pytest.approx(0.2 + 0.4 * 12 / 14)
    assert (grpo["samples_per_update"]["mean"], ditto["samples_per_update"]["mean"]) == (4, 6)
    assert (grpo["refined_per_update"]["mean"], ditto["refined_per_update"]["mean"]) == (0, 3)
    assert grpo["gap"]["first"] is None and ditto["gap"]["last"]["mean"] == pytest.approx(0.2)
    assert results["differences"]["grpo"]["ditto"]["4 updates"]["mean"] == pytest.approx(0.3)
    assert results["runs"] == {"planned": 4, "finished": 4} and results["missing"] == []
    assert len(results["config_hash"]) == 12


def test_unfinished_runs_are_named_and_are_in_no_figure(tmp_path):
    plan = plan_of(tmp_path)
    write_run(plan.runs[0], {0: 0.2, 4: 0.4}, [4] * 4)
    write_run(plan.runs[1], {0: 0.2}, [4], state="preempted")
    results, printed = results_of(plan)
    assert results["missing"] == ["ditto, seed 0", "grpo, seed 1", "ditto, seed 1"]
    assert results["arms"]["ditto"]["at"]["4 updates"] is None
    alone = {"mean": 0.4, "low": None, "high": None, "spread": None, "seeds": 1, "warm_starts": 1}
    assert results["arms"]["grpo"]["at"]["4 updates"] == alone
    assert results["differences"]["grpo"] == {}
    assert "not finished, and in no figure: ditto, seed 0" in printed


def test_a_place_that_one_run_does_not_reach_has_no_figure(tmp_path):
    plan = plan_of(tmp_path, samples=[28])
    write_all(plan)
    results, _ = results_of(plan)
    assert results["arms"]["grpo"]["at"]["28 samples"] is not None
    assert results["arms"]["ditto"]["at"]["28 samples"] is None


def test_tables_page_and_picture_say_the_same(tmp_path):
    plan = plan_of(tmp_path)
    write_all(plan)
    results, printed = results_of(plan)
    page = (plan.folder / "ablation.md").read_text()
    half = scipy.stats.t.ppf(0.975, 1) * 0.1
    assert f"0.500 ± {half:.3f}" in printed and f"| 0.500 ± {half:.3f} |" in page
    assert "+0.500 to +0.200" in printed and "+0.500 to +0.200" in page
    assert results["config_hash"] in page and "No run collapsed" in page
    picture = ElementTree.parse(plan.folder / "ablation.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "grpo 0.500; ditto 0.800" in picture.attrib["aria-label"]
    text = (plan.folder / "ablation.svg").read_text()
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) <= set(re.findall(r"--([a-z0-9-]+):", text))
    before = {p.name: p.read_bytes() for p in plan.folder.iterdir() if p.is_file()}
    results_of(plan)
    assert {p.name: p.read_bytes() for p in plan.folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("scores", "entropy", "why"),
    [
        ({0: 0.2, 4: 0.5}, [0.4, 0.4, 0.4, 0.3], None),
        ({0: 0.2, 2: 0.6, 4: 0.3}, None, "the score fell from 0.600 at update 2 to 0.300"),
        ({0: 0.2, 4: 0.5}, [0.6, 0.6, 0.6, 0.01, 0.01, 0.01], "entropy fell from 0.6 to 0.01"),
        ({0: 0.2, 4: 0.5}, [0.6, None, 0.6, 0.6], "no finite number from update 2"),
    ],
)
def test_a_collapse_is_named_and_a_healthy_run_is_not(scores, entropy, why, tmp_path):
    plan = plan_of(tmp_path)
    run = plan.runs[0]
    write_run(run, scores, [4] * len(entropy or [0] * 4), entropy)
    found = collapses(read_curve(run, plan.config.score), CollapseConfig())
    assert found == [] if why is None else (len(found) == 1 and why in found[0])
    results, printed = results_of(plan)
    assert [(one["arm"], one["seed"]) for one in results["collapsed"]] == ([] if why is None else [("grpo", 0)])
    assert (why is None) == ("warning: grpo, seed 0" not in printed)


def test_seeds_of_one_warm_start_count_as_one():
    apart = estimate_clustered([0.1, 0.3, 0.5, 0.7], [0, 1, 2, 3])
    together = estimate_clustered([0.1, 0.3, 0.5, 0.7], [0, 0, 1, 1])
    assert apart is not None and together is not None
    assert apart.value == together.value == pytest.approx(0.4)
    assert (apart.n, together.n) == (4, 2)
    assert together.high - 0.4 == pytest.approx(scipy.stats.t.ppf(0.975, 1) * 0.2)  # means .2 and .6
    assert estimate_clustered([], []) is None
    alone = estimate_clustered([0.1, 0.3], [0, 0])
    assert alone is not None and alone.high == float("inf")


@pytest.mark.parametrize("name", ["ablation_tom.yaml", "ablation_hard.yaml"])
def test_the_shipped_ablations_evaluate_on_stories_that_no_run_is_trained_on(name):
    from ditto_jax.ablation.config import AblationConfig
    from ditto_jax.config_io import load_config

    config, _ = load_config(AblationConfig, [str(Path(__file__).parents[2] / "configs" / name)])
    assert config.seeds >= 20 and config.warm_starts.count > 1
    controls = {arm.settings.get("judge", {}).get("feedback_content") for arm in config.arms}
    assert {"content_free", "shuffled"} <= controls
    for task in config.setting["evaluation"]["tasks"]:
        assert task["source"]["split"] == "test" and task["source"]["seed"] == 20260
