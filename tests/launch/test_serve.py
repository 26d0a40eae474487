"""`serve` and `chat` read their words, and say what cannot work before anything is loaded."""

from __future__ import annotations

import socket

import pytest

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.serving.config import EngineConfig, ServeConfig
from ditto_jax.serving.server import serve
from launch.cli import main
from launch.serve import spelled_out


def test_the_model_comes_first_and_short_names_are_spelled_out():
    assert spelled_out(["runs/quickstart", "--task", "sotopia"]) == [
        "--model_name_or_path",
        "runs/quickstart",
        "--preset",
        "sotopia",
    ]
    words = ["--backend", "openai", "--base-url", "http://x/v1", "--model=far"]
    assert spelled_out(words) == ["--backend", "openai", "--remote.base_url", "http://x/v1", "--remote.model=far"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "no key is asked"),
        ({"host": "example.org"}, "no key is asked"),
        ({"preset": "chess"}, "preset=chess: choose one of plain"),
        ({"port": 70000}, "port=70000"),
        ({"name": "a:b"}, "without a colon"),
        ({"attempts": 0}, "attempts=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**changes)
    assert ServeConfig(host="0.0.0.0", api_key_env="KEY").host == "0.0.0.0"


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="no prompt has room"):
        EngineConfig(max_model_len=64, max_completion_tokens=64)
    with pytest.raises(ConfigError, match="engine.chunk=0"):
        EngineConfig(chunk=0)


def test_a_taken_port_and_a_key_that_is_not_set_are_told_before_the_model_is_looked_for():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used .* --port 0 takes a free one"):
            serve(ServeConfig("nowhere", port=taken.getsockname()[1]))
    with pytest.raises(MissingInputError, match="SERVE_KEY: this environment variable is not set"):
        serve(ServeConfig("nowhere", api_key_env="SERVE_KEY"), {})


def test_a_remote_model_must_be_named(capsys):
    assert main(["serve", "--backend", "openai", "--base_url", "http://127.0.0.1:9/v1", "--port", "0"]) == 2
    assert "remote.model" in capsys.readouterr().err
