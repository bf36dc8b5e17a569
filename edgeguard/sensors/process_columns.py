"""What is said of a process: the columns, and how they are filled from /proc, the program's file and the actor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgeguard.linux.procfs import Process, Procfs
from edgeguard.model import Actor, Columns, Observation
from edgeguard.sensors import Column
from edgeguard.sensors.programs import Program, Programs

COLUMNS: Mapping[str, Column] = {
    "exe": Column("str", "path of the program as the kernel names it; memfd:NAME for one that runs from memory"),
    "exe_state": Column(
        "str",
        "ok; deleted; replaced (another file has the path now); memfd; foreign (a container's file, not the one at"
        " this path here); private (the same behind a mount that only it has); unknown",
    ),
    "writable_dir": Column(
        "bool", "others than root and the user who runs it can put files there; in homes: anybody can"
    ),
    "exe_known": Column("bool", "the file is in the baseline"),
    "package": Column("str", "Debian package of the file; only looked up for unusual programs"),
    "pid": Column("int", "process number"),
    "ppid": Column("int", "number of the parent"),
    "uid": Column("int", "real user id"),
    "user": Column("str", "its name"),
    "login_uid": Column("int", "user who logged in, whatever became of the process since; empty for services"),
    "tty": Column("str", "terminal, below /dev"),
    "unit": Column("str", "systemd unit"),
    "argv": Column("list", "command line; secrets covered, cut to 2048 characters"),
    "parents": Column("list", "programs of the parents, nearest first, at most 8"),
    "start": Column("int", "when the process started, ms since 1970"),
    "script": Column("str", "the script that an interpreter runs"),
    "script_writable": Column("bool", "writable_dir, for that script"),
    "running": Column("int", "processes of this program now"),
    "repeats": Column("int", "further starts since the last observation that are only counted"),
}
LASTING = ("exe", "exe_state", "writable_dir", "exe_known")  # Program without its subject, in this order
VOLATILE = frozenset(COLUMNS) - {*LASTING, "package", "script_writable"}

_TICKS = os.sysconf("SC_CLK_TCK")


class Describer:
    """Fills the columns. `package_of` names the Debian package of a path, or ""."""

    def __init__(self, procfs: Procfs, programs: Programs, package_of: Callable[[str], str]) -> None:
        self._procfs = procfs
        self._programs = programs
        self._package_of = package_of

    def columns(self, process: Process, program: Program, actor: Actor) -> dict[str, Any]:
        script = self.script(process)
        look_up = program.suspicious and program.exe_state in ("ok", "replaced", "deleted")
        return {
            "exe": program.exe,
            "exe_state": program.exe_state,
            "writable_dir": program.writable_dir,
            "exe_known": program.exe_known,
            "package": self._package_of(program.exe) if look_up else "",
            "pid": process.pid,
            "ppid": process.ppid,
            "uid": process.uid,
            "user": actor.user,
            "login_uid": process.login_uid,
            "tty": process.tty,
            "unit": process.unit,
            "argv": actor.argv,
            "parents": tuple(exe for _, exe in actor.parents),
            "start": _started_at(process.start),
            "script": script,
            "script_writable": bool(script) and self._programs.writable(script, process.uid),
        }

    def script(self, process: Process) -> str:
        try:
            cwd: str | None = os.readlink(f"{self._procfs.path}/{process.pid}/cwd")
        except OSError:
            cwd = None
        return self._programs.script_of(process, cwd)


def lasting(observation: Observation) -> tuple[Any, ...]:
    columns = observation.columns
    return tuple(columns.get(name) for name in LASTING)


def crowd(directory: str, count: int, now: int) -> Observation:
    """Too many different programs from one directory to tell each."""
    columns: Columns = {
        "exe": directory,
        "exe_state": "memfd" if directory.startswith("memfd:") else "unknown",
        "writable_dir": not directory.startswith("memfd:"),
        "exe_known": False,
        "repeats": count - 1,
    }
    return Observation("process", directory, columns, now, note="many programs in a short time; counted, not listed")


def _started_at(start: int) -> int:
    """Clock ticks since boot as ms since 1970, by the clock as it is set now."""
    boot_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return boot_ns // 1_000_000 + start * 1000 // _TICKS
