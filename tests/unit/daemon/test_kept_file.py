"""What a disk does not take: said, and no reason to stop looking."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from edgeguard.daemon.kept_file import Kept
from edgeguard.daemon.sweeping import NEW


def test_it_is_there_as_it_was_written(tmp_path: Path) -> None:
    with Kept(str(tmp_path / "a"), NEW) as kept:
        file = io.BufferedWriter(kept)
        file.write(b"x" * 100_000)
        file.flush()
        assert kept.keep()
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000


def test_it_is_begun_anew(tmp_path: Path) -> None:
    """What was seen before is of no use: the sweep says so in the middle of its writing."""
    with Kept(str(tmp_path / "a"), NEW) as kept:
        _writer = _begun_anew(kept)  # whoever lets it go closes what it writes to
        assert kept.keep()
    assert (tmp_path / "a").read_bytes() == b"y" * 10


@pytest.mark.parametrize("path", ["/dev/full", "none/a"])
def test_it_is_begun_anew_where_nothing_is_kept(tmp_path: Path, path: str) -> None:
    with Kept(str(tmp_path / path), os.O_WRONLY) as kept:
        _writer = _begun_anew(kept)  # whoever lets it go closes what it writes to
        assert not kept.keep()


def _begun_anew(kept: Kept) -> io.BufferedWriter:
    file = io.BufferedWriter(kept)
    file.write(b"x" * 100_000)
    file.seek(0)
    file.truncate()
    file.write(b"y" * 10)
    file.flush()
    return file


def test_a_full_disk_is_said_once_and_stops_nobody(tmp_path: Path) -> None:
    with Kept("/dev/full", os.O_WRONLY) as kept:
        file = io.BufferedWriter(kept)
        for _ in range(3):
            file.write(b"x" * 100_000)
        file.flush()
        assert not kept.keep()
        assert kept.problem == os.strerror(errno.ENOSPC)


def test_where_there_is_no_file_to_be_made(tmp_path: Path) -> None:
    with Kept(str(tmp_path / "none/a"), NEW) as kept:
        file = io.BufferedWriter(kept)
        file.write(b"x")
        file.flush()
        assert not kept.keep()
        assert kept.problem


def test_what_is_written_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    with Kept(str(tmp_path / "a"), NEW) as kept:
        assert kept.write(b"0123456789" * 5) == 50
        assert kept.keep()
    assert (tmp_path / "a").read_bytes() == b"0123456789" * 5


def test_half_of_it_keeps_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.write, [2]

    def write(fd: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with Kept(str(tmp_path / "a"), NEW) as kept:
        for _ in range(4):
            kept.write(b"x" * 1000)
        assert not kept.keep()
    assert (tmp_path / "a").stat().st_size == 0
