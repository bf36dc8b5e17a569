"""/proc: fields of processes, hostile names, things that vanish, owners of sockets."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import DecodeError
from edgeguard.linux import procfs

TAIL = b" S 17 1 7 34817 1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_name_leaves_the_fields_alone(name):
    stat = procfs.parse_stat(b"42 (" + name + b")" + TAIL)
    assert (stat.ppid, stat.session, stat.tty, stat.start) == (17, 7, 34817, 12345)
    assert os.fsencode(stat.name) == name


@given(st.binary(max_size=100))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_value_or_one_error(data):
    with contextlib.suppress(DecodeError):
        procfs.parse_stat(data)
    procfs.parse_uid(data)
    procfs.parse_argv(data)
    procfs.session_of(procfs.parse_cgroup(data))
    procfs.unit_of(procfs.parse_cgroup(data))


def test_own_process():
    one = procfs.Procfs().look(os.getpid())
    assert one is not None
    assert one.link == os.path.realpath(sys.executable)
    assert one.ppid == os.getppid()
    assert one.uid == os.getuid()
    assert one.start == procfs.Procfs().start(os.getpid())


def test_what_is_gone_is_none():
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    tree = procfs.Procfs()
    assert tree.look(child.pid) is None
    assert tree.exe(child.pid) is None
    assert tree.start(child.pid) is None


def test_arguments_are_bounded():
    assert len(procfs.parse_argv(b"\0".join([b"x"] * 1000))) == procfs.ARGV_ITEMS
    assert procfs.parse_argv(b"a\0\xff\n\0\0") == ("a", os.fsdecode(b"\xff\n"))


@pytest.mark.parametrize(
    ("cgroup", "unit", "session"),
    [
        (b"0::/system.slice/ssh.service\n", "ssh.service", ""),
        (b"0::/user.slice/user-1000.slice/session-7.scope\n", "session-7.scope", "7"),
        (b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n", "user@1000.service", ""),
        (b"9:name=systemd:/system.slice/cron.service\n0::/\n", "cron.service", ""),
        (b"0::/system.slice/docker-0f.scope\n", "docker-0f.scope", ""),
        (b"0::/\n", "", ""),
        (b"", "", ""),
        (b"0::/user.slice/session-../../x.scope\n", "x.scope", ""),
    ],
)
def test_units(cgroup, unit, session):
    path = procfs.parse_cgroup(cgroup)
    assert procfs.unit_of(path) == unit
    assert procfs.session_of(path) == session


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0, ""),
        (os.makedev(136, 3), "pts/3"),
        (os.makedev(137, 1), "pts/257"),
        (os.makedev(4, 1), "tty1"),
        (os.makedev(4, 64), "ttyS0"),
        (os.makedev(204, 64), "ttyAMA0"),
        (os.makedev(166, 0), "ttyACM0"),
        (os.makedev(240, 5), "char 240:5"),
    ],
)
def test_terminals(device, name):
    assert procfs.tty_name(device) == name


def test_owner_of_a_socket():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        inode = os.fstat(one.fileno()).st_ino
        tree = procfs.Procfs()
        owner = tree.owners([inode, 2**40], first=[os.getpid()])
        assert owner == {inode: procfs.Owner(os.getpid(), one.fileno())}
        assert tree.holds(owner[inode], inode)
    assert not tree.holds(owner[inode], inode)


def test_address_of_a_login(tmp_path):
    sessions = tmp_path / "run/systemd/sessions"
    sessions.mkdir(parents=True)
    (sessions / "7").write_bytes(b"UID=1000\nREMOTE=1\nREMOTE_HOST=10.0.3.8\n")
    tree = procfs.Procfs(str(tmp_path))
    assert tree.address("7") == "10.0.3.8"
    assert tree.address("8") == ""
    assert tree.address("../7") == ""


def test_a_process_that_is_not_for_us_to_see():
    """Its exe is hidden, the rest is there. pid 1 is such a process for every ordinary user."""
    try:
        os.readlink("/proc/1/exe")
    except PermissionError:
        one = procfs.Procfs().look(1)
        assert (one.pid, one.link, one.ppid) == (1, "", 0)
    else:
        assert procfs.Procfs().look(1).link
