"""The files sensor: what happens to watched files, as it happens. Sweeps (sensors/sweep.py) find what this one missed.

An event only says that something happened to a path. Who did it is asked at once, because the process may be gone in
a moment; what it did is found a little later by looking at the path (`pending`). Looking comes in slices: a burst of
5,000 files must not keep the other sensors waiting. What is too much for a resident daemon (large files, large new
trees, what an overflow lost) is handed to a helper through `on_work`.

The bulk of the time is spent on events that concern nobody; they are dropped by directory, without touching the file.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from stat import S_ISREG

from edgeguard.codec import digests
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import Lookup
from edgeguard.codec.manifest import Entry
from edgeguard.errors import DecodeError
from edgeguard.linux.timerfd import Timer
from edgeguard.model import NOBODY, Actor, Observation, Origin, Status, Watch
from edgeguard.sensors import Context, Rung
from edgeguard.sensors.links import Links
from edgeguard.sensors.logeye import LogEye, any_grow, is_quiet
from edgeguard.sensors.look import COLUMNS, KIND, LATER, Eye, masked, observe
from edgeguard.sensors.pending import SETTLE_S, Pending, Waiting
from edgeguard.sensors.postponed import Postponed
from edgeguard.sensors.sources import LADDER, Sources
from edgeguard.sensors.touches import OnExec, Touch
from edgeguard.sensors.walk import Walker, resolved
from edgeguard.sensors.watching import Plan

SLICE_S = 0.05  # seconds of looking in one turn of the loop
INLINE_MAX = 8 << 20  # bytes; a larger file is read by a helper (0.03 s at 300 MB/s, 0.2 s on a small ARM core)
ASKED_MAX = 16 << 20  # bytes; the same where somebody waits for the answer (0.3 s on a small ARM core)
TREE_MAX = 1000  # entries of a directory that came or went which are looked at here; larger ones are a helper's
TOLD_MAX = 4096  # paths remembered as different from the manifest, 150 bytes each

MEMORY = "logs.mem"  # what is known of logs, in the same directory as the proof

OnWork = Callable[[bool, tuple[str, ...]], None]


class Files:
    """Implements `Sensor`. `manifest` is what should be; `proof` a directory of ours for the self-test.

    `on_work(rescan, targets)`: a helper is wanted; rescan: an incremental sweep of everything; targets: these paths.
    `on_lost(count)`: the kernel dropped events. `on_exec(pid, path)`: asks for program starts too (fanotify only).
    """

    name = "files"
    kinds = {KIND: COLUMNS}  # noqa: RUF012 - declared once, never changed
    ladder = LADDER
    interval_s = 0  # wiring sweeps
    triggers: tuple[str, ...] = ()

    def __init__(
        self,
        context: Context,
        watches: Sequence[Watch],
        manifest: Lookup | None,
        proof: str,
        *,
        on_work: OnWork = lambda _rescan, _targets: None,
        on_lost: Callable[[int], None] = lambda _count: None,
        on_exec: OnExec | None = None,
        hash_file_max: int = 4 << 30,
        rungs: Sequence[str] = ladder,
    ) -> None:
        self.rung = Rung("", proven=False)
        self._context = context
        self._plan = Plan(resolved(watches, context.root))
        self._manifest = manifest
        self._on_work = on_work
        self._on_lost = on_lost
        self._rungs = rungs
        self._postpones = hash_file_max > INLINE_MAX
        self._eye = Eye(min(INLINE_MAX, hash_file_max), postpone=self._postpones)
        self._told_eye = Eye(min(INLINE_MAX, hash_file_max), postpone=self._postpones, thorough=True)
        self._patient_eye = Eye(min(ASKED_MAX, hash_file_max), postpone=hash_file_max > ASKED_MAX, thorough=True)
        self.refer(manifest)
        self._logs = LogEye(context.root, f"{proof}/{MEMORY}")
        self._sources = Sources(self._plan, context.root, proof, self._note, on_exec)
        self._epoll: select.epoll | None = None
        self._timer = Timer()
        self._pending = Pending(self._timer)
        self._links = Links(context.root)
        self._actors: dict[int, Actor] = {}  # of one turn: a burst has one actor
        self._told: dict[str, None] = {}  # a set in order: what was said to differ, so that its end is said too
        self._postponed = Postponed()
        self._rescan = False
        self._lost = 0

    # -- life

    def start(self) -> Rung:
        """Climb down the ladder until a rung has seen an event of our own making."""
        if any_grow(self._plan.watches):
            self._logs.load()
        self._epoll = select.epoll()
        self._epoll.register(self._timer.fileno(), select.EPOLLIN)
        self.rung = self._sources.climb(self._rungs, self._epoll)
        return self.rung

    def proves_itself(self) -> bool:
        """The self-test once more (daily): does the rung that stands still hear of things? At most a second."""
        return self._sources.prove()

    def remark(self) -> tuple[str, ...]:
        """After mounts changed: watch the new ones too. What cannot be watched as it happens, in plain sentences."""
        if not list(self._sources):
            return ()
        self.rung = self.rung._replace(blind=self._sources.remark())
        return self.rung.blind

    def renew(self, watches: Sequence[Watch], manifest: Lookup | None) -> tuple[str, ...]:
        """Another baseline is in force. The caller asks for a sweep that compares; the answer is as for `remark`."""
        self._plan = Plan(resolved(watches, self._context.root))
        self.refer(manifest)
        self._links.forget()
        self._sources.renew(self._plan)
        return self.remark()

    def refer(self, manifest: Lookup | None) -> None:
        """Other reference values hold for the same watches. The caller looks again at what differs."""
        self._manifest = manifest
        digester = digests.slim(manifest.algorithm if manifest is not None else Algorithm.SHA256)
        for eye in (self._eye, self._told_eye, self._patient_eye):
            eye.digester = digester

    def fileno(self) -> int | None:
        return self._epoll.fileno() if self._epoll is not None and list(self._sources) else None

    def close(self) -> None:
        self._logs.save(now=True)
        self._sources.close()
        if self._epoll is not None:
            self._timer.close()
            self._epoll.close()
            self._epoll = None

    def watch_of(self, path: str) -> Watch | None:
        """The watch that decides for a path."""
        return self._plan.decide(path)

    # -- events

    @property
    def behind(self) -> bool:
        """More happens than is worked off: what else comes through the same queue (program starts) comes late."""
        return self._sources.behind

    @property
    def caught_up(self) -> bool:
        """Is everything told that happened until now? What came through an earlier event may still wait its turn."""
        if not self._pending.empty or not self._postponed.empty or self._rescan:
            return False
        poll = select.poll()
        for source in self._sources:
            poll.register(source.fileno(), select.POLLIN)
        return not poll.poll(0)

    def observe(self, now: int) -> Iterable[Observation]:  # noqa: ARG002 - looking at everything is a sweep's
        return ()

    def ready(self, now: int) -> Iterator[Observation]:
        """Take in what happened and look at what has settled."""
        self._take_in()
        if sentence := self._sources.news(self.rung.blind):
            self.rung = self.rung._replace(blind=(*self.rung.blind, sentence))
        expired = self._pending.went_off()
        if expired or self._pending.full:
            yield from self._look(now)
        self._hand_over()
        self._logs.save()
        self._arm(0.0 if expired else SETTLE_S)

    def _take_in(self) -> None:
        self._actors.clear()
        for source in self._sources:
            # A full list is worked off before more is read: the kernel's queue holds the rest.
            if not self._pending.full:
                self._note(source.read())
        self._count_lost()

    def _arm(self, settle: float = SETTLE_S) -> None:
        self._pending.arm(settle, min(self._links.due, self._postponed.due))

    def _note(self, touches: Iterator[Touch]) -> None:
        try:
            for touch in touches:
                path = touch.path
                if touch.linked:
                    self._linked(path, touch.pid, writing=touch.writing)
                    continue
                watch = touch.zone.decide(path)
                moved = touch.came or touch.went  # what is below may be watched even if the path itself is not
                if watch is None and not moved and not touch.named:  # excluded, between names that are watched
                    self._linked(path, touch.pid)
                if not moved and (watch is None or (watch.only and not self._may_be_setid(path, touch.pid))):
                    continue
                waiting = Waiting(self._actor(touch.pid), watch, touch.came, touch.went, writing=touch.writing)
                self._pending.add(path, waiting)
        except DecodeError:  # the kernel's structures are not what we know: only a sweep can tell now
            self._lost += 1
        self._arm(SETTLE_S)

    def _linked(self, path: str, pid: int, *, writing: bool = False) -> None:
        """A file was touched under a name that nobody watches, and it may have others."""
        actor = self._actor(pid)
        for name in self._links.touched(path, actor):
            self._pending.add(name, Waiting(actor, self._plan.decide(name), alias=True, writing=writing))

    def _may_be_setid(self, path: str, pid: int = 0) -> bool:
        """The cheap question for the many files that no other watch concerns: could this be a subject at all?"""
        try:
            at = os.lstat(self._context.root.rstrip("/") + path)
        except OSError:
            return path in self._told or self._reference(path) is not None
        if S_ISREG(at.st_mode):
            if at.st_nlink > 1:
                self._linked(path, pid)
            if at.st_mode & 0o6111:
                return True
        return path in self._told or (S_ISREG(at.st_mode) and self._reference(path) is not None)

    def _actor(self, pid: int) -> Actor:
        if pid <= 0:
            return NOBODY
        if pid not in self._actors:
            self._actors[pid] = self._context.actor_of(pid)
        return self._actors[pid]

    def _count_lost(self) -> None:
        lost = self._sources.take_lost() + self._lost
        if not lost:
            return
        self._lost = 0
        self._rescan = True
        self._on_lost(lost)

    def _hand_over(self) -> None:
        targets = tuple(dict.fromkeys((*self._links.ask(), *self._postponed.ask())))
        if self._rescan or targets:
            rescan, self._rescan = self._rescan, False
            self._on_work(rescan, targets)

    # -- looking

    def _look(self, now: int) -> Iterator[Observation]:
        end = time.monotonic() + SLICE_S
        began = end - SLICE_S
        while began < end and (taken := self._pending.take()) is not None:
            path, waiting = taken
            yield from self._settled(path, waiting, now)
            ended = time.monotonic()
            self._pending.looked(path, waiting, ended - began, told=path in self._told)
            began = ended

    def _settled(self, path: str, waiting: Waiting, now: int) -> Iterator[Observation]:
        seen = self._one(path, waiting.watch, waiting.actor, now, Origin.LIVE, self._eye)
        if waiting.watch is not None:
            self._links.found(path)
        if seen is not None:
            yield seen
            if not waiting.alias:
                self._other_names(path, waiting.actor)
        if waiting.went:
            yield from self._children_gone(path, waiting.actor, now)
        if waiting.came:
            self._children_came(path, waiting.actor)

    def observe_path(self, path: str, now: int, actor: Actor = NOBODY, origin: Origin = Origin.LIVE) -> Observation:
        """One path, because somebody asks; also one that no watch names."""
        seen = self._one(path, self._plan.decide(path), actor, now, origin, self._patient_eye, always=True)
        assert seen is not None
        self._hand_over()
        return seen

    def look_at_logs(self, now: int, origin: Origin) -> Iterator[Observation]:
        """All logs, at every sweep: what happened to one while nothing told of it."""
        for path, watch in self._logs.all(self._plan):
            seen = self._one(path, watch, NOBODY, now, origin, self._eye)
            if seen is not None:
                yield seen
        self._logs.save()
        if blind := tuple(line for line in self._logs.blind if line not in self.rung.blind):
            self.rung = self.rung._replace(blind=(*self.rung.blind, *blind))

    def relearned(self) -> None:
        """A baseline was learned, and not only signed anew."""
        self._logs.settle()

    def masked(self, path: str, entry: Entry) -> Entry:
        """A reference value as the policy in force looks at it: it may have been learned under another."""
        watch = self._plan.decide(path)
        return masked(entry, watch) if watch is not None else entry

    def found(self, observation: Observation, *, always: bool = False) -> Observation | None:
        """What a helper saw, with the actor that was seen here. None: we are about to look there ourselves, because
        the kernel told of it, too; that look knows who did it and when. A file that we would leave to a helper again
        is told as this one saw it, however busy it is. `always`: the caller looks once more anyway."""
        path = observation.subject
        self._take_in()
        self.remember((path,))
        if path in self._pending and not always and not self._too_large(path):
            return None
        actor = self._postponed.answered(path)
        other = self._links.found(path)
        actor = other if actor == NOBODY else actor
        watch = self._plan.decide(path)
        if watch is not None and watch.grows:  # the helper knows nothing of its past
            observation = self._logs.followed(observation)
        return observation if actor == NOBODY else observation._replace(actor=actor, origin=Origin.LIVE)

    def _too_large(self, path: str) -> bool:
        """Would a look of ours leave the content to a helper?"""
        try:
            at = os.lstat(self._context.root.rstrip("/") + path)
        except OSError:
            return False
        return S_ISREG(at.st_mode) and self._postpones and at.st_size > self._eye.largest

    @property
    def plan(self) -> Plan:
        """What is watched now."""
        return self._plan

    def real(self, path: str) -> str:
        """The same file under the name that watches know: directories that lead elsewhere are followed."""
        prefix = self._context.root.rstrip("/")
        parent, _, name = os.path.normpath("/" + path.lstrip("/")).rpartition("/")
        real = os.path.realpath(prefix + parent) if parent else prefix
        inside = not prefix or real.startswith(prefix + "/")
        return f"{real[len(prefix) :].rstrip('/') if inside else parent}/{name}"

    def remember(self, paths: Iterable[str]) -> None:
        """These differ, or did: whatever happens to them is told, also where a watch asks for set-id programs only."""
        for path in paths:
            if len(self._told) >= TOLD_MAX and path not in self._told:
                self._told.pop(next(iter(self._told)))
            self._told[path] = None

    def _other_names(self, path: str, actor: Actor) -> None:
        """Hard links: the kernel names the link that was used, but a difference that ends, ends under all names."""
        if not self._told:
            return
        prefix = self._context.root.rstrip("/")
        try:
            at = os.lstat(prefix + path)
        except OSError:
            return
        if at.st_nlink < 2 or not S_ISREG(at.st_mode):
            return
        for told in self._told:
            if told == path or told in self._pending:
                continue
            with contextlib.suppress(OSError):
                other = os.lstat(prefix + told)
                if (other.st_dev, other.st_ino) == (at.st_dev, at.st_ino):
                    self._pending.add(told, Waiting(actor, self._plan.decide(told), alias=True))

    def _one(
        self,
        path: str,
        watch: Watch | None,
        actor: Actor,
        now: int,
        origin: Origin,
        eye: Eye,
        *,
        always: bool = False,
    ) -> Observation | None:
        if watch is None and not always:
            return None
        expected = self._reference(path)
        if eye is self._eye and path in self._told:
            # What differs on the disk alone was found by a thorough look, and must not end because of any other.
            eye = self._told_eye
        seen = observe(eye, watch, self._context.root, path, now, origin, actor, expected)
        if seen.note == LATER:
            self._postponed.leave(path, actor)
            if not always:
                return None
            return seen._replace(status=Status.UNREADABLE, columns={"category": seen.columns["category"]})
        if watch is not None and watch.only == "setid" and not always:
            subject = seen.columns.get("setid") or expected is not None or path in self._told
            if not subject:
                return None
        if watch is not None and watch.grows:
            seen = self._logs.followed(seen)
            if not always and path not in self._told and _as_ever(seen, expected):
                return None
        return self._remember(seen, expected)

    def _remember(self, seen: Observation, expected: Entry | None) -> Observation:
        """Keep in mind what differs, and ask for its package then only."""
        present = seen.status is Status.PRESENT
        if present and (_as_ever(seen, expected) if seen.columns["continuity"] else _equal(seen, expected)):
            self._told.pop(seen.subject, None)
            return seen
        if not present and expected is None:
            self._told.pop(seen.subject, None)
            return seen
        self.remember((seen.subject,))
        if present:
            return seen._replace(columns={**seen.columns, "package": self._context.package_of(seen.subject)})
        return seen

    def _children_gone(self, path: str, actor: Actor, now: int) -> Iterator[Observation]:
        """A directory went away or was replaced: look at everything that was known below it."""
        known = [told for told in self._told if told.startswith(path + "/")]
        count = 0
        if self._manifest is not None:
            try:
                for raw, _ in self._manifest.below(os.fsencode(path)):
                    count += 1
                    if count > TREE_MAX:
                        self._postponed.leave(path, actor)
                        return
                    known.append(os.fsdecode(raw))
            except DecodeError:
                self._rescan = True
        for below in known:
            seen = self._one(below, self._plan.decide(below), actor, now, Origin.LIVE, self._eye)
            if seen is not None:
                yield seen

    def _children_came(self, path: str, actor: Actor) -> None:
        """A directory appeared with its contents: everything watched in it is looked at in turn."""
        count = 0
        for visit in Walker(self._plan, self._context.root, path):
            count += len(visit.names)
            if count > TREE_MAX:
                self._postponed.leave(path, actor)
                self._links.forget()  # what is as it should be is not told from there, but has watched names now
                return
            for at, name in enumerate(visit.names):
                watch = visit.watch or visit.watches[at]
                if watch.only != "setid" or (S_ISREG(visit.stats[at].st_mode) and visit.stats[at].st_mode & 0o6111):
                    self._pending.add(f"{visit.path}/{name}", Waiting(actor, watch))

    def _reference(self, path: str) -> Entry | None:
        if self._manifest is None:
            return None
        try:
            entry = self._manifest.lookup(os.fsencode(path))
        except DecodeError:
            self._rescan = True
            return None
        return self.masked(path, entry) if entry is not None else None


def _as_ever(seen: Observation, expected: Entry | None) -> bool:
    """Is this a log of which there is nothing to tell: it is whose it was, or was not known, and lost nothing?"""
    if not seen.columns.get("continuity") or not is_quiet(seen):
        return False
    if seen.status is Status.ABSENT:
        return True
    if seen.status is not Status.PRESENT or seen.columns["setid"]:
        return False
    return expected is None or _equal(seen, expected)


def _equal(seen: Observation, expected: Entry | None) -> bool:
    """Is this file as the reference value says?"""
    if expected is None:
        return False
    # By the name of the digest that was made: it is the baseline's, or it is none that could be equal.
    algorithm = Algorithm.BLAKE2B if Algorithm.BLAKE2B.value in seen.columns else Algorithm.SHA256
    return all(seen.columns[name] == value for name, value in expected.columns(algorithm).items())
