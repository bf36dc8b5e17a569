"""One look at one file, while someone works against it."""

import hashlib
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from edgeguard.codec.digests import Algorithm, Digester
from edgeguard.linux import xattr
from edgeguard.model import COMPARED, Origin, Status, Watch
from edgeguard.sensors import walk
from edgeguard.sensors.look import COLUMNS, LATER, CannotLook, Eye, observe, present

WATCH = Watch("/", "program")


@pytest.fixture
def place(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield tmp_path, fd
    os.close(fd)


def acting(action):
    """A hash that does something to the file at its first chunk."""
    done = []

    class Acting:
        def __init__(self):
            self._real = hashlib.sha256()

        def update(self, data):
            if not done:
                done.append(True)
                action()
            self._real.update(data)

        def digest(self):
            return self._real.digest()

    return Acting


def test_a_file_that_grows_while_it_is_read_comes_to_an_end(place):
    path, fd = place
    (path / "log").write_bytes(b"x" * 600_000)

    def grow():
        with open(path / "log", "ab") as file:
            file.write(b"y" * 10_000_000)

    seen = Eye(1 << 30, digester=Digester(Algorithm.SHA256, acting(grow))).look(fd, "log", WATCH)
    assert seen.entry.digest == hashlib.sha256(b"x" * 600_000).digest()
    assert not seen.settled
    assert "changed while" in seen.note


def test_a_file_that_shrinks(place):
    path, fd = place
    (path / "log").write_bytes(b"x" * 600_000)
    seen = Eye(1 << 30, digester=Digester(Algorithm.SHA256, acting(lambda: os.truncate(path / "log", 0)))).look(
        fd, "log", WATCH
    )
    assert not seen.settled


def test_too_large_is_said_or_postponed(place):
    path, fd = place
    (path / "large").write_bytes(b"x" * 100)
    seen = Eye(99).look(fd, "large", WATCH)
    assert (seen.entry.digest, seen.entry.size) == (b"", 100)
    assert "larger than 99 bytes" in seen.note
    assert Eye(99, postpone=True).look(fd, "large", WATCH).note == LATER


def test_an_exchange_between_the_calls_is_noticed(place, monkeypatch):
    path, fd = place
    (path / "a").write_bytes(b"old")
    (path / "b").write_bytes(b"new!")
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda name, **how: real("b" if name == "a" else name, **how))
    with pytest.raises(CannotLook, match="replaced again and again"):
        Eye(1000).look(fd, "a", WATCH)


def test_what_is_no_file_is_never_opened(place, monkeypatch):
    path, fd = place
    os.mkfifo(path / "fifo")
    os.symlink("/dev/zero", path / "link")
    os.mkdir(path / "dir")
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("opened"))
    eye = Eye(1000)
    assert [eye.look(fd, name, WATCH).entry.type for name in ("fifo", "link", "dir")] == [
        "fifo",
        "symlink",
        "directory",
    ]
    assert eye.look(fd, "link", WATCH).entry.target == b"/dev/zero"


def test_extended_attributes_count(place):
    path, fd = place
    (path / "file").write_bytes(b"x")
    eye = Eye(1000)
    before = eye.look(fd, "file", WATCH).entry
    try:
        os.setxattr(path / "file", "user.note", b"a,\x1b\n")
        os.setxattr(path / "file", "user.empty", b"")
    except OSError:
        pytest.skip("no user attributes on this file system")
    after = eye.look(fd, "file", WATCH).entry
    assert before.xattrs == b""
    assert len(after.xattrs) == 32
    os.setxattr(path / "file", "user.note", b"b")
    assert eye.look(fd, "file", WATCH).entry.xattrs != after.xattrs
    assert xattr.lasting(["security.capability", "trusted.x", "user.a"]) == ["user.a"]


def test_declared_columns_are_yielded(place):
    path, fd = place
    (path / "file").write_bytes(b"x")
    seen = Eye(1000).look(fd, "file", WATCH)
    columns = present("/file", seen, Algorithm.SHA256, 1, Origin.LIVE).columns
    # COMPARED: these are of files that the policy marks, see differing
    assert columns.keys() == COLUMNS.keys() - {*COMPARED, "blake2b"}
    references = {name for name, column in COLUMNS.items() if column.reference}
    assert seen.entry.columns(Algorithm.SHA256).keys() == references - {"blake2b"}
    assert seen.entry.columns(Algorithm.BLAKE2B).keys() == references - {"sha256"}


@pytest.mark.parametrize("path", ["", "/", "relative\0", "/" + "x" * 5000, "/" + "y" * 300])
def test_impossible_paths_are_unreadable_or_absent(tmp_path, path):
    assert observe(Eye(10), None, str(tmp_path), path, 1, Origin.LIVE).status in {Status.UNREADABLE, Status.ABSENT}


def test_symlinked_parents_of_watches_are_followed(tmp_path):
    (tmp_path / "usr/lib/systemd").mkdir(parents=True)
    os.symlink("usr/lib", tmp_path / "lib")
    watches = [Watch("/lib/systemd/*.d", "unit"), Watch("/lib", "x"), Watch("/none/a", "y")]
    found = walk.resolved(watches, str(tmp_path))
    assert [watch.path for watch in found] == ["/usr/lib/systemd/*.d", "/lib", "/none/a"]
