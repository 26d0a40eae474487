"""Request → reply that was bought before: a SQLite file of replies, so that no verdict is paid for twice.

In: what a request was and which sample it was about. Out: the reply's text and what it cost, or nothing. Holds digests
of requests, never requests, addresses or keys. Several processes may use one file, on a local disk. Failed calls are
not kept: only replies that could be used are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import tenacity

from ditto_jax.errors import MissingInputError, RunDirectoryError
from ditto_jax.keys import SampleId

logger = logging.getLogger(__name__)

FILE_NAME = "judge_cache.sqlite"
_BUSY_S = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    prompt_version TEXT NOT NULL,
    created_at REAL NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    text TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclasses.dataclass(frozen=True)
class CallName:
    """What a call is, beside its request: the sample that it is about, and the version of its prompt."""

    sample: SampleId
    prompt_version: str


@dataclasses.dataclass(frozen=True)
class KeptReply:
    """A reply as it was bought. tokens_in, tokens_out, attempts: of the whole call."""

    text: str
    tokens_in: int
    tokens_out: int
    attempts: int


@dataclasses.dataclass(frozen=True)
class CacheStats:
    """What a cache holds: replies and tokens by (model, prompt version), and the size of the file in bytes."""

    rows: Mapping[tuple[str, str], tuple[int, int, int]]
    size: int


def cache_key(url: str, body: Mapping[str, Any], name: CallName) -> str:
    """Returns the key of a request: equal for equal requests about samples of the same number in their group.

    Where replies are drawn at random (a temperature other than 0), the seed, step and prompt count as well, so that a
    later step draws anew.
    """
    sample = name.sample
    what: list[Any] = [url, body, name.prompt_version, sample.sample_index]
    if body.get("temperature") != 0:
        what += [sample.seed, sample.step, sample.prompt_id, str(sample.role)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """A file of replies. Opened when it is first used.

    A cache that fails in the middle of a run is told about once and then left alone: its loss costs money, not the run.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_lost = False

    def get(self, key: str) -> KeptReply | None:
        """Returns the reply under `key`, or None. Raises RunDirectoryError if the file cannot be opened."""
        query = "SELECT text, tokens_in, tokens_out, attempts FROM replies WHERE key = ?"
        row = self._execute(query, (key,), one=True)
        return None if row is None else KeptReply(*row)

    def put(self, key: str, model: str, prompt_version: str, reply: KeptReply) -> None:
        """Keeps a reply; one that is there already stays."""
        values = (key, model, prompt_version, time.time(), reply.tokens_in, reply.tokens_out, reply.attempts)
        # Half a surrogate pair cannot be stored as UTF-8, and would be lost from a reply on its way back.
        if reply.text.isascii() or _is_encodable(reply.text):
            self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, reply.text))

    def close(self) -> None:
        """Closes the file; a later call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _execute(self, statement: str, values: tuple[Any, ...], one: bool = False) -> Any:
        with self._lock:
            if self._is_lost:
                return None
            if self._connection is None:
                self._connection = _open(self.path)
            try:
                with self._connection:
                    cursor = self._connection.execute(statement, values)
                    return cursor.fetchone() if one else None
            except sqlite3.Error as error:
                self._is_lost = True
                logger.warning("%s cannot be used any more (%s): replies are no longer kept", self.path, error)
                return None


def stats(path: Path) -> CacheStats:
    """Returns what the cache at `path` holds. Raises MissingInputError or RunDirectoryError."""
    with closing(_open_existing(path)) as connection:
        rows = connection.execute(
            "SELECT model, prompt_version, COUNT(*), SUM(tokens_in), SUM(tokens_out) FROM replies "
            "GROUP BY model, prompt_version ORDER BY model, prompt_version"
        ).fetchall()
    return CacheStats({(model, version): tuple(counts) for model, version, *counts in rows}, path.stat().st_size)


def merge(target: Path, sources: list[Path]) -> int:
    """Adds the replies of `sources` to `target`, which is made if need be; returns how many were new."""
    for source in sources:
        _open_existing(source).close()
    with closing(_open(target)) as connection:
        before = connection.total_changes
        for source in sources:
            with closing(_open_existing(source)) as other, connection:
                rows = other.execute("SELECT * FROM replies")
                connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return connection.total_changes - before


def prune(path: Path, older_than_s: float | None = None, model: str | None = None) -> int:
    """Removes replies older than so many seconds and of this model (None: any); returns how many. Shrinks the file."""
    before = time.time() + 1 if older_than_s is None else time.time() - older_than_s
    with closing(_open_existing(path)) as connection:
        with connection:
            count = connection.execute(
                "DELETE FROM replies WHERE created_at < ? AND (? IS NULL OR model = ?)", (before, model, model)
            ).rowcount
        connection.execute("VACUUM")
    return count


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_existing(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such cache; name a file such as runs/my_run/{FILE_NAME}")
    return _open(path)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


# SQLite waits for a lock that another process holds, except where both want to turn a new file into a shared one.
@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_busy),
    wait=tenacity.wait_random(0.0, 0.05),
    stop=tenacity.stop_after_delay(_BUSY_S),
    reraise=True,
)
def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise RunDirectoryError(
            f"{path} cannot be used as a cache of replies: {error}; move it away, set cache_path to a file "
            "on a local disk, or cache to off"
        ) from None
