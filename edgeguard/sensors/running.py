"""Which processes run, by subject, and what has been told about them. Pure: no /proc, no clock.

A subject is a program; it may have many processes, of which the worst, then the newest, is shown. A subject that
nobody runs any more lingers for some seconds before it is gone, so that a program which is started again and again
is one thing that repeats and not a thousand that come and go. Everything is bounded, and what was not told one by
one is counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.model import Observation
from edgeguard.sensors.programs import Program

LINGER_S = 5.0  # how long a suspicious subject outlives its last process
REPEAT_S = 1.0  # the same subject is told at most once in this time; repeats are counted
TELL_MAX = 50  # observations per second; beyond, they are counted by directory
LINGERING_MAX = 256
TOLD_MAX = 1024  # ordinary programs whose state has been told
CROWDS_MAX = 32  # directories in which too many subjects are counted


class Running(NamedTuple):
    start: int  # clock ticks since boot
    link: str  # as read from /proc/PID/exe
    uid: int | None
    program: Program


class Subject:
    """One program with its processes."""

    __slots__ = ("ended", "last", "pids", "repeats", "told", "told_at")

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.last: Observation | None = None  # the last one made; told again when only a count changed
        self.told: Program | None = None  # what was last told of it, if that was suspicious
        self.told_at = 0.0
        self.repeats = 0  # execs since then that were not told
        self.ended = 0.0  # when the last process ended; 0.0: some run


class Table:
    """All of them."""

    def __init__(self) -> None:
        self.processes: dict[int, Running] = {}
        self.subjects: dict[str, Subject] = {}
        self.crowds: dict[str, int] = {}  # directory -> execs that were only counted
        self._crowds_told: dict[str, float] = {}
        self._programs: dict[Program, Program] = {}  # one copy of equal ones
        self._ordinary: dict[str, Program] = {}  # what was told of programs that are not suspicious
        self._second = 0
        self._told_in_second = 0

    def enter(self, pid: int, running: Running) -> str | None:
        """A process runs this program now. Returns the subject that it left by that, if it ran another before."""
        program = self._programs.setdefault(running.program, running.program)
        before = self.processes.get(pid)
        left = self.leave(pid, 0.0) if before and before.program.subject != program.subject else None
        self.processes[pid] = running._replace(program=program)
        subject = self.subjects.setdefault(program.subject, Subject())
        subject.pids.add(pid)
        subject.ended = 0.0
        return left

    def leave(self, pid: int, mono: float) -> str | None:
        """A process ended. Returns its subject, None if the process was not known."""
        before = self.processes.pop(pid, None)
        if before is None:
            return None
        name = before.program.subject
        subject = self.subjects[name]
        subject.pids.discard(pid)
        if not subject.pids:
            if subject.told is None or len(self.subjects) > len(self.processes) + LINGERING_MAX:
                del self.subjects[name]
            else:
                subject.ended = mono or subject.told_at
        return name

    def worst(self, name: str) -> tuple[int, Running] | None:
        """The process that speaks for a subject: the worst, of equals the newest."""
        subject = self.subjects.get(name)
        if subject is None or not subject.pids:
            return None
        pid = max(subject.pids, key=lambda pid: (self.processes[pid].program.rank, self.processes[pid].start, pid))
        return pid, self.processes[pid]

    def tell(self, program: Program, mono: float) -> bool:
        """Shall this exec be told now? If not, it is counted, or there is nothing new in it."""
        if not program.suspicious:
            return self._tell_ordinary(program, mono)
        subject = self.subjects.get(program.subject)
        if subject is None:
            return False
        if subject.told == program and mono - subject.told_at < REPEAT_S:
            subject.repeats += 1
            return False
        if not self._afford(mono):
            self._crowd(program)
            return False
        subject.told, subject.told_at = program, mono
        return True

    def glimpse(self, program: Program, mono: float) -> bool:
        """A program started and ended before it could be looked at. True if that is to be told."""
        subject = self.subjects.setdefault(program.subject, Subject())
        if not subject.pids:
            subject.ended = mono
        return self.tell(program, mono)

    def mark(self, name: str, program: Program, mono: float) -> None:
        """A full look tells this subject, whatever the limits say."""
        subject = self.subjects[name]
        if program.suspicious:
            subject.told, subject.told_at = program, mono
        else:
            subject.told = None
            self._remember_ordinary(program)

    def take_repeats(self, name: str) -> int:
        """How often it was started since it was last told, beyond once; counts from 0 again."""
        subject = self.subjects.get(name)
        if subject is None:
            return 0
        repeats, subject.repeats = subject.repeats, 0
        return repeats

    def repeated(self, mono: float) -> list[str]:
        """Subjects with repeats that are due to be told."""
        due = [name for name, one in self.subjects.items() if one.repeats and mono - one.told_at >= REPEAT_S]
        for name in due:
            self.subjects[name].told_at = mono
        return due

    def gone(self, mono: float) -> list[str]:
        """Subjects whose last process ended long enough ago; forgotten by this."""
        gone = [name for name, one in self.subjects.items() if not one.pids and mono - one.ended >= LINGER_S]
        for name in gone:
            del self.subjects[name]
        return gone

    def take_crowds(self, mono: float) -> tuple[dict[str, int], list[str]]:
        """Execs that were only counted, by directory; and the directories where it has been quiet since."""
        crowds, self.crowds = self.crowds, {}
        quiet = [name for name, at in self._crowds_told.items() if name not in crowds and mono - at >= LINGER_S]
        for name in quiet:
            del self._crowds_told[name]
        self._crowds_told.update(dict.fromkeys(crowds, mono))
        return crowds, quiet

    def waiting(self) -> bool:
        """Is there something that the passing of time alone will make due?"""
        return bool(self.crowds or self._crowds_told) or any(
            one.repeats or not one.pids for one in self.subjects.values()
        )

    def tidy(self) -> None:
        """Drop shared copies that nobody uses."""
        used = {one.program for one in self.processes.values()}
        self._programs = {program: program for program in used}

    def items(self) -> Iterator[tuple[str, int, Running]]:
        """Every subject that runs, with the process that speaks for it."""
        for name in list(self.subjects):
            if found := self.worst(name):
                yield name, *found

    def _tell_ordinary(self, program: Program, mono: float) -> bool:
        subject = self.subjects.get(program.subject)
        if self._ordinary.get(program.subject) == program and (subject is None or subject.told is None):
            return False
        if not self._afford(mono):
            return False  # the next full look tells it
        self._remember_ordinary(program)
        if subject is not None:
            subject.told = None
        return True

    def _remember_ordinary(self, program: Program) -> None:
        if len(self._ordinary) >= TOLD_MAX:
            del self._ordinary[next(iter(self._ordinary))]
        self._ordinary[program.subject] = program

    def _afford(self, mono: float) -> bool:
        if int(mono) != self._second:
            self._second, self._told_in_second = int(mono), 0
        self._told_in_second += 1
        return self._told_in_second <= TELL_MAX

    def _crowd(self, program: Program) -> None:
        directory = program.subject.rpartition("/")[0] + "/*" if "/" in program.subject else "memfd:*"
        if directory not in self.crowds and len(self.crowds) >= CROWDS_MAX:
            directory = "/*"
        self.crowds[directory] = self.crowds.get(directory, 0) + 1
