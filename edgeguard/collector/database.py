"""What the collector asks of a database: the few calls that SQLite and PostgreSQL both answer.

SQL is written once, in what both understand: `?` for values, ON CONFLICT, RETURNING. `store` opens one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from edgeguard.errors import EdgeGuardError


class Failed(EdgeGuardError):
    """A database server did not do what it was asked: away, full, or in the way of another. Nothing was committed."""


class Rows(Protocol):
    """The answer to one statement."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """One connection, used by one thread at a time. Blobs are bytes, whole numbers fit into 64 bits."""

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Rows: ...
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Rows: ...

    def insert(self, table: str, columns: str, rows: Iterable[Sequence[Any]], /) -> None:
        """Many new rows in the fastest way that this database has. `columns` with commas between; all must fit."""

    def each(self, sql: str, values: Sequence[Any] = ..., /) -> Iterator[Any]:
        """The rows one after the other, without holding all of them; other statements may come in between."""

    def run(self, script: str) -> None:
        """Statements without values, one after the other, within the transaction that is open."""

    def transaction(self, *locks: str) -> AbstractContextManager[None]:
        """All or nothing, and durable when it ends. Whoever names the same lock waits until it has ended."""

    def snapshot(self) -> AbstractContextManager[None]:
        """One state of the database, also while others write; nothing is changed."""

    def writing(self, table: str) -> dict[str, str]:
        """The open transactions that may have rows in `table` which nobody sees yet: a name that no other one gets,
        and words for people. Rows get their numbers in order, and not before their transaction is one of these."""

    def lead(self, name: str) -> bool:
        """Is this connection the only one that does `name` from now on? True until it is closed."""

    def close(self) -> None: ...
