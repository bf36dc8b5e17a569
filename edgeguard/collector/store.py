"""The collector's SQLite file. One writer, WAL, synchronous=FULL: what is committed survives a power cut, and only
what is committed is in a receipt.

segments hold the evidence as it came, epochs the statements about the keys that signed it, records what they say.
heads are how far each stream is complete, announced how far devices said that there is something; drops explain
holes; incidents are what somebody should look at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, public BLOB NOT NULL, added INTEGER NOT NULL,
    seen INTEGER, duplicates INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    previous BLOB NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL, epoch INTEGER NOT NULL, boot INTEGER NOT NULL,
    mono INTEGER NOT NULL, wall INTEGER, clock INTEGER NOT NULL, received INTEGER NOT NULL, bytes BLOB NOT NULL,
    UNIQUE (device, stream, seq));
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, segment INTEGER NOT NULL REFERENCES segments (id), device BLOB NOT NULL,
    stream INTEGER NOT NULL, seq INTEGER NOT NULL, type INTEGER NOT NULL, severity INTEGER NOT NULL,
    boot INTEGER NOT NULL, mono INTEGER NOT NULL, wall INTEGER, code TEXT, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS records_of ON records (device, stream, seq);
CREATE INDEX IF NOT EXISTS records_time ON records (device, boot, mono, stream, seq);
CREATE INDEX IF NOT EXISTS records_code ON records (code) WHERE code IS NOT NULL;
CREATE TABLE IF NOT EXISTS heads (
    device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    last_good INTEGER NOT NULL, next_record INTEGER NOT NULL, PRIMARY KEY (device, stream)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (
    device BLOB NOT NULL, stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reason INTEGER NOT NULL, PRIMARY KEY (device, stream, first, last)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epochs (
    device BLOB NOT NULL, number INTEGER NOT NULL, rival INTEGER NOT NULL, kid BLOB NOT NULL, before BLOB,
    received INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (device, number, rival));
CREATE INDEX IF NOT EXISTS epochs_by_key ON epochs (device, kid);
CREATE INDEX IF NOT EXISTS epochs_by_next ON epochs (device, before);
CREATE INDEX IF NOT EXISTS segments_of_epoch ON segments (device, epoch);
CREATE TABLE IF NOT EXISTS announced (
    device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    received INTEGER NOT NULL, PRIMARY KEY (device, stream)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boots (
    device BLOB NOT NULL, boot INTEGER NOT NULL, offset INTEGER NOT NULL, clock INTEGER NOT NULL,
    PRIMARY KEY (device, boot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS incidents (
    id INTEGER PRIMARY KEY, device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL,
    detail TEXT NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL DEFAULT 1,
    resolved INTEGER, evidence BLOB, UNIQUE (device, stream, seq, name, detail));
"""
INCIDENTS_MAX = 100_000  # rows; beyond it new kinds of trouble are only counted in the last row, not stored without end
BUSY_S = 30  # how long a reader or an import may hold the file


def connect(path: str, *, threads: bool = False) -> sqlite3.Connection:
    """The file with its schema. `threads`: used from a worker thread, one call at a time."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=not threads)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.executescript(SCHEMA)
    return connection


def connect_readonly(path: str) -> sqlite3.Connection:
    """For `events` and `devices`, beside a running server."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA query_only=ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and durable when it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
