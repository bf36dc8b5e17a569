"""The database of a collector: SQLite in one file, or PostgreSQL (`postgres`) where the configuration says so.

Records are derived from segments, and segments are kept: what was signed can be shown again. The commit is durable
(WAL, synchronous=FULL) before a receipt says so. Tables: `schema`; what the rest may ask of a database: `database`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from edgeguard.collector import schema
from edgeguard.collector.config import Config
from edgeguard.collector.database import Database, Failed

FILE = "collector.db"
INCIDENTS_MAX = 100_000  # rows; what is over makes room for what is new, and where nothing is over it is not stored
INCIDENTS_EACH = 256  # rows of one name for one device: nobody fills the table, nor hides one defect behind another
BUSY_S = 30  # how long a reader or an import may hold the file
# What a database raises that is not our bug: nothing was committed, and later it may work.
FAILURES: tuple[type[Exception], ...] = (sqlite3.Error, Failed)


class Sqlite(sqlite3.Connection):
    """A file. One writer at a time, so a transaction needs no locks besides."""

    path = ""
    _leading: int | None = None

    def insert(self, table: str, columns: str, rows: Iterable[Sequence[Any]], /) -> None:
        places = ", ".join("?" * (columns.count(",") + 1))
        self.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)  # noqa: S608 - names of ours

    def each(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[Any]:
        return iter(self.execute(sql, values))

    def run(self, script: str) -> None:
        for statement in script.split(";\n"):
            if statement.strip():
                self.execute(statement)

    @contextmanager
    def transaction(self, *_locks: str) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.in_transaction:  # on a full disk SQLite has ended it already
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.execute("ROLLBACK")

    def writing(self, _table: str) -> dict[str, str]:
        return {}  # one at a time: rows are seen in the order of their numbers

    def lead(self, name: str) -> bool:
        if self._leading is not None:
            return True
        fd = os.open(f"{self.path}.{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._leading = fd
        return True

    def close(self) -> None:
        super().close()
        if self._leading is not None:
            os.close(self._leading)
            self._leading = None


def connect(path: str, *, threads: bool = False) -> Sqlite:
    """The file with its schema. `threads`: used from a worker thread, one call at a time. Raises schema.Newer."""
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=not threads, factory=Sqlite
    )
    connection.path = path
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    schema.migrate(connection)
    return connection


def connect_readonly(path: str) -> Sqlite:
    """For `events` and `devices`, beside a running server."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, factory=Sqlite)
    connection.path = path
    connection.execute("PRAGMA query_only=ON")
    return connection


def open_(directory: str, config: Config) -> Database:
    """The database of this collector, up to date, for one thread at a time."""
    if config.database:
        from edgeguard.collector import postgres  # psycopg: the small collector does without

        return postgres.connect(config.database)
    return connect(os.path.join(directory, FILE), threads=True)


def open_readonly(directory: str, config: Config) -> Database:
    """The same, for looking: what a server on it does goes on meanwhile."""
    if config.database:
        from edgeguard.collector import postgres

        return postgres.Postgres(config.database)
    return connect_readonly(os.path.join(directory, FILE))


def transaction(db: Database, *locks: str) -> AbstractContextManager[None]:
    """All or nothing, and durable when it ends."""
    return db.transaction(*locks)
