"""`ditto-jax serve MODEL` and `ditto-jax chat MODEL`: words → settings of a server, or of a talk in the terminal.

In: the words after the verb. Out: an exit code. jax is prepared only where a policy is served from this machine, so
that both run in front of a remote model without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from launch import environment

# What is short for the settings that most people give.
_SHORT = {"--base_url": "--remote.base_url", "--model": "--remote.model", "--task": "--preset"}


def main(args: list[str], command: list[str]) -> int:
    """Serves until it is stopped. Raises a DittoError for settings and models that cannot work."""
    words = spelled_out(args)
    _prepare(words)
    from ditto_jax.serving.config import ServeConfig
    from launch.extras import require_packages
    from launch.flags import parse

    config = parse(ServeConfig, words, "serve", "Serve a simulator at an OpenAI-compatible address.").config
    require_packages("serve", "starlette", "uvicorn")
    if config.backend == "jax":
        environment.use_compile_cache()
    from ditto_jax.serving.server import serve

    serve(config)
    return 0


def chat(args: list[str], command: list[str]) -> int:
    """Talks to the simulator in the terminal until either side ends it."""
    words = spelled_out(args)
    _prepare(words)
    from ditto_jax.serving.config import EngineConfig, ServeConfig
    from launch.flags import parse

    small = ServeConfig(engine=EngineConfig(max_rows=1, warm_up=False))
    config = parse(ServeConfig, words, "chat", "Talk to a simulator in the terminal.", default=small).config
    if config.backend == "jax":
        environment.use_compile_cache()
    from ditto_jax.serving.talk import talk

    talk(config)
    return 0


def spelled_out(args: Sequence[str]) -> list[str]:
    """Returns the words with a leading MODEL as its flag, and with short names in full."""
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        words.append(_SHORT.get(name.replace("-", "_").replace("__", "--", 1), name) + equals + value)
    if words and not words[0].startswith("-"):
        words.insert(0, "--model_name_or_path")
    return words


def _prepare(words: Sequence[str]) -> None:
    if not _is_remote(words):
        environment.prepare_allocator()


def _is_remote(words: Sequence[str]) -> bool:
    return "--backend=openai" in words or any(
        name == "--backend" and value == "openai" for name, value in itertools.pairwise(words)
    )
