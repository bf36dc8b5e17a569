"""Processes: every program that starts, and what its file looks like. The ladder and the flow.

The table is in running.py, what is said of a process in process_columns.py.

Ladder, and why these rungs:
* "proc connector": the kernel tells of every exec. Missing in stock Raspberry Pi kernels.
* "fanotify exec": the files sensor hands over FAN_OPEN_EXEC events through `exec_hint`. It sees programs from memory
  and deleted ones too, because their dynamic loader is opened for execution; statically linked ones it does not.
* "polling": /proc once a second.
Audit is no rung: its multicast only tells of execs where somebody loaded rules for that, and then each costs more
than the connector's event.

One descriptor serves the loop: an epoll set that holds the connector, a pidfd for each suspicious process (its end is
told at once) and a timer. The timer runs only while something suspicious does: for what repeats, what lingers, and to
see within a second that the file of a program in a writable directory was deleted.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgeguard.errors import Unavailable
from edgeguard.linux.procconn import ProcConnector
from edgeguard.linux.procfs import Process, Procfs
from edgeguard.linux.timerfd import Timer
from edgeguard.model import Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.exec_proof import prove, run_nothing
from edgeguard.sensors.holding import Holding
from edgeguard.sensors.process_columns import COLUMNS, LASTING, VOLATILE, Describer, crowd, lasting
from edgeguard.sensors.programs import Program, Programs, interprets
from edgeguard.sensors.running import Running, Table

POLLING_S, CROSS_CHECK_S = 1, 30
PRUNE_AFTER = 256  # new processes after which those that ended are dropped, without waiting for the next look
YOUNG_LOOKS = 10  # polling: a process found between fork and exec is looked at again this often
SLICES = 16  # polling: of the old ones, one in 16 is looked at again each time
RENEW_LOOKS = 10  # looks after which directories and manifest are asked anew
EVENTS_MAX = 128
# A hint comes before the process has become the program, so it is looked at again; a slow card may take its time.
SETTLE_S = (0.005, 0.1, 1.0)
UNSETTLED_MAX = 256
HINT_LOOKS = 10  # seconds, with one look a second, in which the first hint must come
HINTS_MISS = "Statically linked programs that run for less than 30 s may be missed."
VEILED = "Processes of other users are not seen: /proc hides them (hidepid), and we have no CAP_SYS_PTRACE."
POLLING_MISSES = "Programs that run for less than a second are missed."


class Unsettled(NamedTuple):
    """A process that a hint told of, and that still runs what it ran before."""

    path: str  # what it opened for execution
    link: str  # what it runs as yet
    looks: int
    due: float


class Processes:
    """Sensor of kind "process". `actors` is fed with every exec; `hints`: the files sensor will call exec_hint."""

    name = "processes"
    kinds: Mapping[str, Mapping[str, Column]] = {"process": COLUMNS}
    ladder = ("proc connector", "fanotify exec", "polling")
    triggers: tuple[str, ...] = ()
    volatile = VOLATILE

    def __init__(self, context: Context, actors: Actors | None = None, *, hints: bool = False) -> None:
        self.interval_s = CROSS_CHECK_S
        self.rung = Rung("", proven=False)
        self.lost = 0  # times that the kernel dropped events; each is followed by a full look
        self.vanished = 0  # programs that had ended before they could be looked at
        self.on_exec: Callable[[Process], None] | None = None  # every exec, if somebody wants to log them
        self._context = context
        self._real = context.root.rstrip("/") == ""  # below another root there are only files, no events
        self._actors = actors or Actors(context.root)
        self._hints = hints
        self._procfs = Procfs(context.root)
        self._programs = Programs(context.root, context.known_file, context.went)
        self._table = Table()
        self._connector: ProcConnector | None = None
        self._epoll: select.epoll | None = None
        self._timer: Timer | None = None
        self._armed = False
        self._holding = Holding(self._procfs)
        self._describer = Describer(self._procfs, self._programs, context.package_of)
        self._ignored: set[int] = set()  # kernel threads, and what we may not see
        self._young: dict[int, int] = {}  # pid -> looks left
        self._unsettled: dict[int, Unsettled] = {}
        self._looks = 0
        self._prune_at = PRUNE_AFTER
        self._test_pid = 0

    # -- the contract of sensors

    def start(self) -> Rung:
        self._epoll = select.epoll()
        if self._real:
            self._holding.begin(self._epoll)
        tried: list[tuple[str, str]] = []
        try:
            self._timer = Timer()
            self._epoll.register(self._timer.fileno(), select.EPOLLIN)
        except Unavailable:  # then what lingers is told at the next look
            self._timer = None
        try:
            self.rung = self._climb(tried)
        except OSError as error:
            self.rung = Rung("polling", proven=False, blind=(f"Processes cannot be listed: {error}.",))
        self.interval_s = CROSS_CHECK_S if self._connector is not None or not self._real else POLLING_S
        return self.rung

    def fileno(self) -> int | None:
        return self._epoll.fileno() if self._epoll else None

    def ready(self, now: int) -> Iterable[Observation]:
        if self._epoll is None:
            return []
        found: list[Observation] = []
        for fd, _events in self._epoll.poll(0, EVENTS_MAX):
            if self._connector is not None and fd == self._connector.fileno():
                found += self._execs(now)
            elif self._timer is not None and fd == self._timer.fileno():
                self._timer.expired()
                self._armed = False
            elif (pid := self._holding.pid_of(fd)) is not None:
                found += self._ended(pid, now)
        found += self._settle(now)
        found += self._check_files(now)
        found += self._due(now)
        return found

    def observe(self, now: int) -> Iterable[Observation]:
        self._look(now, tell=False)
        if self.rung.name == "fanotify exec" and not self.rung.proven:
            self._expect_hint()
        yield from self._due(now)
        for name, pid, running in self._table.items():
            if (observed := self._current(name, pid, running, now)) is not None:
                self._table.mark(name, running.program, time.monotonic())
                yield observed

    def close(self) -> None:
        self._holding.close()
        for part in (self._connector, self._timer, self._programs, self._epoll):
            if part is not None:
                part.close()
        self._connector = self._timer = self._epoll = None

    # -- for the rest of the house

    def exec_hint(self, pid: int, path: str, now: int) -> list[Observation]:
        """The files sensor saw `pid` opening `path` for execution (the program, or its loader)."""
        if self.rung.name == "proc connector" or pid <= 0:
            return []
        if not self.rung.proven:
            self.rung = self.rung._replace(name="fanotify exec", proven=True, blind=self._blind(HINTS_MISS))
            self.interval_s = CROSS_CHECK_S
        if pid == self._test_pid:
            return []
        self._actors.glimpse(pid, path)
        link = self._procfs.exe(pid)
        if link and link != path:
            self._unsettle(pid, path, link)
        known = self._table.processes.get(pid)
        if known is not None and link == known.link and self._procfs.start(pid) == known.start:
            return []  # not yet, or the loader's open after the program's: the same exec
        found = self._started(pid, now) or self._glimpsed(pid, path, now)
        found += self._due(now)
        return found

    def no_hints(self) -> None:
        """The files sensor cannot see executions here: do not wait for its hints."""
        if self.rung.name == "fanotify exec" and not self.rung.proven:
            tried = (*self.rung.tried, ("fanotify exec", "the files sensor reports no executions"))
            self.rung = Rung("polling", proven=True, blind=self._blind(POLLING_MISSES), tried=tried)

    def renew(self) -> None:
        """Another baseline is in force: ask anew what is known."""
        self._programs.forget()
        self._looks = 0

    @property
    def running(self) -> int:
        """Processes at the last look, without kernel threads."""
        return len(self._table.processes)

    # -- rungs

    def _blind(self, what: str) -> tuple[str, ...]:
        hidden = sum(self._hidden(pid) for pid in self._ignored)
        unseen = f"The programs of {hidden} running processes cannot be seen (not ours, no CAP_SYS_PTRACE)."
        # Process 1 is always there; where it is not listed, no process of others is.
        veiled = self._real and not os.path.exists(f"{self._procfs.path}/1")
        parts = (VEILED if veiled else "", unseen if hidden else "", what)
        return tuple(part for part in parts if part)

    def _expect_hint(self) -> None:
        """On the rung "fanotify exec": make an event, and if none comes in ten looks, take the last rung."""
        if not self._test_pid:
            self._test_pid = run_nothing()
        elif self._looks > HINT_LOOKS:
            self.no_hints()

    def _climb(self, tried: list[tuple[str, str]]) -> Rung:
        if self._real:
            try:
                self._connector = ProcConnector()
                prove(self._connector)
            except Unavailable as error:
                tried.append(("proc connector", str(error)))
                if self._connector is not None:
                    self._connector.close()
                    self._connector = None
            else:
                assert self._epoll is not None
                self._epoll.register(self._connector.fileno(), select.EPOLLIN)
        self._look(0, tell=False)  # what runs already: the first observe() tells it
        if self._connector is not None:
            return Rung("proc connector", proven=True, blind=self._blind(""), tried=tuple(tried))
        if self._hints and self._real:  # unproven, and so polling, until the first hint comes
            return Rung("fanotify exec", proven=False, blind=self._blind(POLLING_MISSES), tried=tuple(tried))
        if self._real:
            tried.append(("fanotify exec", "the files sensor reports no executions"))
        return Rung("polling", proven=True, blind=self._blind(POLLING_MISSES), tried=tuple(tried))

    def _hidden(self, pid: int) -> bool:
        try:
            os.readlink(f"{self._procfs.path}/{pid}/exe")
        except PermissionError:
            return True
        except OSError:
            return False
        return False

    # -- events

    def _execs(self, now: int) -> list[Observation]:
        assert self._connector is not None
        found: list[Observation] = []
        for pid in self._connector.execs():
            found += self._started(pid, now)
        if len(self._table.processes) > self._prune_at:
            found += self._prune(now)[1]
        if self._connector.lost != self.lost:
            self.lost = self._connector.lost
            found += self._look(now, tell=True)
        return found

    def _started(self, pid: int, now: int) -> list[Observation]:
        process = self._actors.remember(pid)
        if process is None:
            self.vanished += 1
            return []
        if not process.link:
            return []
        if not process.argv and interprets(process.link):
            # The kernel sets the program first and its arguments a moment later: what it runs is not to be seen yet.
            self._unsettle(pid, process.link, process.link)
        if self.on_exec is not None:
            self.on_exec(process)
        return self._enter(process, now, Origin.LIVE)

    def _glimpsed(self, pid: int, path: str, now: int) -> list[Observation]:
        """A program that ended before it could be looked at, of which only the path is known."""
        if not path.startswith("/") or pid in self._table.processes:
            return []
        program = self._programs.judge_path(path)
        if not program.writable_dir or not self._table.glimpse(program, time.monotonic()):
            return []
        columns: dict[str, Any] = dict(zip(LASTING, program[1:], strict=True))
        columns |= {"pid": pid, "running": 0, "repeats": 0}
        observed = Observation("process", program.subject, columns, now, actor=self._actors.actor_of(pid))
        self._table.subjects[program.subject].last = observed
        return [observed]

    def _unsettle(self, pid: int, path: str, link: str) -> None:
        before = self._unsettled.pop(pid, None)
        if before is not None and path.rpartition("/")[2].startswith("ld-"):
            path = before.path  # the loader's open: the program's was told before
        if self._timer is None or len(self._unsettled) >= UNSETTLED_MAX:
            return  # the next look at everything finds it
        self._unsettled[pid] = Unsettled(path, link, 0, time.monotonic() + SETTLE_S[0])
        if len(self._unsettled) == 1:
            self._timer.arm(SETTLE_S[0])
            self._armed = True

    def _settle(self, now: int) -> list[Observation]:
        """Look again at processes that were about to become another program."""
        if not self._unsettled:
            return []
        mono, found = time.monotonic(), list[Observation]()
        for pid, one in [(pid, one) for pid, one in self._unsettled.items() if one.due <= mono]:
            link = self._procfs.exe(pid)
            if link == one.link and one.looks + 1 < len(SETTLE_S):
                looks = one.looks + 1
                self._unsettled[pid] = one._replace(looks=looks, due=mono + SETTLE_S[looks])
                found += self._new_script(pid, link, now)
                continue
            del self._unsettled[pid]
            if not link:
                found += self._ended(pid, now) + self._glimpsed(pid, one.path, now)
            elif link != one.link:
                found += self._started(pid, now)
        if self._unsettled and self._timer is not None:
            self._timer.arm(max(0.001, min(one.due for one in self._unsettled.values()) - mono))
            self._armed = True
        return found

    def _new_script(self, pid: int, link: str, now: int) -> list[Observation]:
        """A shell that starts a shell forks and becomes the same program again; only what it runs is another."""
        running = self._table.processes.get(pid)
        if running is None or running.link != link or not interprets(link):
            return []
        process = self._procfs.look(pid)
        if process is None or process.link != link or self._judged(process) == running.program:
            return []
        return self._enter(process, now, Origin.LIVE)

    def _judged(self, process: Process) -> Program:
        """The program that a process runs. Where it is none to speak of, but runs a script out of a directory that
        anybody can write, that script is the subject."""
        program = self._programs.judge(process.pid, process.link, process.uid)
        if program.suspicious or program.exe_state != "ok" or not interprets(process.link):
            return program
        script = self._describer.script(process)
        if script and self._programs.writable(script, process.uid):
            return program._replace(subject=script)
        return program

    def _enter(self, process: Process, now: int, origin: Origin, *, tell: bool = True) -> list[Observation]:
        """A process runs this program now: into the table, and tell it if it is news."""
        pid = process.pid
        program = self._judged(process)
        before = self._table.processes.get(pid)
        if before is not None and before.start != process.start:
            self._holding.release(pid)
        left = self._table.enter(pid, Running(process.start, process.link, process.uid, program))
        ended = False
        if program.suspicious:
            ended = not self._holding.hold(pid, process.start)
        else:
            self._holding.release(pid)
        found = self._reconsider(left, now) if left and tell else []
        if tell and self._table.tell(program, time.monotonic()):
            found += self._tell(program.subject, now, origin, process)
        if ended:
            found += self._ended(pid, now)
        return found

    def _ended(self, pid: int, now: int) -> list[Observation]:
        self._holding.release(pid)
        self._young.pop(pid, None)
        name = self._table.leave(pid, time.monotonic())
        return self._reconsider(name, now) if name else []

    def _reconsider(self, name: str, now: int) -> list[Observation]:
        """A subject lost a process: if it was the worst, another one speaks for it now."""
        subject = self._table.subjects.get(name)
        if subject is None or subject.told is None:
            return []
        worst = self._table.worst(name)
        if worst is None or subject.told == worst[1].program:
            return []
        if not self._table.tell(worst[1].program, time.monotonic()):
            return []
        return self._tell(name, now, Origin.LIVE, None)

    def _check_files(self, now: int) -> list[Observation]:
        """Suspicious programs whose file is still there: is it?"""
        found: list[Observation] = []
        for pid in [pid for pid in self._holding if self._may_be_deleted(pid)]:
            found += self._recheck(pid, now, tell=True)
        return found

    def _may_be_deleted(self, pid: int) -> bool:
        program = self._table.processes[pid].program
        return program.writable_dir and program.exe_state in ("ok", "private")

    def _due(self, now: int) -> list[Observation]:
        """What the passing of time has made due; sets the timer for what it will."""
        mono = time.monotonic()
        found: list[Observation] = []
        for name in self._table.repeated(mono):
            found += self._tell(name, now, Origin.LIVE, None)
        crowds, quiet = self._table.take_crowds(mono)
        found += [crowd(name, count, now) for name, count in crowds.items()]
        for name in (*self._table.gone(mono), *quiet):
            found.append(Observation("process", name, {}, now, Status.ABSENT))
        waiting = self._table.waiting() or any(self._may_be_deleted(pid) for pid in self._holding)
        if self._timer is not None and not self._armed and waiting:
            self._timer.arm(1.0)
            self._armed = True
        return found

    # -- looking

    def _look(self, now: int, *, tell: bool) -> list[Observation]:
        """All of /proc once: what is new, what ended, whose file changed. `tell`: no full list follows."""
        self._looks += 1
        if self._looks % RENEW_LOOKS == 1:
            self._programs.forget()
            self._ignored.clear()
        pids, found = self._prune(now)
        self._ignored &= pids
        for pid in sorted(pids - self._table.processes.keys() - self._ignored):
            first = self._looks == 1  # what ran before us need not be remembered: it is there to be read
            process = self._procfs.look(pid) if first else self._actors.remember(pid)
            if process is None or not process.link:
                self._ignored.add(pid)
                continue
            self._young[pid] = YOUNG_LOOKS
            if self.on_exec is not None and not first:
                self.on_exec(process)
            found += self._enter(process, now, Origin.SWEEP, tell=tell)
        for pid in list(self._table.processes):
            if self._wants_recheck(pid):
                found += self._recheck(pid, now, tell=tell)
        self._table.tidy()
        return found if tell else []

    def _prune(self, now: int) -> tuple[set[int], list[Observation]]:
        """The processes that there are, and what is to be told of those that ended."""
        pids = set(self._procfs.pids())
        found: list[Observation] = []
        for pid in [pid for pid in self._table.processes if pid not in pids]:
            found += self._ended(pid, now)
        self._prune_at = len(self._table.processes) + PRUNE_AFTER
        return pids, found

    def _wants_recheck(self, pid: int) -> bool:
        """On the polling rung each look is cheap: what is young or suspicious, and of the others one in 16."""
        young = self._young.pop(pid, 0)
        if young > 1:
            self._young[pid] = young - 1
        if young or self.interval_s != POLLING_S:
            return True
        return self._table.processes[pid].program.suspicious or pid % SLICES == self._looks % SLICES

    def _recheck(self, pid: int, now: int, *, tell: bool) -> list[Observation]:
        """A known process may run another program by now, or its file may be gone."""
        running = self._table.processes[pid]
        link = self._procfs.exe(pid)
        if not link:
            return self._ended(pid, now)
        if link == running.link:
            if not running.program.suspicious and self._looks % RENEW_LOOKS != 1:
                return []
            fresh, before = self._programs.judge(pid, link, running.uid), running.program
            if fresh == (before._replace(subject=before.exe) if before.scripted else before):
                return []
        process = self._procfs.look(pid)
        return self._enter(process, now, Origin.SWEEP, tell=tell) if process and process.link else []

    # -- observations

    def _tell(self, name: str, now: int, origin: Origin, process: Process | None) -> list[Observation]:
        """The worst process of a subject, now. `process` is what was just read of one of them."""
        subject, worst = self._table.subjects.get(name), self._table.worst(name)
        observed: Observation | None = None
        if worst is not None:
            pid, running = worst
            if process is None or process.pid != pid:
                process = self._procfs.look(pid)
            if process is not None:
                observed = self._observation(name, process, running, now, origin)
        elif subject is not None and subject.last is not None:  # only a count is to be told
            last = subject.last
            columns = {**last.columns, "running": 0, "repeats": self._table.take_repeats(name)}
            observed = last._replace(columns=columns, at=now)
        return [observed] if observed else []

    def _current(self, name: str, pid: int, running: Running, now: int) -> Observation | None:
        """For a full look: the last observation while nothing that lasts has changed, else a new one."""
        last = self._table.subjects[name].last
        if last is not None and last.columns.get("pid") == pid and lasting(last) == running.program[1:]:
            return last
        process = self._procfs.look(pid)
        return self._observation(name, process, running, now, Origin.SWEEP) if process else None

    def _observation(self, name: str, process: Process, running: Running, now: int, origin: Origin) -> Observation:
        actor = self._actors.describe(process)
        subject = self._table.subjects[name]
        columns = self._describer.columns(process, running.program, actor)
        columns["running"] = len(subject.pids)
        columns["repeats"] = self._table.take_repeats(name)
        subject.last = Observation("process", name, columns, now, Status.PRESENT, origin, actor)
        return subject.last
