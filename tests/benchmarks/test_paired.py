"""Rounds, ratios and tables of the benchmarks, on peers that compute nothing."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.figures import circumstances, compare, machine, spread, table, versions, write_results
from benchmarks.paired import Peer, PeerFailed, Worker, play_rounds, rotation, started

ECHO = "tests.benchmarks.echo_peer"


def test_every_peer_takes_every_place_of_a_round_equally_often():
    names = ["a", "b", "c"]
    orders = [rotation(names, index) for index in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


def test_ratios_are_taken_within_rounds():
    # The machine is half as fast in the second round: ratios of medians would hide that ours is always twice as fast.
    result = compare([{"ours": 10.0, "peer": 5.0}, {"ours": 4.0, "peer": 2.0}, {"ours": 6.0, "peer": 3.0}])
    assert result["ratios"]["peer"] == spread([2.0, 2.0, 2.0])
    assert result["peers"]["ours"] == {"median": 6.0, "low": 4.0, "high": 10.0, "values": [10.0, 4.0, 6.0]}


def test_the_first_call_is_reported_apart():
    rounds = [
        {"ours": {"seconds": s, "cpu_s": 2 * s, "load": load}} for s, load in ((1.0, 0.5), (3.0, 9.0), (2.0, 1.0))
    ]
    facts = circumstances(rounds, {"ours": {"seconds": 12.0}})
    assert facts["first_call_extra_s"] == {"ours": 10.0}
    assert facts["cpu_s"]["ours"]["median"] == 4.0 and facts["load"] == [0.5, 9.0, 1.0]


def test_the_table_leaves_empty_what_a_row_did_not_measure():
    rows = {
        "equal": compare([{"ours": 3000.0, "A": 1000.0, "B": 1500.0}]),
        "ragged": compare([{"ours": 3000.0, "A": 500.0}]),
    }
    lines = table(rows, digits=0).splitlines()
    assert lines[0] == "|  | ours | A | B | ours / A | ours / B |"
    assert lines[2].startswith("| equal | 3,000 (3,000–3,000) | 1,000 (1,000–1,000) | 1,500 (1,500–1,500) |")
    assert lines[2].endswith("| 3.00 (3.00–3.00) | 2.00 (2.00–2.00) |")
    assert lines[3] == "| ragged | 3,000 (3,000–3,000) | 500 (500–500) |  | 6.00 (6.00–6.00) |  |"


def test_workers_answer_in_turn_whatever_they_print(tmp_path):
    said: list[str] = []
    peers = [Peer("ours", sys.executable, ECHO, {"factor": 1}), Peer("slow", sys.executable, ECHO, {"factor": 2})]
    with started(peers, tmp_path / "logs", "1.5 M") as workers:
        rounds = list(play_rounds(workers, {"amount": 3}, 2, said.append))
    assert [r["slow"]["seconds"] for r in rounds] == [6, 6]
    assert [r["ours"]["seed"] for r in rounds] == [0, 1]
    assert len(said) == 2 and "slow 6.00 s" in said[0]
    assert "noise" in (tmp_path / "logs" / "1-5-M-ours.log").read_text()


def test_a_peer_that_ends_is_named_with_its_last_words(tmp_path):
    last_words = r"broken: ended during 'fail': RuntimeError: asked to fail; see .*log"
    broken = Peer("broken", sys.executable, ECHO, {"factor": 1})
    with started([broken], tmp_path, "log") as workers, pytest.raises(PeerFailed, match=last_words):
        workers["broken"].ask("fail")


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PeerFailed, match="peer: cannot start /no/python"):
        Worker(Peer("peer", "/no/python", ECHO), tmp_path / "log")


def test_results_are_written_as_json_and_markdown(tmp_path):
    results = {"machine": machine(), "versions": versions("numpy", "no-such-package")}
    write_results(tmp_path / "new", "name", results, "| a |")
    read = json.loads((tmp_path / "new" / "name.json").read_text())
    assert read["machine"]["cores"] >= 1 and "numpy" in read["versions"] and "no-such-package" not in read["versions"]
    assert (tmp_path / "new" / "name.md").read_text() == "| a |\n"
