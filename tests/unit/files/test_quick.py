"""A whole directory read at once says the same as a look at each file, and leaves to a look whatever is not plain."""

import os
import time

import pytest

from edgeguard.linux import statx
from edgeguard.model import Watch
from edgeguard.sensors import look
from edgeguard.sensors.look import CHUNK, CannotLook, Eye

WATCH = Watch("/", "config")
NAMES = ["empty", "fifo", "file", "just", "large", "link", "marked", "set", "\udcff\n"]


@pytest.fixture
def place(tmp_path):
    """Some of everything, made long ago as far as clocks are concerned."""
    for name, content in (("empty", b""), ("file", b"content"), ("large", bytes(CHUNK + 1)), ("just", bytes(CHUNK))):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "set").write_bytes(b"program")
    (tmp_path / "set").chmod(0o4755)
    (tmp_path / "marked").write_bytes(b"marked")
    os.setxattr(tmp_path / "marked", "user.mark", b"x")
    (tmp_path / "\udcff\n").write_bytes(b"name")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture(params=[False, True])
def eye(request):
    return Eye(1 << 30, thorough=request.param, new_hash=look.openssl)


def quick(eye, fd, names=NAMES, settled=1 << 62, stats=None):
    stats = stats or [os.lstat(name, dir_fd=fd) for name in names]
    return dict(zip(names, eye.quick(fd, names, stats, "config", settled), strict=True))


def test_it_says_what_a_look_says(place, eye):
    found = quick(eye, place)
    assert {name for name, entry in found.items() if entry is None} == {"fifo", "large", "link"}
    for name, entry in found.items():
        if entry is not None:
            assert entry == Eye(1 << 30).look(place, name, WATCH).entry
    assert eye.bytes_read == sum(entry.size for entry in found.values() if entry)


def test_what_changed_just_now_is_left_to_a_look(place, eye):
    assert quick(eye, place, ["file"], settled=time.time_ns() - 2_000_000_000) == {"file": None}


def test_what_changes_while_it_is_read_is_left_to_a_look(place, eye, monkeypatch):
    """After all was read, so that only the second question can tell."""
    monkeypatch.setattr(os, "listxattr", lambda fd: os.chmod(fd, 0o600) or [])
    assert quick(eye, place, ["file", "empty"]) == {"file": None, "empty": None}


@pytest.mark.parametrize("other", ["file", "fifo", "link", "nothing"])
def test_what_takes_its_place_is_left_to_a_look(place, eye, tmp_path, other):
    stats = [os.lstat("file", dir_fd=place)]
    os.unlink("file", dir_fd=place)
    writer = -1
    if other == "file":
        (tmp_path / "file").write_bytes(b"another")
    elif other == "fifo":
        os.mkfifo(tmp_path / "file")
        writer = os.open(tmp_path / "file", os.O_RDWR | os.O_NONBLOCK)
        os.write(writer, b"for somebody else")
    elif other == "link":
        (tmp_path / "file").symlink_to("/etc/passwd")
    assert quick(eye, place, ["file"], stats=stats) == {"file": None}
    if writer >= 0:
        assert os.read(writer, 100) == b"for somebody else"
        os.close(writer)


def test_no_descriptor_stays_open(place, eye, monkeypatch):
    before = os.listdir("/proc/self/fd")
    quick(eye, place)
    monkeypatch.setattr(os, "listxattr", lambda _fd: os.open("/nowhere", os.O_RDONLY))
    quick(eye, place)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_where_the_kernel_cannot_tell_so_every_file_is_looked_at(place, eye, monkeypatch):
    monkeypatch.setattr(statx, "_statx", lambda *_: -1)
    opened = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda *args, **more: opened.append(args) or original(*args, **more))
    assert quick(eye, place, ["file", "empty", "just"]) == {"file": None, "empty": None, "just": None}
    assert len(opened) == 1  # the first one tells for all of this file system
    assert eye.look(place, "file", WATCH).entry.size == 7


def test_a_held_file_is_looked_at(place, eye, monkeypatch):
    told = bytearray(256)
    told[8] = told[56] = 0x10  # FS_IMMUTABLE_FL, and that this file system knows of it

    def held(*_):
        statx._buffer[:] = bytes(told)
        return 0

    monkeypatch.setattr(statx, "_statx", held)
    assert quick(eye, place, ["file"]) == {"file": None}
    told[56] = 0
    assert statx.unchanged(-1, os.lstat("file", dir_fd=place)) is None


def test_what_cannot_be_read_is_said_by_the_look(place, eye, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert quick(eye, place, ["file"]) == {"file": None}
    with pytest.raises(CannotLook):
        eye.look(place, "file", WATCH)
