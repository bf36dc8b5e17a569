"""What the kernel lists: the names that Python finds, and the same bytes only for the same directory."""

import errno
import os

import pytest

from edgeguard.linux import dirents

MOST = 1 << 30
HOSTILE = [b"a", b"\xff\n", b" ", b"-rf", b"..a", b"...", b"x" * 255, "ä".encode(), b"\x1b[2J"]


def listed(path, reader=None, most=MOST):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = (reader or dirents.Listing()).read(fd, most)
        return found if found is None else bytes(found)
    finally:
        os.close(fd)


def test_the_names_are_those_that_there_are(tmp_path):
    assert dirents.names(listed(tmp_path)) == []
    for name in HOSTILE:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "below").mkdir()
    assert dirents.names(listed(tmp_path)) == sorted([*HOSTILE, b"below"])


def test_more_than_one_answer_holds(tmp_path):
    names = sorted(b"%0200d" % number for number in range(dirents.ROOM // 100))
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    whole = listed(tmp_path)
    assert len(whole) > 2 * dirents.ROOM
    assert dirents.names(whole) == names
    assert listed(tmp_path) == whole
    assert listed(tmp_path, most=len(whole)) == whole
    assert listed(tmp_path, most=len(whole) - 1) is None


def test_what_was_read_before_leaves_no_trace(tmp_path):
    """The kernel does not fill the bytes between a name and the next entry."""
    first, other = tmp_path / "first", tmp_path / "other"
    for place, length in ((first, 4), (other, 250)):
        place.mkdir()
        for number in range(1, 60):
            (place / str(number).rjust(1 + number * length // 60, "x")).touch()
    reader = dirents.Listing()
    before = listed(first, reader)
    assert listed(other, reader) != before
    assert listed(first, reader) == before
    assert listed(first) == before


@pytest.mark.parametrize("change", ["put in", "taken out", "replaced", "renamed", "another kind"])
def test_another_directory_lists_otherwise(tmp_path, change):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = listed(tmp_path)
    if change == "put in":
        (tmp_path / "c").touch()
    elif change == "taken out":
        (tmp_path / "a").unlink()
    elif change == "replaced":
        (tmp_path / "new").write_text("1")
        (tmp_path / "new").replace(tmp_path / "a")
    elif change == "renamed":
        (tmp_path / "a").rename(tmp_path / "c")
    else:
        (tmp_path / "a").unlink()
        (tmp_path / "a").mkdir()
    assert listed(tmp_path) != before


def test_what_cannot_be_listed_is_said(tmp_path):
    (tmp_path / "file").touch()
    reader = dirents.Listing()
    for fd, why in ((-1, errno.EBADF), (os.open(tmp_path / "file", os.O_RDONLY), errno.ENOTDIR)):
        with pytest.raises(OSError, match=os.strerror(why)):
            reader.read(fd, MOST)
    assert dirents.names(listed(tmp_path, reader)) == [b"file"]
