"""The tables come in steps: each from the version before, the last as in a new database, and never half of one."""

import sqlite3

import pytest

from edgeguard.collector import schema, store


def opened(path):
    return sqlite3.connect(path, isolation_level=None, factory=store.Sqlite)


def shape(db):
    """Every table, column and index."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    indexes = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name")
    return (
        {table: sorted(row[1:6] for row in db.execute(f"PRAGMA table_info({table})").fetchall()) for table in tables},
        indexes.fetchall(),
    )


def test_step_by_step_is_as_good_as_at_once():
    slow, fast = opened(":memory:"), opened(":memory:")
    for version in range(1, schema.VERSION + 1):
        schema.migrate(slow, version)
        assert schema.version(slow) == version
    schema.migrate(fast)
    assert shape(slow) == shape(fast)
    schema.migrate(slow)
    assert shape(slow) == shape(fast)


def test_a_step_that_fails_leaves_the_version_before(tmp_path, monkeypatch):
    path = str(tmp_path / "c.db")
    db = opened(path)
    schema.migrate(db, 1)
    before = shape(db)

    def broken(_db):
        raise OSError("disk full")

    monkeypatch.setattr(schema, "STEPS", (schema.STEPS[0], (*schema.STEPS[1], broken)))
    with pytest.raises(OSError, match="disk full"):
        schema.migrate(db)
    assert (schema.version(db), shape(db)) == (1, before)
    monkeypatch.undo()
    assert schema.version(store.connect(path)) == schema.VERSION


def test_what_stood_before_versions_were_counted_is_version_one(tmp_path):
    path = str(tmp_path / "c.db")
    old = sqlite3.connect(path)
    old.executescript(schema.SCHEMA)
    old.close()
    db = store.connect(path)
    fresh = opened(":memory:")
    schema.migrate(fresh)
    assert shape(db) == shape(fresh)


def test_looking_at_an_older_database_changes_nothing(tmp_path):
    path = str(tmp_path / "c.db")
    db = opened(path)
    schema.migrate(db, 1)
    looking = store.connect_readonly(path)
    assert looking.execute("SELECT count(*) FROM records").fetchone() == (0,)
    with pytest.raises(sqlite3.OperationalError):
        looking.execute("DELETE FROM records")
    assert schema.version(db) == 1
