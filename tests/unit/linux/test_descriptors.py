"""Mounts, timers, pidfds, priorities: the small interfaces that hand out descriptors."""

import contextlib
import errno
import os
import select
import signal
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts, pidfd, priority, procconn, procfs, timerfd

LINE = rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot rw,errors=continue"


def test_mountinfo_line():
    (one,) = mounts.parse(LINE + b"\n")
    assert (one.root, one.point, one.source) == ("/mnt1", "/mnt 2", "/dev/ro\\ot")
    assert (one.options, one.tags, one.fstype) == (("rw", "noatime"), ("master:1", "shared:2"), "ext3")


@given(st.binary(max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_mountinfo_is_a_value_or_one_error(data):
    for text in (data, LINE[:40] + data):
        with contextlib.suppress(DecodeError):
            mounts.parse(text)


def test_own_mounts_and_the_longest_wins():
    table = mounts.Mounts()
    try:
        assert not table.changed()
        assert table.of("/proc/1").fstype == "proc"
        above = table.of("/procession")  # None in a chroot whose top is no mount
        assert above is None or above.fstype != "proc"
    finally:
        table.close()


def test_timer_goes_off_once():
    timer = timerfd.Timer()
    try:
        assert not timer.expired()
        timer.arm(0.001)
        assert select.select([timer.fileno()], [], [], 2)[0]
        assert timer.expired()
        assert not timer.expired()
        timer.arm(60)
        timer.disarm()
        assert not timer.expired()
    finally:
        timer.close()


def test_no_step_of_the_clock_while_nobody_sets_it():
    clock = timerfd.ClockSteps()
    try:
        assert not select.select([clock.fileno()], [], [], 0)[0]
        assert clock.step() == 0.0
    finally:
        clock.close()


def test_that_the_clock_was_set_is_told_once(monkeypatch):
    """Also when it is set back before anybody looks, and while it is being armed again. No test may set the clock."""
    clock = timerfd.ClockSteps()
    read, arm = os.read, timerfd._set

    def cancelled(*_):
        raise OSError(errno.ECANCELED, "Operation canceled")

    try:
        assert not clock.was_set()
        monkeypatch.setattr(os, "read", cancelled)
        assert clock.was_set()
        assert clock.step() == 0.0  # it tells the time that it told
        monkeypatch.setattr(timerfd, "_set", cancelled)
        assert clock.was_set()
        monkeypatch.setattr(os, "read", read)
        monkeypatch.setattr(timerfd, "_set", arm)
        assert not clock.was_set()
    finally:
        clock.close()


def test_pidfd_belongs_to_one_process():
    child = subprocess.Popen(["/bin/sleep", "60"])
    tree = procfs.Procfs()
    start = tree.start(child.pid)
    with pytest.raises(ProcessLookupError):
        pidfd.open_same(child.pid, start - 1, tree)
    fd = pidfd.open_same(child.pid, start, tree)
    try:
        assert not pidfd.ended(fd)
        pidfd.send(fd, signal.SIGKILL)
        assert pidfd.ended(fd, 5)
        child.wait()
        with pytest.raises(ProcessLookupError):
            pidfd.send(fd, signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            pidfd.open_pid(child.pid)
    finally:
        os.close(fd)


def test_priorities_are_lowered_in_a_child():
    pid = os.fork()
    if pid == 0:
        priority.background()
        ok = os.getpriority(os.PRIO_PROCESS, 0) >= 10
        priority.idle()
        os._exit(0 if ok and os.getpriority(os.PRIO_PROCESS, 0) == 19 else 1)
    assert os.waitpid(pid, 0)[1] == 0


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_connector_message_is_a_value_or_one_error(data):
    with contextlib.suppress(DecodeError):
        procconn.parse(data)


def test_connector_message():
    body = procconn._EVENT.pack(procconn.PROC_EVENT_EXEC, 0, 41, 40)
    head = procconn._CN_MSG.pack(1, 1, 0, 0, len(body), 0)
    data = procconn._NLMSG.pack(16 + len(head) + len(body), 3, 0, 0, 0) + head + body
    assert procconn.parse(data) == (procconn.PROC_EVENT_EXEC, 41, 40)
    with pytest.raises(DecodeError):
        procconn.parse(data[:-1])
    with pytest.raises(DecodeError):
        procconn.parse(data[:16] + b"\2" + data[17:])
