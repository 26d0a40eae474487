"""Released rows over loopback: pinned to a commit, written down, held to it, and a closed network told in full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.released_data import FetchConfig, check, fetch
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.manifest import MANIFEST
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.released import SOUL, TRAIN_DATA
from launch.cli import main
from tests.released_rows import write_part

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"


class Hub:
    """A data set behind the two requests that a pinned download makes: revision → commit, and the file of a commit."""

    def __init__(self, folder: Path):
        self.folder, self.commits, self.asked = folder, {"main": COMMIT, COMMIT: COMMIT}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.command, self.path))
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def downloads(self) -> int:
        return sum(method == "GET" and "/resolve/" in path for method, path in self.asked)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        prefix = f"/api/datasets/{TRAIN_DATA}/revision/"
        if path.startswith(prefix) and path.removeprefix(prefix) in self.commits:
            commit = self.commits[path.removeprefix(prefix)]
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": TRAIN_DATA, "sha": commit}).encode()
        for commit in self.commits.values():
            file = self.folder / path.removeprefix(f"/datasets/{TRAIN_DATA}/resolve/{commit}/")
            if path.startswith(f"/datasets/{TRAIN_DATA}/resolve/{commit}/") and file.is_file():
                body = file.read_bytes()
                return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    hub = Hub(write_part(tmp_path / "published") / "train")
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    with contextlib.closing(hub.server.socket):
        yield hub
        hub.server.shutdown()
        thread.join()


def wanted(hub: Hub, output: Path, **changes: Any) -> FetchConfig:
    return FetchConfig(**{"revision": "main", "output": str(output), "endpoint": hub.url, **changes})


def test_files_are_fetched_at_the_commit_a_revision_stands_for_and_read_by_their_tasks(hub, tmp_path):
    folder = fetch(wanted(hub, tmp_path / "rows"))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["data_set"], manifest["commit"]) == (TRAIN_DATA, COMMIT)
    assert set(manifest["sha256"]) == {released.train for released in SOUL.values()} and check(folder) == 10
    for name in SOUL:
        assert len(get_task(name).load(Source("parquet", folder))) == 3
    assert all(f"/resolve/{COMMIT}/" in path for _, path in hub.asked if "/resolve/" in path)


def test_a_second_fetch_takes_only_what_is_missing_and_never_mixes_commits(hub, tmp_path):
    output = tmp_path / "rows"
    fetch(wanted(hub, output, tasks=("hitom",)))
    before = hub.downloads
    fetch(wanted(hub, output, tasks=("hitom", "sotopia"), revision=COMMIT))
    assert (before, hub.downloads) == (1, 2) and check(output / "train") == 2
    hub.commits["main"] = OTHER
    with pytest.raises(ConfigError, match=f"already holds {TRAIN_DATA} at {COMMIT}"):
        fetch(wanted(hub, output, tasks=("hitom",)))


def test_a_changed_file_is_found_by_the_check_by_the_next_fetch_and_by_the_reader(hub, tmp_path, capsys):
    config = wanted(hub, tmp_path / "rows", tasks=("hitom",))
    folder = fetch(config)
    file = folder / SOUL["hitom"].train
    file.write_bytes(file.read_bytes() + b"\0")
    for look in (
        lambda: check(folder),
        lambda: fetch(config),
        lambda: get_task("hitom").load(Source("parquet", folder)),
    ):
        with pytest.raises(DataError, match=f"hitom_rl_train.parquet: its SHA-256 is not that in {MANIFEST}"):
            look()
    assert main(["data", "check", str(tmp_path / "rows")]) == 3
    file.unlink()
    fetch(config)
    assert main(["data", "check", str(tmp_path / "rows")]) == 0
    assert f"intact: 1 files in {folder}" in capsys.readouterr().out
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        check(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(MissingInputError, match="no manifest.json"):
        check(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", ".."])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / MANIFEST).write_text(json.dumps({"data_set": "d", "commit": "c", "sha256": {name: "0"}}))
    with pytest.raises(DataError, match="not the name of a file in this folder"):
        check(tmp_path)


def test_a_closed_network_is_told_with_data_set_revision_and_the_command_for_elsewhere(tmp_path):
    config = FetchConfig(revision=COMMIT, output=str(tmp_path), tasks=("coser",), endpoint="http://127.0.0.1:9")
    with pytest.raises(MissingInputError) as caught:
        fetch(config)
    message = str(caught.value)
    assert f"{TRAIN_DATA} at revision {COMMIT} cannot be fetched" in message
    command = f"hf download {TRAIN_DATA} coser_rl_train.parquet --repo-type dataset --revision {COMMIT} --local-dir "
    assert command + str(tmp_path / "train") in message
    assert not (tmp_path / "train").exists()


def test_an_unknown_revision_is_told(hub, tmp_path):
    with pytest.raises(MissingInputError, match="at revision v9 cannot be fetched: .*"):
        fetch(wanted(hub, tmp_path, revision="v9"))


def test_the_command_fetches_and_asks_for_what_it_needs(hub, tmp_path, capsys):
    flags = ["--output", str(tmp_path / "rows"), "--endpoint", hub.url, "--tasks", "hitom", "coser"]
    assert main(["data", "fetch", *flags]) == 2
    assert f"revision is not set: name the commit of {TRAIN_DATA}" in capsys.readouterr().err
    assert main(["data", "fetch", *flags, "--revision", "main"]) == 0
    assert f"fetched: 2 files of {TRAIN_DATA} in {tmp_path / 'rows' / 'train'}" in capsys.readouterr().out
    assert main(["data", "look"]) == 2 and main(["data"]) == 2
    assert main(["data", "fetch", *flags, "--revision", "main", "--tasks", "maths"]) == 2
    assert "task='maths': no released file" in capsys.readouterr().err
