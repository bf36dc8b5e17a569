"""Ways of changing a file, each as a function that a process of its own carries out, and harmless twins of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RENAME_EXCHANGE = 2
AT_FDCWD = -100
FS_IOC_SETFLAGS, FS_IOC_GETFLAGS, FS_IMMUTABLE_FL = 0x40086602, 0x80086601, 0x10
CONTENT = b"as it should be\n" * 512  # 8 KiB: two pages
EVIL = b"AS IT SHOULD BE\n" * 512
ACL = bytes.fromhex("02000000 01000600ffffffff 02000600e7030000 04000400ffffffff 10000600ffffffff 20000400ffffffff")
CAPS = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep

Act = Callable[[Path], "Iterator[None] | None"]


class Doer:
    """A process that does one thing. An act that yields goes on existing, as it is, until `finish`."""

    def __init__(self, act: Act, place: Path) -> None:
        ready, told = os.pipe()
        waits, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(ready)
                os.close(self._go)
                steps = act(place)
                if steps is not None:
                    for _ in steps:
                        os.write(told, b"r")
                        os.read(waits, 1)
                else:
                    os.write(told, b"r")
                code = 0
            except BaseException as error:  # noqa: BLE001 - the child must not go on with the tests of its parent
                os.write(2, f"{act.__name__}: {error!r}\n".encode())
            finally:
                os._exit(code)
        os.close(told)
        os.close(waits)
        self._ready = ready
        self.began = os.read(ready, 1) == b"r"

    def go_on(self) -> None:
        """To its next yield."""
        os.write(self._go, b"g")
        assert os.read(self._ready, 1) == b"r"

    def finish(self) -> None:
        os.close(self._go)
        os.close(self._ready)
        _, status = os.waitpid(self.pid, 0)
        assert (self.began, status) == (True, 0), "the act itself failed"


def target(place: Path) -> Path:
    return place / "file"


# -- content


def write(place: Path) -> None:
    target(place).write_bytes(EVIL)


def append(place: Path) -> None:
    with open(target(place), "ab") as file:
        file.write(b"more\n")


def write_and_stay(place: Path) -> Iterator[None]:
    fd = os.open(target(place), os.O_RDWR)
    os.pwrite(fd, b"EVIL", 0)
    yield
    os.close(fd)


def map_and_leave(place: Path) -> None:
    fd = os.open(target(place), os.O_RDWR)
    with mmap.mmap(fd, 0) as view:
        view[:4] = b"EVIL"
    os.close(fd)


def map_and_stay(place: Path) -> Iterator[None]:
    fd = os.open(target(place), os.O_RDWR)
    view = mmap.mmap(fd, 0)
    os.close(fd)
    view[:4] = b"EVIL"
    yield
    view.close()


def truncate(place: Path) -> None:
    os.truncate(target(place), 5)


def punch(place: Path) -> None:
    fd = os.open(target(place), os.O_RDWR)
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    done = LIBC.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(4096))
    os.close(fd)
    assert done == 0


def io_uring(place: Path) -> None:
    """One IORING_OP_WRITE by bare system calls."""
    parameters = ctypes.create_string_buffer(120)
    ring = LIBC.syscall(425, 4, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    sq_off = struct.unpack_from("10I", parameters, 40)
    cq_off = struct.unpack_from("10I", parameters, 80)
    entries, cq_entries = struct.unpack_from("2I", parameters, 0)
    size = max(sq_off[6] + entries * 4, cq_off[5] + cq_entries * 16)
    queue = mmap.mmap(ring, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
    slots = mmap.mmap(ring, entries * 64, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0x10000000)
    fd = os.open(target(place), os.O_WRONLY)
    text = ctypes.create_string_buffer(EVIL, len(EVIL))
    slots[:64] = struct.pack("=BBHiQQIIQ24x", 23, 0, 0, fd, 0, ctypes.addressof(text), len(EVIL), 0, 7)
    struct.pack_into("I", queue, sq_off[6], 0)
    struct.pack_into("I", queue, sq_off[1], struct.unpack_from("I", queue, sq_off[1])[0] + 1)
    assert LIBC.syscall(426, ring, 1, 1, 1, None, 0) == 1
    os.close(fd)


def splice(place: Path) -> None:
    out, into = os.pipe()
    os.write(into, EVIL[:4096])
    with open(target(place), "r+b") as file:
        os.splice(out, file.fileno(), 4096, offset_dst=0)


def copy_file_range(place: Path) -> None:
    (place.parents[1] / "beside" / "source").write_bytes(EVIL)
    with open(place.parents[1] / "beside" / "source", "rb") as source, open(target(place), "r+b") as file:
        os.copy_file_range(source.fileno(), file.fileno(), len(EVIL))


def sendfile(place: Path) -> None:
    (place.parents[1] / "beside" / "source").write_bytes(EVIL)
    with open(place.parents[1] / "beside" / "source", "rb") as source, open(target(place), "r+b") as file:
        os.sendfile(file.fileno(), source.fileno(), 0, len(EVIL))


def through_proc(place: Path) -> None:
    """By the descriptor of somebody else who only reads."""
    with open(target(place), "rb") as read:
        reader = subprocess.Popen(["sleep", "60"], stdin=read)
    try:
        with open(f"/proc/{reader.pid}/fd/0", "r+b") as file:
            file.write(b"EVIL")
    finally:
        reader.kill()
        reader.wait()


def other_namespace(place: Path) -> None:
    """The process itself in a mount namespace of its own, where the tree has another path."""
    assert LIBC.unshare(0x20000) == 0
    assert LIBC.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
    assert LIBC.mount(os.fsencode(place), b"/mnt", None, 0x1000, None) == 0
    with open("/mnt/file", "r+b") as file:
        file.write(b"EVIL")


def mtime_back(place: Path) -> None:
    before = target(place).stat()
    with open(target(place), "r+b") as file:
        file.write(EVIL)
    os.utime(target(place), ns=(before.st_atime_ns, before.st_mtime_ns))


def below_cached(place: Path) -> None:
    """A write to the block device; the page cache keeps what was there."""
    os.sync()
    base = place.parents[2]
    name = f"/{target(place).relative_to(base / 'disk')}"
    asked = subprocess.run(["debugfs", "-R", f"bmap {name} 0", base / "image"], check=True, capture_output=True)
    size = os.statvfs(base / "disk").f_bsize
    target(place).read_bytes()
    with open(base / "image", "r+b") as disk:
        disk.seek(int(asked.stdout) * size)
        assert disk.read(4) == CONTENT[:4]
        disk.seek(-4, os.SEEK_CUR)
        disk.write(b"EVIL")


def below(place: Path) -> None:
    below_cached(place)
    with open(target(place), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert target(place).read_bytes()[:4] == b"EVIL"


def map_twice(place: Path) -> Iterator[None]:
    """The page is dirty already when it is written to: the change time is that of the first write."""
    fd = os.open(target(place), os.O_RDWR)
    view = mmap.mmap(fd, 0)
    os.close(fd)
    view[0:4] = CONTENT[:4]
    yield
    view[0:4] = b"EVIL"
    yield
    view.close()


# -- names


def rename_over(place: Path) -> None:
    (place / "next").write_bytes(EVIL)
    os.rename(place / "next", target(place))


def exchange(place: Path) -> None:
    other = place.parents[1] / "beside" / f"{place.name}.other"
    other.write_bytes(EVIL)
    paths = (AT_FDCWD, os.fsencode(other), AT_FDCWD, os.fsencode(target(place)))
    assert LIBC.renameat2(*paths, RENAME_EXCHANGE) == 0


def through_link(place: Path) -> None:
    """The link was made before anybody looked (see `linked_outside`)."""
    with open(place.parents[1] / "beside" / f"{place.name}.link", "r+b") as file:
        file.write(b"EVIL")


def linked_outside(place: Path) -> None:
    target(place).write_bytes(CONTENT)
    os.link(target(place), place.parents[1] / "beside" / f"{place.name}.link")


def through_new_link(place: Path) -> None:
    link = place.parents[1] / "beside" / f"{place.name}.new"
    os.link(target(place), link)
    with open(link, "r+b") as file:
        file.write(b"EVIL")
    os.unlink(link)


def symlink_swap(place: Path) -> None:
    os.symlink("/etc/shadow", place / "next")
    os.rename(place / "next", place / "link")


def with_link(place: Path) -> None:
    target(place).write_bytes(CONTENT)
    os.symlink("file", place / "link")


def parent_swap(place: Path) -> None:
    """The directory goes, and a symlink to one with other content has its name."""
    other = place.parents[1] / "beside" / f"{place.name}.dir"
    other.mkdir()
    (other / "file").write_bytes(EVIL)
    os.rename(place / "dir", place.parents[1] / "beside" / f"{place.name}.gone")
    os.symlink(other, place / "dir")


def with_directory(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "dir" / "file").write_bytes(CONTENT)


def moved_in(place: Path) -> None:
    other = place.parents[1] / "beside" / f"{place.name}.tree"
    (other / "a" / "b").mkdir(parents=True)
    (other / "a" / "b" / "deep").write_bytes(EVIL)
    os.rename(other, place / "tree")


def moved_out(place: Path) -> None:
    os.rename(place / "tree", place.parents[1] / "beside" / f"{place.name}.out")


def with_deep_tree(place: Path) -> None:
    deep = place.joinpath("tree", *["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(CONTENT)


def odd_names(place: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b"n" * 255):
        with open(os.path.join(os.fsencode(place), name), "wb") as file:
            file.write(b"x")


def beyond_path_max(place: Path) -> None:
    """Some 20 levels of 255 bytes, made from inside: no call takes the whole path."""
    os.chdir(place)
    for _ in range(20):
        os.mkdir("d" * 255)
        os.chdir("d" * 255)
    Path("file").write_bytes(EVIL)


def fifo(place: Path) -> None:
    os.mkfifo(place / "fifo")


def device_node(place: Path) -> None:
    os.mknod(place / "null", 0o666 | 0o020000, os.makedev(1, 3))


def unix_socket(place: Path) -> None:
    os.chdir(place)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")


def remove(place: Path) -> None:
    target(place).unlink()


def create(place: Path) -> None:
    (place / "new").write_bytes(EVIL)


def come_and_go(place: Path) -> None:
    (place / "brief").write_bytes(EVIL)
    (place / "brief").unlink()


def swap_for_long(place: Path) -> Iterator[None]:
    """Another file has the name, until it is put back."""
    os.rename(target(place), place.parents[1] / "beside" / f"{place.name}.kept")
    target(place).write_bytes(EVIL)
    yield
    os.rename(place.parents[1] / "beside" / f"{place.name}.kept", target(place))


# -- attributes


def chmod(place: Path) -> None:
    os.chmod(target(place), 0o4755)


def chown(place: Path) -> None:
    os.chown(target(place), 1234, 1234)


def acl(place: Path) -> None:
    os.setxattr(target(place), "system.posix_acl_access", ACL)


def xattr(place: Path) -> None:
    os.setxattr(target(place), "user.note", b"evil")


def capability(place: Path) -> None:
    os.setxattr(target(place), "security.capability", CAPS)


def _flags(path: Path, value: int) -> None:
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("q", value))
    os.close(fd)


def immutable(place: Path) -> None:
    _flags(target(place), FS_IMMUTABLE_FL | 0x80000)


def mutable(place: Path) -> None:
    _flags(target(place), 0x80000)


def with_immutable(place: Path) -> None:
    target(place).write_bytes(CONTENT)
    immutable(place)


# -- mounts


def bind_over(place: Path) -> None:
    other = place.parents[1] / "beside" / f"{place.name}.over"
    other.write_bytes(EVIL)
    assert LIBC.mount(os.fsencode(other), os.fsencode(target(place)), None, 0x1000, None) == 0


def tmpfs_over(place: Path) -> None:
    assert LIBC.mount(b"none", os.fsencode(place / "dir"), b"tmpfs", 0, None) == 0
    (place / "dir" / "file").write_bytes(EVIL)


def overlay_over(place: Path) -> None:
    base = place.parents[1] / "beside" / f"{place.name}.layers"
    for name in ("upper", "work"):
        (base / name).mkdir(parents=True)
    (base / "upper" / "file").write_bytes(EVIL)
    options = f"lowerdir={place / 'dir'},upperdir={base / 'upper'},workdir={base / 'work'}"
    where = os.fsencode(place / "dir")
    assert LIBC.mount(b"overlay", where, b"overlay", 0, options.encode()) == 0, os.strerror(ctypes.get_errno())


# -- what changes nothing


def open_only(place: Path) -> None:
    os.close(os.open(target(place), os.O_RDWR))


def touch_access(place: Path) -> None:
    os.utime(target(place), (1, target(place).stat().st_mtime))


def same_mode(place: Path) -> None:
    os.chmod(target(place), 0o644)


def same_owner(place: Path) -> None:
    os.chown(target(place), 0, 0)


def same_content(place: Path) -> None:
    target(place).write_bytes(CONTENT)  # O_TRUNC, and the same again


def same_by_rename(place: Path) -> None:
    (place.parents[1] / "beside" / "same").write_bytes(CONTENT)
    os.rename(place.parents[1] / "beside" / "same", target(place))


def map_only(place: Path) -> None:
    fd = os.open(target(place), os.O_RDWR)
    with mmap.mmap(fd, 0) as view:
        view[:4] = CONTENT[:4]
    os.close(fd)


def read_it(place: Path) -> None:
    target(place).read_bytes()


def log_grows(place: Path) -> None:
    with open(place.parent / "logs" / "log", "ab") as file:
        file.write(b"a line\n")


def outside(place: Path) -> None:
    beside = place.parents[1] / "beside"
    (beside / f"{place.name}.a").write_bytes(EVIL)
    os.link(beside / f"{place.name}.a", beside / f"{place.name}.b")
    with open(beside / f"{place.name}.b", "ab") as file:
        file.write(b"more")
    os.chmod(beside / f"{place.name}.a", 0o600)
    os.mkfifo(beside / f"{place.name}.c")


def link_and_unlink(place: Path) -> None:
    os.link(target(place), place.parents[1] / "beside" / f"{place.name}.l")
    os.unlink(place.parents[1] / "beside" / f"{place.name}.l")


def xattr_and_back(place: Path) -> None:
    os.setxattr(target(place), "user.note", b"x")
    os.removexattr(target(place), "user.note")


def flags_and_back(place: Path) -> None:
    immutable(place)
    mutable(place)


def mount_elsewhere(place: Path) -> None:
    other = place.parents[1] / "beside" / f"{place.name}.mnt"
    other.mkdir()
    assert LIBC.mount(b"none", os.fsencode(other), b"tmpfs", 0, None) == 0
    (other / "file").write_bytes(EVIL)
    assert LIBC.umount2(os.fsencode(other), 2) == 0


def there_and_back(place: Path) -> None:
    os.rename(place / "dir", place.parents[1] / "beside" / f"{place.name}.while")
    os.rename(place.parents[1] / "beside" / f"{place.name}.while", place / "dir")


def tree_there_and_back(place: Path) -> None:
    os.rename(place / "tree", place.parents[1] / "beside" / f"{place.name}.while")
    os.rename(place.parents[1] / "beside" / f"{place.name}.while", place / "tree")
