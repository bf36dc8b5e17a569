"""A real daemon under a baseline with BLAKE2b: what happens to files is told by that digest, what is accepted is known
by it, and a device that is learned anew with the other one begins anew without doubt about anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_guard import FileGuard, guarded

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and fanotify marks")]

ALL = ("sha256", "blake2b")


def digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(data).digest() if name == "sha256" else hashlib.blake2b(data, digest_size=32).digest()


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[FileGuard]:
    with guarded(tmp_path) as made:
        for name in ("one", "two", "three"):
            (made.watched / name).write_bytes(name.encode())
        yield made


def choose(guard: FileGuard, name: str) -> None:
    (guard.base / "policy/20.toml").write_text(f'[learn]\ndigest = "{name}"\n')


@pytest.mark.parametrize(("first", "second"), [ALL[::-1], ALL])
def test_events_sweeps_and_another_learning(guard: FileGuard, first: str, second: str) -> None:
    choose(guard, first)
    guard.start()
    one, two, three = (guard.watched / name for name in ("one", "two", "three"))

    shown = {"sha256": "contents by SHA-256", "blake2b": "contents by BLAKE2b"}
    assert shown[first] in guard.ask("baseline", "show").stdout
    one.write_bytes(b"event")
    (found,) = guard.until(lambda: guard.about(one))
    assert found.expected[first] == digest(first, b"one")
    assert found.observed[first] == digest(first, b"event")
    assert not {*found.expected, *found.observed, *(found.details or {})} & {second}
    one.write_bytes(b"one")
    guard.until(lambda: not guard.findings())

    # Accepted, it is known; changed again, it is not.
    two.write_bytes(b"accepted")
    (found,) = guard.until(lambda: guard.about(two))
    assert guard.ask("accept", found.id, "-r", "test").returncode == 0
    guard.until(lambda: not guard.findings())
    guard.stop()
    two.write_bytes(b"while down")
    guard.start()
    (found,) = guard.until(lambda: guard.about(two))
    assert found.expected[first] == digest(first, b"accepted")
    two.write_bytes(b"accepted")
    guard.until(lambda: not guard.findings())

    # A finding stands while the device is learned anew with the other digest: it ends, and the next one is told by it.
    three.write_bytes(b"stands")
    guard.until(lambda: guard.about(three))
    choose(guard, second)
    answer = guard.ask("baseline", "learn", "-r", "test")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    guard.until(lambda: not guard.findings())
    assert shown[second] in guard.ask("baseline", "show").stdout
    guard.scan()
    assert guard.findings() == []
    three.write_bytes(b"again")
    (found,) = guard.until(lambda: guard.about(three))
    assert found.expected[second] == digest(second, b"stands")
    assert found.observed[second] == digest(second, b"again")
    guard.scan()
    (found,) = guard.findings()
    assert found.observed[second] == digest(second, b"again")
