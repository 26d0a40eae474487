"""The table of methods: each entry says what its paper says; own objectives in YAML and Python; the document agrees."""

from __future__ import annotations

import dataclasses
import math
import re
import runpy
from pathlib import Path

import pytest
import yaml

from ditto_jax.config import RunConfig
from ditto_jax.config_io import load_config, merge, to_plain, to_yaml
from ditto_jax.errors import ConfigError
from ditto_jax.objective import (
    OBJECTIVES,
    Kl,
    Mismatch,
    Nll,
    Objective,
    ObjectiveConfig,
    PgClip,
    Pool,
    Teacher,
    Term,
    TokenLoss,
    make_objective,
    register,
    role_names,
)
from ditto_jax.strict import build
from ditto_jax.types import ViewRole

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB
DOCUMENT = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")

# name → pools as roles/centre/scale, terms as kind(roles), read off the papers' losses.
METHODS = {
    "grpo": (["draft mean std"], ["pg_clip(draft)"]),
    "dr_grpo": (["draft mean none"], ["pg_clip(draft)"]),
    "dapo": (["draft mean std"], ["pg_clip(draft)"]),
    "rloo": (["draft loo none"], ["reinforce(draft)"]),
    "gspo": (["draft mean std"], ["pg_clip(draft)"]),
    "cispo": (["draft mean std"], ["cispo(draft)"]),
    "ditto": (
        ["draft+refined_plain mean std", "refined_fb mean std"],
        ["pg_clip(draft+refined_plain)", "pg_clip(refined_fb)"],
    ),
    "ditto_no_fb": (["draft+refined_plain mean std"], ["pg_clip(draft+refined_plain)"]),
    "ditto_y1x": (["refined_plain mean std"], ["pg_clip(refined_plain)"]),
    "ditto_sep": (
        ["draft mean std", "refined_plain mean std", "refined_fb mean std"],
        ["pg_clip(draft+refined_plain)", "pg_clip(refined_fb)"],
    ),
    "ditto_release": (
        ["draft+refined_plain mean std", "refined_fb mean std"],
        ["pg_clip(draft+refined_plain)", "pg_clip(refined_fb)"],
    ),
    "rltf_sd": (
        ["draft mean none", "refined_fb mean none", "refined_plain mean none"],
        ["pg_clip(draft+refined_fb)", "reinforce(refined_plain)"],
    ),
    "rltf_fm": (["draft mean none", "refined_fb mean none"], ["pg_clip(draft+refined_fb)", "nll(critique)"]),
    "erl": (
        ["draft mean std", "reflection mean std", "refined_fb mean std", "refined_plain none none"],
        ["pg_clip(draft+refined_fb+reflection)", "pg_clip(refined_plain)"],
    ),
    "critique_grpo": (["draft+refined_plain mean none"], ["pg_clip(draft)", "shaped(refined_plain)"]),
    "herl": (["draft+refined_plain mean std"], ["pg_clip(draft)", "shaped(refined_plain)"]),
    "reflect_retry": (["reflection mean std"], ["pg_clip(reflection)"]),
    "sdpo_token": ([], ["kl(draft)"]),
    "sdpo": ([], ["kl(draft)"]),
    "sdpo_logits": ([], ["kl(draft)"]),
    "sdpo_grpo": (["draft mean std"], ["pg_clip(draft)", "kl(draft)"]),
    "opcd": ([], ["kl(draft)"]),
    "sdft": ([], ["kl(draft)"]),
    "fcp": ([], ["nll(draft_fb)"]),
}


def test_the_table_has_every_method_and_no_other():
    assert set(METHODS) == set(OBJECTIVES)


@pytest.mark.parametrize("name", METHODS)
def test_entries_are_the_pools_and_terms_of_their_papers(name):
    objective = OBJECTIVES[name]
    pools = [f"{role_names(pool.roles)} {pool.centre} {pool.scale}" for pool in objective.pools]
    terms = [f"{term.loss.kind}({role_names(term.roles)})" for term in objective.terms]
    assert (pools, terms) == METHODS[name]


def test_numbers_of_the_papers_are_in_their_entries():
    def loss(name: str, term: int = 0) -> TokenLoss:
        return OBJECTIVES[name].terms[term].loss

    assert loss("gspo") == PgClip(3e-4, 4e-4, ratio="seq")
    assert OBJECTIVES["gspo"].aggregation == "seq_mean"
    assert loss("dr_grpo") == PgClip(0.2, 0.2)
    assert OBJECTIVES["dr_grpo"].aggregation == "seq_const"
    assert (OBJECTIVES["dapo"].counted_rows, OBJECTIVES["dapo"].truncated) == ("live", "penalise")
    assert OBJECTIVES["rltf_sd"].pools[2].stat_roles == (DRAFT,)
    assert OBJECTIVES["rltf_sd"].pools[0].credit == 0.1
    distil = OBJECTIVES["rltf_sd"].terms[1]
    assert (distil.coef, distil.token_floor, distil.neg_floor) == (0.1, -5.0, None)
    assert OBJECTIVES["rltf_fm"].terms[1].coef == 0.1
    assert OBJECTIVES["erl"].pools[3].transform == "positive_part"
    assert loss("critique_grpo") == PgClip(math.inf, math.inf)
    assert [getattr(loss(name, 1), "gamma", None) for name in ("critique_grpo", "herl")] == [0.1, 0.1]
    assert [getattr(loss(name, 1), "of", None) for name in ("critique_grpo", "herl")] == ["p", "rho"]
    assert (OBJECTIVES["herl"].pools[0].credit, OBJECTIVES["herl"].pools[0].credit_of) == (0.05, "gain")
    assert {OBJECTIVES[name].refinement.keep for name in ("critique_grpo", "herl")} == {"best"}
    assert {OBJECTIVES[name].refinement.words for name in ("erl", "reflect_retry")} == {"policy"}
    assert loss("sdpo_token") == Kl(alpha=1.0, top_k=1, sampled=True, is_clip=2.0)
    assert loss("sdpo") == loss("sdpo_grpo", 1) == Kl(alpha=1.0, top_k=20, tail=True, is_clip=2.0)
    assert {OBJECTIVES[name].teacher for name in ("sdpo_token", "sdpo", "sdpo_logits", "sdpo_grpo")} == {
        Teacher("ema", 0.05)
    }
    assert (loss("opcd"), OBJECTIVES["opcd"].teacher) == (Kl(top_k=256, tail=False, is_clip=None), Teacher("frozen"))
    assert OBJECTIVES["sdft"].teacher == Teacher("ema", 0.01)
    assert (OBJECTIVES["sdft"].terms[0].skip_first, OBJECTIVES["sdft"].terms[0].mismatch) == (3, Mismatch())
    assert OBJECTIVES["fcp"].refinement.draft_feedback
    release = OBJECTIVES["ditto_release"]
    assert {pool.singleton for pool in release.pools} == {"raw"}
    assert {term.neg_floor for term in release.terms} == {None}
    assert {getattr(term.loss, "dual_clip", None) for term in release.terms} == {10.0}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_only_names_an_entry_trains_that_entry(name):
    assert make_objective(ObjectiveConfig(name=name)) == OBJECTIVES[name]


def test_settings_change_what_they_name_and_nothing_else():
    changed = make_objective(ObjectiveConfig(name="sdpo_grpo", top_k=50, epsilon=0.1, teacher_coef=0.5))
    ratio, teacher = changed.terms
    assert ratio == dataclasses.replace(OBJECTIVES["sdpo_grpo"].terms[0], loss=PgClip(epsilon=0.1))
    assert teacher.loss == Kl(top_k=50)
    assert teacher.coef == 0.5
    assert changed.teacher == OBJECTIVES["sdpo_grpo"].teacher


def test_a_scale_reaches_pools_that_compare_and_leaves_raw_rewards_raw():
    scales = [pool.scale for pool in make_objective(ObjectiveConfig(name="erl", scale="batch_std")).pools]
    assert scales == ["batch_std", "batch_std", "batch_std", "none"]


def test_lengths_go_where_nothing_reads_them_any_more():
    assert make_objective(ObjectiveConfig(name="dr_grpo", aggregation="token_mean")).response_length is None
    kept = make_objective(ObjectiveConfig(name="dapo", truncated="keep"))
    assert (kept.response_length, kept.overlong_buffer) == (None, None)


def test_a_mismatch_can_be_added_changed_and_taken_away():
    added = make_objective(ObjectiveConfig(name="rltf_fm", mismatch="token_mask", mismatch_low=0.5, mismatch_high=2.5))
    assert [term.mismatch for term in added.terms] == [Mismatch("token_mask", 0.5, 2.5), None]  # critiques: none
    assert make_objective(ObjectiveConfig(name="sdft", mismatch_high=5.0)).terms[0].mismatch == Mismatch(high=5.0)
    assert make_objective(ObjectiveConfig(name="sdft", mismatch="none")).terms[0].mismatch is None


def test_a_teacher_of_other_weights_loses_the_rate_of_the_average():
    assert make_objective(ObjectiveConfig(name="sdft", teacher="frozen")).teacher == Teacher("frozen")
    assert make_objective(ObjectiveConfig(name="opcd", teacher="ema", teacher_rate=0.2)).teacher == Teacher("ema", 0.2)


OWN = """
objective:
  name: mine
  pools: [{roles: [draft, refined_plain], stat_roles: [draft], scale: none}]
  terms:
    - {loss: {kind: pg_clip, epsilon: .inf, epsilon_high: .inf}, roles: [draft]}
    - {loss: {kind: shaped, gamma: 0.2, of: rho}, roles: [refined_plain], coef: 0.5, mismatch: {high: 3.0}}
    - {loss: {kind: kl, alpha: 0.5, top_k: 8}, roles: [draft], coef: 0.3}
    - {loss: {kind: nll}, roles: [critique], coef: 0.1, aggregation: seq_mean}
  teacher: ema
  teacher_rate: 0.2
"""


def test_an_objective_in_yaml_is_the_one_in_python(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN, encoding="utf-8")
    config, _ = load_config(RunConfig, [str(path)])
    objective = make_objective(config.objective)
    assert objective.name == "mine"
    assert objective.pools == (Pool((DRAFT, PLAIN), stat_roles=(DRAFT,), scale="none"),)
    assert objective.terms[0] == Term(PgClip(math.inf, math.inf), (DRAFT,))
    assert objective.terms[1].mismatch == Mismatch(high=3.0)
    assert objective.terms[2] == Term(Kl(alpha=0.5, top_k=8), (DRAFT,), coef=0.3)
    assert objective.terms[3] == Term(Nll(), (ViewRole.CRITIQUE,), coef=0.1, aggregation="seq_mean")
    assert objective.teacher == Teacher("ema", 0.2)
    assert hash(objective) == hash(make_objective(config.objective))


def test_a_saved_objective_is_read_back_equal(tmp_path):
    path, saved = tmp_path / "mine.yaml", tmp_path / "saved.yaml"
    path.write_text(OWN, encoding="utf-8")
    config, _ = load_config(RunConfig, [str(path)])
    saved.write_text(to_yaml(config), encoding="utf-8")
    again, _ = load_config(RunConfig, [str(saved)])
    assert again == config
    assert make_objective(again.objective) == make_objective(config.objective)


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_can_be_written_in_yaml(name):
    """What Python can say, YAML can say: each entry spelled out as pools and terms is the entry again."""
    entry = OBJECTIVES[name]
    flat = ("aggregation", "denominator", "counted_rows", "response_length", "truncated", "overlong_buffer")
    plain = to_plain(ObjectiveConfig(name="mine", pools=entry.pools, terms=entry.terms))
    plain |= {field: getattr(entry, field) for field in flat}
    plain |= dataclasses.asdict(entry.refinement)
    if "teacher" in entry.passes:
        plain |= {"teacher": entry.teacher.weights, "teacher_rate": entry.teacher.rate}
    read = build(ObjectiveConfig, yaml.safe_load(yaml.safe_dump(plain)), "objective")
    assert dataclasses.replace(make_objective(read), name=name) == entry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: mine, terms: [{loss: {kind: pgclip}, roles: [draft]}]}", r"terms\[0\]\.loss\.kind='pgclip': must be"),
        ("{name: mine, terms: [{loss: {alpha: 1}, roles: [draft]}]}", r"loss\.kind=None: must be one of pg_clip"),
        ("{name: mine, terms: [{loss: {kind: kl, epsilon: 1}, roles: [draft]}]}", r"loss\.epsilon: unknown key"),
        ("{name: mine, terms: [{loss: {kind: nll}, roles: [drft]}]}", "unknown role 'drft'; did you mean 'draft'"),
        ("{name: mine, terms: [{loss: {kind: nll}, roles: [critique], coeff: 2}]}", r"coeff: unknown key; .*'coef'"),
        ("{name: mine, terms: [{roles: [draft]}]}", r"terms\.0\.loss.*Field required"),
        ("{name: mine, pools: [{roles: [draft], center: mean}]}", r"center: unknown key; did you mean 'centre'"),
        ("{name: mine, pools: [{roles: [draft]}]}", "at least one term"),
        ("{name: grpo, terms: [{loss: {kind: kl}, roles: [draft]}]}", "the table has an entry .* my_grpo works"),
        ("{epsilon: small}", r"objective\.epsilon='small': Input should be a valid number"),
    ],
)
def test_objectives_that_yaml_gets_wrong_are_refused_with_the_key(text, message):
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, merge(to_plain(RunConfig()), {"objective": {**yaml.safe_load(text)}}))


def use_a_copy_of_the_table(monkeypatch) -> None:
    """What a test registers is gone after it."""
    table = dict(OBJECTIVES)
    monkeypatch.setattr("ditto_jax.objective.table.OBJECTIVES", table)
    monkeypatch.setattr("ditto_jax.objective.config.OBJECTIVES", table)


def test_a_registered_objective_is_found_by_name_and_takes_settings(monkeypatch):
    use_a_copy_of_the_table(monkeypatch)
    own = register(Objective("mine", pools=(Pool((DRAFT,)),), terms=(Term(PgClip(), (DRAFT,)),)))
    assert register(own) is own
    assert make_objective(ObjectiveConfig(name="mine")) == own
    assert make_objective(ObjectiveConfig(name="mine", epsilon=0.1)).terms[0].loss == PgClip(epsilon=0.1)
    with pytest.raises(ConfigError, match="taken by another objective; my_grpo works"):
        register(dataclasses.replace(own, name="grpo", aggregation="seq_mean"))
    assert "mine" not in OBJECTIVES


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_document_has_a_row_for_every_entry():
    rows = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert rows - {role.name.lower() for role in ViewRole} == set(OBJECTIVES)
    assert rows >= {role.name.lower() for role in ViewRole}


@pytest.mark.parametrize("text", _blocks("yaml"))
def test_yaml_examples_of_the_document_are_configurations(text):
    config = build(RunConfig, merge(to_plain(RunConfig()), yaml.safe_load(text)))
    assert make_objective(config.objective).terms


@pytest.mark.parametrize("text", _blocks("python"))
def test_python_examples_of_the_document_run(text, monkeypatch, tmp_path):
    use_a_copy_of_the_table(monkeypatch)
    example = tmp_path / "example.py"
    example.write_text(text, encoding="utf-8")
    assert any(isinstance(value, Objective) for value in runpy.run_path(str(example)).values())


def test_the_document_has_examples():
    assert len(_blocks("yaml")) >= 3
    assert _blocks("python")
