"""The words after `launch` → those of the launcher and those of the verb that it starts.

A flag of the launcher takes all words up to the next flag. Every other word is the verb's, `--config` among them;
the launcher's own settings files are given by `--launch_config`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launch.targets.config import LaunchConfig

OWN_FILE = "launch_config"
_OWN = ("dry_run", "yes", "help", "print_config", OWN_FILE)


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (words of the launcher, words of the verb), each in their order."""
    fields = {field.name for field in dataclasses.fields(LaunchConfig)}
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for word in args:
        if word.startswith("--") or word == "-h":
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            into = own if name.partition(".")[0] in fields or name in _OWN or word == "-h" else rest
            if name == OWN_FILE:
                word = word.replace(word.partition("=")[0], "--config", 1)
        into.append(word)
    return own, rest
