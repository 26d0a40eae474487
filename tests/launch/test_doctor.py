"""`ditto-jax doctor`: what it finds on a machine, what it warns of, and what it never prints."""

from __future__ import annotations

import jax
import pytest

from ditto_jax import canaries
from ditto_jax.config import RunConfig
from ditto_jax.judge.config import JudgeConfig
from launch.cli import main
from launch.machine import facts, version_warning

SECRET = "sk-do-not-print-this-key"


def found(config: RunConfig | None = None) -> dict[str, tuple[str, str]]:
    return {fact.topic: (fact.value, fact.warning) for fact in facts(config or RunConfig())}


def run(capsys, monkeypatch, *words: str) -> tuple[int, str]:
    monkeypatch.setenv("COLUMNS", "200")
    code = main(["doctor", *words])
    return code, capsys.readouterr().out


def test_doctor_lists_the_machine_and_its_canaries(capsys, monkeypatch):
    told = [canaries.Canary("first", True, "fine", "-"), canaries.Canary("second", True, "fine too", "-")]
    monkeypatch.setattr(canaries, "CANARIES", tuple(lambda one=one: one for one in told))
    code, out = run(capsys, monkeypatch)
    assert code == 0
    for topic in (
        "python",
        "jax, jaxlib, flax",
        "devices",
        "memory",
        "disk at output_dir",
        "judge",
        "packaged policies",
    ):
        assert topic in out
    assert f"{jax.device_count()} x cpu" in out
    assert "fine too" in out
    assert "2 of 2 canaries hold" in out


def test_a_failing_canary_fails_doctor_and_says_what_to_do(capsys, monkeypatch):
    broken = canaries.Canary("sums", False, "5 instead of 4", "install another jaxlib")
    monkeypatch.setattr(canaries, "CANARIES", (lambda: broken,))
    code, out = run(capsys, monkeypatch)
    assert code == 1
    for part in ("FAILED", "5 instead of 4", "what to do: install another jaxlib", "0 of 1"):
        assert part in out


def test_canaries_can_be_skipped(capsys, monkeypatch):
    monkeypatch.setattr(canaries, "CANARIES", (lambda: pytest.fail("a canary ran"),))
    assert run(capsys, monkeypatch, "--skip_canaries")[0] == 0


def test_the_judge_is_named_with_the_origin_of_its_address_and_never_with_its_key(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    words = ("--skip_canaries", "--judge.kind", "openai", "--judge.model", "critic")
    _, out = run(capsys, monkeypatch, *words)
    assert "model critic, http://localhost:8000/v1 (from environment variable OPENAI_BASE_URL)" in out
    assert "environment variable OPENAI_API_KEY" in out
    assert SECRET not in out
    _, out = run(capsys, monkeypatch, *words, "--judge.base_url", "http://localhost:9000/v1")
    assert "http://localhost:9000/v1 (from judge.base_url)" in out


def test_a_judge_without_an_address_is_a_warning():
    _, warning = found(RunConfig(judge=JudgeConfig(kind="openai", model="critic")))["judge"]
    assert "OPENAI_BASE_URL" in warning
    assert found()["judge"] == ("rules (embedded)", "")


def test_data_is_listed_by_task(monkeypatch, tmp_path):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    assert "not set" in found()["SOUL_DATA_DIR"][0]
    monkeypatch.setenv("SOUL_DATA_DIR", str(tmp_path / "absent"))
    assert "no such folder" in found()["SOUL_DATA_DIR"][1]
    (tmp_path / "hitom").mkdir()
    (tmp_path / "hitom" / "data.json").write_text("{}")
    monkeypatch.setenv("SOUL_DATA_DIR", str(tmp_path))
    value, warning = found()["SOUL_DATA_DIR"]
    assert value == f"{tmp_path}: hitom"
    assert "paratomi" in warning


def test_disk_is_measured_where_the_run_will_be_written(tmp_path):
    value, warning = found(RunConfig(output_dir=str(tmp_path / "not" / "yet" / "there")))["disk at output_dir"]
    assert "GiB free" in value
    assert "not writable" not in warning


@pytest.mark.parametrize(
    ("jax_version", "flax_version", "good"),
    [
        ("0.10.2", "0.12.8", True),
        ("0.9.2", "0.12.6", True),
        ("0.12.0.1", "0.12.12", True),
        ("0.10.2", "0.12.12", False),
        ("0.12.0.1", "0.12.8", False),
        ("0.11.1", "0.12.12", False),
        ("0.8.0", "0.12.6", False),
        ("0.13.0", "0.12.12", False),
    ],
)
def test_version_pairs_known_good_pass_and_others_are_warned_of(jax_version, flax_version, good):
    assert (version_warning(jax_version, flax_version) == "") is good
