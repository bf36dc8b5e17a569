"""Processes: stop one that runs from where no program should.

A pid is only a number that is given away again. So the process is held by a pidfd first, and only then is it checked
that it is still the one in the finding: same start time, same program, same odd state of that program.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import time

from edgeguard.errors import RemediationFailed, RemediationRefused
from edgeguard.model import Columns
from edgeguard.remediations import Order, Plan, World, preflight

START_SLACK_MS = 2_000  # the clock may have been slewed since; a pid that comes round to such a program again is as bad
WAIT_MS = 3_000  # after SIGKILL a process is gone at once, unless it waits for a disk
DELETED = " (deleted)"
STOPPABLE = ("deleted", "replaced", "memfd")


class StopProcess:
    """SIGKILL by pidfd. SIGTERM would only tell it to hurry."""

    verb = "stop-process"
    kinds = ("process",)

    def prepare(self, order: Order, world: World) -> Plan:
        pid, start = order.observed.get("pid"), order.observed.get("start")
        if not isinstance(pid, int) or not isinstance(start, int) or pid < 1:
            raise RemediationRefused("the finding does not say which process")
        plan: Plan = {"pid": pid, "exe": order.observed.get("exe") or order.subject, "unit": ""}
        fd = _hold(plan)
        try:
            process = _found(plan, start, world)
            plan["start"] = process.start  # in clock ticks: from here on exact
            _still_odd(process.exe, order.observed, world)
            cgroup = _cgroup(world.proc, pid)
            reason = preflight.process_carries(pid, preflight.processes(world.proc), os.getpid(), cgroup)
        finally:
            os.close(fd)
        if reason:
            raise RemediationRefused(reason)
        return plan | {"unit": unit_of(cgroup)}

    def apply(self, plan: Plan, world: World) -> str:
        fd = _hold(plan)
        try:
            _same(plan, world)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(WAIT_MS):
                raise RemediationFailed(f"process {plan['pid']} does not end; it waits for a device")
        finally:
            os.close(fd)
        return f"process {plan['pid']} was stopped"

    def verify(self, plan: Plan, world: World) -> bool:
        found = preflight.read_process(world.proc, plan["pid"])
        # a zombie has no program any more: it is gone but for its parent's question how it ended
        return found is None or found.start != plan["start"] or not found.exe

    def revert(self, plan: Plan, world: World) -> str:
        if not self.verify(plan, world):
            return "it was not stopped"
        again = f"; start it with: systemctl start {plan['unit']}" if plan["unit"] else ""
        return f"a stopped process cannot be brought back; its program may run again{again}"


def _hold(plan: Plan) -> int:
    try:
        return os.pidfd_open(plan["pid"])
    except ProcessLookupError as error:
        raise RemediationRefused("it has ended already") from error


def _found(plan: Plan, start: int, world: World) -> preflight.Process:
    """The process behind the pid, if it is the one in the finding, which tells its start in ms since 1970."""
    process = preflight.read_process(world.proc, plan["pid"])
    if process is None or abs(started_at(process.start) - start) > START_SLACK_MS:
        raise RemediationRefused("it has ended already, and its number is used by another process")
    return _same(plan | {"start": process.start}, world)


def started_at(ticks: int) -> int:
    """Clock ticks since boot as ms since 1970, by the clock as it is set now; as the sensor has it."""
    boot_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return boot_ns // 1_000_000 + ticks * 1000 // os.sysconf("SC_CLK_TCK")


def _same(plan: Plan, world: World) -> preflight.Process:
    """The process behind the pid, if it is still the one that was found."""
    found = preflight.read_process(world.proc, plan["pid"])
    if found is None or found.start != plan["start"]:
        raise RemediationRefused("it has ended already, and its number is used by another process")
    if plain(found.exe) != plain(plan["exe"]):
        raise RemediationRefused("it runs another program now")
    return found


def plain(exe: str) -> str:
    """A program's path as findings write it: without "(deleted)"; memory files as memfd:NAME."""
    exe = exe.removesuffix(DELETED)
    return exe[1:] if exe.startswith("/memfd:") else exe


def _still_odd(exe: str, observed: Columns, world: World) -> None:
    """What made it a finding still holds, seen with our own eyes: a daemon led astray must not stop good programs."""
    if exe.endswith(DELETED) or exe.startswith("/memfd:"):
        return
    if observed.get("exe_state") in STOPPABLE:
        raise RemediationRefused("its program is an ordinary file now")
    if world.lookup(os.fsencode(exe)) is not None and not _writable(os.path.dirname(exe)):
        raise RemediationRefused("the baseline knows its program")


def _writable(directory: str) -> bool:
    """Can others than root put programs there?"""
    while True:
        try:
            status = os.stat(directory)
        except OSError:
            return True
        if status.st_uid != 0 or status.st_mode & stat.S_IWOTH:
            return True
        if directory in ("/", ""):
            return False
        directory = os.path.dirname(directory)


def _cgroup(proc: str, pid: int) -> str:
    try:
        with open(f"{proc}/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096)
    except OSError:
        return ""


def unit_of(cgroup: str) -> str:
    """The system service in the last cgroup line, "" for sessions and anything that is not plainly a unit name."""
    for part in reversed(cgroup.strip().rpartition("::")[2].split("/")):
        if part.endswith(".service") and part.replace("-", "").replace(".", "").replace("@", "").isalnum():
            return part
    return ""
