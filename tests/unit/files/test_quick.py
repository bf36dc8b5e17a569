"""A whole directory read at once says the same as a look at each file, and leaves to a look whatever is not plain."""

import os
import time
from stat import S_ISDIR

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeguard.codec.digests import Algorithm, slim, swift
from edgeguard.linux import glance, statx
from edgeguard.model import Watch
from edgeguard.sensors import content
from edgeguard.sensors.look import CHUNK, CannotLook, Eye
from edgeguard.sensors.observed import STAT
from tests import lent

WATCH = Watch("/", "config")
NAMES = ["empty", "fifo", "file", "just", "large", "link", "marked", "set", "\udcff\n"]


@pytest.fixture
def place(tmp_path):
    """Some of everything, made long ago as far as clocks are concerned."""
    for name, held in (("empty", b""), ("file", b"content"), ("large", bytes(CHUNK + 1)), ("just", bytes(CHUNK))):
        (tmp_path / name).write_bytes(held)
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


@pytest.fixture(params=[(False, Algorithm.SHA256), (True, Algorithm.SHA256), (True, Algorithm.BLAKE2B)])
def eye(request):
    thorough, algorithm = request.param
    return Eye(1 << 30, thorough=thorough, digester=swift(algorithm))


def quick(eye, fd, names=NAMES, settled=1 << 62, stats=None):
    stats = stats or [os.lstat(name, dir_fd=fd) for name in names]
    return dict(zip(names, eye.quick(fd, names, stats, "config", settled), strict=True))


def test_it_says_what_a_look_says(place, eye):
    found = quick(eye, place)
    assert {name for name, entry in found.items() if entry is None} == {"fifo", "large", "link"}
    for name, entry in found.items():
        if entry is not None:
            slow = Eye(1 << 30, digester=slim(eye.digester.algorithm))
            assert entry == slow.look(place, name, WATCH).entry
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
    before = lent.open_now()
    quick(eye, place)
    monkeypatch.setattr(os, "listxattr", lambda _fd: os.open("/nowhere", os.O_RDONLY))
    quick(eye, place)
    assert len(lent.open_now()) == len(before)


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


@pytest.fixture
def many(tmp_path):
    """More names than are asked for at once, directories and odd things among them."""
    for number in range(2 * glance.SLOTS + 3):
        if number % 50 == 7:
            (tmp_path / f"{number:04d}").mkdir()
        elif number % 50 == 9:
            os.mkfifo(tmp_path / f"{number:04d}")
        elif number % 50 == 11:
            (tmp_path / f"{number:04d}").symlink_to("0007")
        else:
            (tmp_path / f"{number:04d}").write_bytes(b"x" * number)
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def as_seen(fd):
    names = sorted(os.listdir(fd))
    found = [os.lstat(name, dir_fd=fd) for name in names]
    return [os.fsencode(name) for name in names], [[at.st_ino, at.st_ctime_ns, at.st_size] for at in found]


def pack(rows):
    return b"".join(STAT.pack(*row) for row in rows)


@pytest.fixture(params=["lstat", "statx"])
def way(request, monkeypatch):
    if request.param == "statx":
        monkeypatch.setattr(glance, "_lstat", None)  # as before glibc 2.33
    elif glance.Glance()._layout is glance.STATX:
        pytest.skip("lstat's answer has a layout of its own here")


def same(fd, names, stats):
    glancing = glance.Glance()
    found = glancing.same(fd, names, stats)
    glancing.close()
    return found


def test_a_glance_finds_all_as_it_was_and_the_directories(many, way):
    names, rows = as_seen(many)
    expected = []
    for position, name in enumerate(names):
        at = os.lstat(name, dir_fd=many)
        if S_ISDIR(at.st_mode):
            expected.append((position, at.st_dev, at.st_ino))
    assert len(expected) > 3
    assert same(many, names, pack(rows)) == expected


@given(
    position=st.integers(0, 2 * glance.SLOTS + 2),
    column=st.integers(0, 2),
    by=st.integers(1, 1 << 62),
    upwards=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_glance_misses_no_difference(many, way, position, column, by, upwards):
    names, rows = as_seen(many)
    value = rows[position][column] + (by if upwards else -by)
    rows[position][column] = value if column == 1 else value % (1 << 64)
    if -(1 << 63) <= rows[position][1] < 1 << 63:
        assert same(many, names, pack(rows)) is None


def test_times_that_differ_by_what_carries_into_the_next_are_not_the_same(many, way):
    """The change times are compared as one number; two that are wrong must not make one that is right."""
    names, rows = as_seen(many)
    rows[0][1] -= 1 << 62
    for carried in (-1, 1):
        rows[1][1] += carried
        assert same(many, names, pack(rows)) is None


def test_a_time_before_1970_is_looked_at_properly(many, way):
    names, rows = as_seen(many)
    glancing = glance.Glance()
    ask = glancing._ask

    def earlier(fd, some):
        done = list(ask(fd, some))
        if some[0] == names[0]:
            glancing._words[glancing._layout.seconds] = (1 << 64) - 5
            glancing._words[glancing._layout.nanoseconds] = 0
        return done

    glancing._ask = earlier
    rows[0][1] = -5_000_000_000
    assert glancing.same(many, names, pack(rows)) is None
    glancing.close()


def test_a_glance_at_what_is_gone_is_none(many, way):
    names, rows = as_seen(many)
    os.unlink(names[-1], dir_fd=many)
    assert same(many, names, pack(rows)) is None


def test_a_glance_leaves_the_process_where_it_stood(many, tmp_path, monkeypatch):
    (tmp_path / "0007/stand").mkdir()
    monkeypatch.chdir(tmp_path / "0007/stand")
    names, rows = as_seen(many)
    before = len(lent.open_now())
    glancing = glance.Glance()
    assert glancing.same(many, names, pack(rows))
    glancing.close()
    glancing.close()
    assert os.path.samefile(".", tmp_path / "0007/stand")
    assert len(lent.open_now()) == before


def test_where_the_process_may_not_stand_all_is_looked_at(many, monkeypatch):
    names, rows = as_seen(many)

    def refuse(_fd):
        raise PermissionError(13, "Permission denied")

    glancing = glance.Glance()
    monkeypatch.setattr(os, "fchdir", refuse)
    if glancing._layout is not glance.STATX:
        assert glancing.same(many, names, pack(rows)) is None


def test_a_layout_that_tells_something_else_is_not_used():
    right = next(filter(glance.tells, (glance.X86_64, glance.GENERIC_64)), None)
    if right is None:
        pytest.skip("lstat's answer has a layout of its own here")
    for field in ("inode", "seconds", "nanoseconds", "device", "type"):  # a directory's size is often that of a block
        assert not glance.tells(right._replace(**{field: getattr(right, field) + 1}))


def test_a_glance_tells_which_file_is_open(many, way):
    at = os.fstat(many)
    assert glance.Glance().identity(many) == (at.st_dev, at.st_ino)


def test_what_lies_on_the_disk_otherwise_is_left_to_a_look(place, monkeypatch):
    eye = Eye(1 << 30, thorough=True, digester=swift(Algorithm.SHA256))
    if quick(eye, place, ["file"]) == {"file": None}:
        pytest.skip("this file system reads no other way than by its cache")
    monkeypatch.setattr(content.Disk, "_cached_equal", lambda *_: False)
    assert quick(eye, place, ["file"]) == {"file": None}
