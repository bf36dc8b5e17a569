"""Whole files: the old one stands until the new one is durable, and what failed takes no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeguard.linux import durable


def test_it_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old and longer")
    before = os.umask(0o077)
    try:
        durable.write(str(path), b"new", 0o640)
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", 0o640)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "fchmod"])
def test_what_the_disk_does_not_take_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "a"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match="full"):
            durable.put(str(path), b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_written_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    durable.put(str(tmp_path / "a"), b"0123456789" * 5, 0o600)
    assert (tmp_path / "a").read_bytes() == b"0123456789" * 5


def test_a_link_in_the_way_of_the_new_one_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"v")
    (tmp_path / ".a.tmp").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        durable.put(str(tmp_path / "a"), b"new", 0o600)
    assert (tmp_path / "victim").read_bytes() == b"v"


def test_it_is_moved_to_another_file_system_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_words: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    (tmp_path / "a").write_bytes(b"a")
    durable.move(str(tmp_path / "a"), str(tmp_path / "b"))
    monkeypatch.setattr(os, "replace", replace)
    durable.move(str(tmp_path / "b"), str(tmp_path / "c"))
    assert os.listdir(tmp_path) == ["c"]
    assert (tmp_path / "c").read_bytes() == b"a"


def test_there_it_is_durable_before_it_is_gone_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here/a").write_bytes(b"a")
    done: list[str] = []
    unlink = os.unlink

    def replace(*_words: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "fsync", lambda fd: done.append(os.readlink(f"/proc/self/fd/{fd}")))
        patch.setattr(os, "unlink", lambda path: (done.append("unlink"), unlink(path)))
        durable.move(f"{tmp_path}/here/a", f"{tmp_path}/there/a")
    assert done[: done.index("unlink")] == [f"{tmp_path}/there/a", f"{tmp_path}/there"]
