"""The command line: help, settings from files and flags, messages for mistakes, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import yaml

from ditto_jax import errors
from launch import cli, failures
from launch.cli import main
from launch.failures import EXIT_CODES, guarded, out_of_memory


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def settings(text: str) -> dict[str, tuple[str, str]]:
    """What --print_config printed: name → (value, where it came from)."""
    lines = [line.partition(": ") for line in text.splitlines()]
    return {name: (value.rpartition("  # ")[0], value.rpartition("  # ")[2]) for name, _, value in lines}


def test_help_lists_verbs_exit_codes_and_examples(capsys):
    code, out, err = run(capsys, "--help")
    assert code == 0
    assert not err
    assert all(f"  {verb} " in out for verb in ("sft", "train", "eval", "sample", "report", "doctor"))
    assert all(f"{number:>3}  {meaning}" in out for number, meaning in EXIT_CODES.items())
    assert "ditto-jax train --config configs/quickstart.yaml" in out


def test_every_exit_code_of_the_errors_is_documented():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DittoError)]
    assert len(kinds) > 5
    assert {kind.exit_code for kind in kinds} <= set(EXIT_CODES)


def test_no_verb_is_an_error_that_shows_the_help_on_stderr(capsys):
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "verbs:" in err


def test_a_mistyped_verb_is_answered_with_the_nearest(capsys):
    code, _, err = run(capsys, "trian")
    assert code == 2
    assert err == "ditto-jax: error: unknown verb 'trian'; did you mean 'train'?\n"


def test_python_m_is_the_same_program_and_help_imports_nothing_heavy():
    program = (
        "import runpy, sys; sys.argv = ['ditto_jax', '--help']\n"
        "try: runpy.run_module('ditto_jax', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'jax', 'numpy', 'pydantic', 'transformers', 'tyro', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ditto-jax VERB")
    assert time.monotonic() - started < 5  # takes a twentieth of a second; the limit only catches a slow import


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: ditto-jax {verb}")


def test_flags_override_files_and_print_config_says_so(capsys, tmp_path):
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("seed: 3\noptimizer: {learning_rate: 1.0e-4, eps: 1.0e-6}\nrun_name: base\n")
    over.write_text("optimizer: {learning_rate: 2.0e-4}\nrun_name: over\n")
    code, out, _ = run(
        capsys, "train", "--config", str(base), "--config", str(over), "--run_name", "flag", "--print_config"
    )
    shown = settings(out)
    assert code == 0
    assert shown["run_name"] == ("'flag'", "command line")
    assert shown["optimizer.learning_rate"] == ("0.0002", str(over))
    assert shown["optimizer.eps"] == ("1e-06", str(base))
    assert shown["seed"] == ("3", str(base))
    assert shown["optimizer.beta1"] == ("0.9", "default")


def test_underscores_and_hyphens_are_the_same(capsys):
    with_underscores = run(capsys, "train", "--rollout.num_generations", "4", "--print_config")
    with_hyphens = run(capsys, "train", "--rollout.num-generations=4", "--print-config")
    assert with_underscores == with_hyphens
    assert settings(with_hyphens[1])["rollout.num_generations"] == ("4", "command line")


def test_what_print_config_shows_can_be_a_config_again(capsys, tmp_path):
    words = ("train", "--seed", "5", "--rollout.stop_strings", "a", "b", "--print_config")
    shown = settings(run(capsys, *words)[1])
    again = tmp_path / "again.yaml"
    again.write_text("".join(f"{name}: {value}\n" for name, (value, _) in shown.items() if "." not in name))
    assert yaml.safe_load(again.read_text())["seed"] == 5
    code, out, _ = run(capsys, "train", "--config", str(again), "--print_config")
    assert code == 0
    assert settings(out)["seed"] == ("5", str(again))


def test_lists_of_records_are_one_flag_that_takes_yaml(capsys):
    code, out, _ = run(capsys, "train", "--tasks", "[{name: hitom, weight: 2}]", "--print_config")
    assert code == 0
    value, origin = settings(out)["tasks"]
    assert origin == "command line"
    assert "'weight': 2.0" in value


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (
            ["--rollout.num_generation", "4"],
            2,
            ["--rollout.num_generation;", "did you mean --rollout.num_generations?"],
        ),
        (["--learning_rate", "1e-4"], 2, ["unknown flag --learning_rate", "--optimizer.learning_rate"]),
        (["--qqqq", "1"], 2, ["unknown flag --qqqq", "--help"]),
        (["quickstart.yaml"], 2, ["unexpected argument 'quickstart.yaml'"]),
        (["--rollout.num_generations", "1"], 2, ["rollout.num_generations=1", "set it to 8"]),
        (["--objective.name", "dito"], 2, ["objective.name='dito'", "'ditto'"]),
        (["--tasks", "[{nam: hitom}]"], 2, ["nam: unknown key", "'name'"]),
        (["--tasks", "{name: hitom}"], 2, ["list of mappings"]),
        (["--config", "absent.yaml"], 3, ["absent.yaml: no such file", "quickstart.yaml"]),
        (["--config"], 2, ["--config: name a YAML file"]),
        (["--model_name_or_path", "no/folder", "--tasks", "[{name: hitom}]"], 3, ["no/folder", "no such folder"]),
    ],
)
def test_a_mistake_gets_one_message_and_its_exit_code(capsys, tmp_path, monkeypatch, words, code, parts):
    monkeypatch.chdir(tmp_path)
    ended, out, err = run(capsys, "train", *words)
    assert ended == code, err
    assert not out
    assert err.startswith("ditto-jax: error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_value_of_the_wrong_type_names_the_flag(capsys):
    code, _, err = run(capsys, "train", "--seed", "seven")
    assert code == 2
    assert "--seed" in err
    assert "seven" in err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optimiser: {learning_rate: 1.0}", ["optimiser: unknown key", "did you mean 'optimizer'?"]),
        ("optimizer: {learning_rat: 1.0}", ["optimizer.learning_rat: unknown key", "'learning_rate'"]),
        ("seed: many", ["seed='many'"]),
        ("rollout: {temperature: 0}", ["rollout.temperature=0", "set 1.0"]),
        ("[1, 2]", ["top level must be a mapping"]),
        ("seed: [1", ["not valid YAML"]),
    ],
)
def test_a_bad_file_is_refused_before_anything_starts(capsys, tmp_path, text, parts):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    code, _, err = run(capsys, "train", "--config", str(path))
    assert code == 2
    assert err.startswith("ditto-jax: error: ")
    for part in parts:
        assert part in err


def test_sft_without_stages_says_what_it_needs(capsys):
    code, _, err = run(capsys, "sft")
    assert code == 2
    assert "stages" in err


def test_the_packaged_presets_are_accepted_and_explained(capsys):
    for verb, preset in (("train", "quickstart.yaml"), ("sft", "tiny_sft.yaml")):
        code, out, err = run(capsys, verb, "--config", preset, "--print_config")
        assert code == 0, err
        assert any(origin.endswith(preset) for _, origin in settings(out).values())


def test_a_report_needs_a_run(capsys):
    code, _, err = run(capsys, "report")
    assert code == 2
    assert "runs/quickstart" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a=1: must be 2"), 2),
        (errors.MissingInputError("x: no such folder"), 3),
        (errors.GateFailed("0.2 is below 0.3"), 4),
        (errors.Preempted("saved"), 75),
        (errors.RunDirectoryError("full"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(capsys, error, code):
    def fail():
        raise error

    assert guarded(fail) == code
    err = capsys.readouterr().err
    assert err.startswith("ditto-jax: error: ")
    assert str(error) in err
    assert "Traceback" not in err


def test_an_unexpected_error_keeps_its_traceback(capsys):
    def fail():
        raise RuntimeError("a defect")

    assert guarded(fail) == 1
    assert "RuntimeError: a defect" in capsys.readouterr().err.splitlines()[-1]


def test_out_of_memory_names_the_settings_to_lower(capsys):
    import jax
    import jax.numpy as jnp

    def fail():
        jax.block_until_ready(jax.jit(lambda: jnp.ones((1 << 30, 1 << 14)))())

    assert guarded(fail) == 1
    err = capsys.readouterr().err
    assert "out of memory" in err
    for setting in ("train.micro_batch", "train.remat", "sampler.max_rows", "mesh.fsdp"):
        assert f"--{setting}" in err
    assert "Traceback" not in err


def test_out_of_memory_is_recognised_behind_another_error_and_nothing_else_is():
    outer = RuntimeError("step failed")
    outer.__cause__ = MemoryError("unable to allocate 3 GiB")
    assert out_of_memory(outer) == "unable to allocate 3 GiB"
    assert out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: too many requests to the judge")) == ""


def test_the_settings_that_the_memory_message_names_exist(capsys):
    known = settings(run(capsys, "train", "--print_config")[1])
    named = [word.rstrip(",") for word in failures._OUT_OF_MEMORY.split() if word.startswith("--")]
    assert len(named) > 5
    assert all(flag.removeprefix("--") in known for flag in named)
