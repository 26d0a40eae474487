"""The served report: the page, the index of everything, one step at a time; nothing for other names and paths."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from ditto_jax.errors import ConfigError, MissingInputError, RunDirectoryError
from ditto_jax.report.server import running_report
from tests.report_runs import make_run


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "a", 6, name="a", hostile=True), make_run(folder / "b", 3, name="b")]
    with running_report(runs) as found:
        yield found


def _get(address: str, path: str, host: str | None = None) -> tuple[int, str, bytes]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        return response.status, str(response.getheader("Content-Type")), response.read()
    finally:
        connection.close()


def test_page_is_served_without_rollouts_and_may_ask_its_own_server_alone(address):
    status, kind, body = _get(address, "/")
    page = body.decode()
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "connect-src &#39;self&#39;" in page and 'id="block-' not in page
    assert '{"served":true,"runs":["a","b"]}' in page


def test_index_holds_every_rollout_of_every_run(address):
    status, kind, body = _get(address, "/rollouts.json")
    index = json.loads(body)
    assert (status, kind) == (200, "application/json")
    assert index["rollouts"] == 9 * 5 and len(index["columns"]["step"]) == 9 * 3
    assert sorted(set(index["columns"]["run"])) == [0, 1]


def test_texts_of_one_step_are_read_when_they_are_asked_for(address):
    status, _, body = _get(address, "/rollouts/0/0/2.json")
    block = json.loads(body)
    assert status == 200 and set(block["items"]) == {"0.0", "0.1", "0.2"}
    assert "⟨U+202E⟩" in body.decode() and "\u202e" not in body.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/rollouts/0/0/99.json",
        "/rollouts/2/0/1.json",
        "/rollouts/0/../../config.yaml",
        "/config.yaml",
        "/index.html",
        "/rollouts/0/7/1.json",
    ],
)
def test_nothing_else_is_there(address, path):
    assert _get(address, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1"])
def test_request_under_another_name_is_refused(address, host):
    status, _, body = _get(address, "/rollouts.json", host)
    assert status == 403 and body == b"ask for 127.0.0.1"


def test_port_that_is_taken_or_none_is_an_error_with_advice(address, tmp_path):
    run = make_run(tmp_path / "run", 1)
    with (
        pytest.raises(RunDirectoryError, match="0 for any free one"),
        running_report([run], urlsplit(address).port or 0),
    ):
        pass
    with pytest.raises(ConfigError, match="65535"), running_report([run], 70_000):
        pass
    with pytest.raises(MissingInputError, match="at least one"), running_report([]):
        pass
