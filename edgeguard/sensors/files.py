"""The files sensor: what happens to watched files, as it happens. Sweeps (sensors/sweep.py) find what this one missed.

An event only says that something happened to a path. Who did it is asked at once, because the process may be gone in
a moment; what it did is found a little later by looking at the path, so that create, write, chmod and rename make one
observation. Looking comes in slices: a burst of 5,000 files must not keep the other sensors waiting. What is too much
for a resident daemon (large files, large new trees, what an overflow lost) is handed to a helper through `on_work`.

The bulk of the time is spent on events that concern nobody; they are dropped by directory, without touching the file.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from stat import S_ISREG
from typing import NamedTuple

from edgeguard.codec.layers import Lookup
from edgeguard.codec.manifest import Entry
from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux.timerfd import Timer
from edgeguard.model import NOBODY, Actor, Observation, Origin, Status, Watch
from edgeguard.sensors import Context, Rung
from edgeguard.sensors.look import COLUMNS, KIND, LATER, Eye, observe
from edgeguard.sensors.touches import RESTLESS, RESTLESS_WHY, FanotifySource, InotifySource, OnExec, Touch
from edgeguard.sensors.walk import Walker, resolved
from edgeguard.sensors.watching import Plan

SETTLE_S = 0.05  # between an event and the look: one look serves create, write, chmod and rename
SLICE_S = 0.05  # seconds of looking in one turn of the loop
INLINE_MAX = 8 << 20  # bytes; a larger file is read by a helper (0.03 s at 300 MB/s, 0.2 s on a small ARM core)
ASKED_MAX = 16 << 20  # bytes; the same where somebody waits for the answer (0.3 s on a small ARM core)
PENDING_MAX = 512  # paths waiting for their look, 250 bytes each; beyond, events wait in the kernel's queue
TREE_MAX = 1000  # entries of a directory that came or went which are looked at here; larger ones are a helper's
TOLD_MAX = 4096  # paths remembered as different from the manifest, 150 bytes each
REMEMBERED_MAX = 256  # actors kept for what a helper will observe
PROOF_S = 1.0  # how long the self-test waits for its own event

BLIND_PARTS = "watched directories beyond the first {} are only looked at by sweeps ({})"
BLIND_SETID = "new set-id programs outside the other watched trees are only found by sweeps"
BLIND_ACTOR = "who changed a file is not known"
BLIND_LIVE = "changes of files are not seen as they happen, only by sweeps"

OnWork = Callable[[bool, tuple[str, ...]], None]


class _Waiting(NamedTuple):
    """A path that will be looked at."""

    actor: Actor
    watch: Watch | None
    came: bool
    went: bool
    alias: bool = False  # another name of a file that something happened to


class Files:
    """Implements `Sensor`. `manifest` is what should be; `proof` a directory of ours for the self-test.

    `on_work(rescan, targets)`: a helper is wanted; rescan: an incremental sweep of everything; targets: these paths.
    `on_lost(count)`: the kernel dropped events. `on_exec(pid, path)`: asks for program starts too (fanotify only).
    """

    name = "files"
    kinds = {KIND: COLUMNS}  # noqa: RUF012 - declared once, never changed
    ladder = ("fanotify", "inotify", "sweep")
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
        self._proof = proof
        self._on_work = on_work
        self._on_lost = on_lost
        self._on_exec = on_exec
        self._rungs = rungs
        self._eye = Eye(min(INLINE_MAX, hash_file_max), postpone=hash_file_max > INLINE_MAX)
        self._patient_eye = Eye(min(ASKED_MAX, hash_file_max), postpone=hash_file_max > ASKED_MAX)
        self._fan: FanotifySource | None = None
        self._ino: InotifySource | None = None
        self._epoll: select.epoll | None = None
        self._timer: Timer | None = None
        self._armed = False
        self._waiting: dict[str, _Waiting] = {}
        self._actors: dict[int, Actor] = {}  # of one turn: a burst has one actor
        self._told: dict[str, None] = {}  # a set in order: what was said to differ, so that its end is said too
        self._remembered: dict[str, Actor] = {}
        self._rescan = False
        self._targets: dict[str, None] = {}
        self._lost = 0

    # -- life

    def start(self) -> Rung:
        """Climb down the ladder until a rung has seen an event of our own making."""
        self.rung = self._climb()
        return self.rung

    def _climb(self) -> Rung:
        tried: list[tuple[str, str]] = []
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer.fileno(), select.EPOLLIN)
        for name in self._rungs:
            try:
                if name == "fanotify":
                    return self._start_fanotify(tried)
                if name == "inotify":
                    return self._start_inotify(tried)
            except Unavailable as why:
                tried.append((name, str(why)))
        self._stop_sources()
        return Rung("sweep", os.path.isdir(self._proof), (BLIND_LIVE,), tuple(tried))

    def _start_fanotify(self, tried: list[tuple[str, str]]) -> Rung:
        fan = FanotifySource(self._plan, self._context.root, self._on_exec)
        try:
            failed = fan.mark(self._plan.watches)
            if len(failed) == len(self._plan.watches):
                raise Unavailable(failed[0][1] if failed else "no path is watched")
            self._prove_fanotify(fan)
        except (Unavailable, OSError) as why:
            fan.close()
            raise Unavailable(str(why)) from why
        self._fan = fan
        self._register(fan.fileno())
        return Rung("fanotify", True, self._serve_failed(failed), tuple(tried))

    def _serve_failed(self, failed: list[tuple[Watch, str]]) -> tuple[str, ...]:
        """What fanotify cannot watch goes to inotify. Plain sentences for what is then still not seen."""
        if self._ino is not None:
            self._unregister(self._ino.fileno())
            self._ino.close()
            self._ino = None
        blind = [f"{watch.path}: only looked at by sweeps ({why})" for watch, why in failed if watch.only]
        rest = [watch for watch, _ in failed if not watch.only]
        if rest:
            try:
                self._ino = InotifySource(Plan(rest), self._context.root)
                self._ino.watch()
                self._register(self._ino.fileno())
                quiet = [watch for watch, why in failed if why == RESTLESS_WHY]
                blind += [f"{watch.path}: {BLIND_ACTOR} there" for watch in rest if watch not in quiet]
                blind += [f"{RESTLESS}: {BLIND_ACTOR} there"] if quiet else []
                if self._ino.full:
                    blind.append(BLIND_PARTS.format(self._ino.watched, self._ino.full))
            except Unavailable as why:
                blind += [f"{watch.path}: only looked at by sweeps ({why})" for watch in rest]
        return tuple(blind)

    def _start_inotify(self, tried: list[tuple[str, str]]) -> Rung:
        ino = InotifySource(self._plan, self._context.root)
        try:
            ino.watch_proof(self._proof)
            self._prove(ino)
            ino.watch()
        except (Unavailable, OSError) as why:
            ino.close()
            raise Unavailable(str(why)) from why
        self._ino = ino
        self._register(ino.fileno())
        return Rung("inotify", True, self._blind_of(ino), tuple(tried))

    def _blind_of(self, ino: InotifySource) -> tuple[str, ...]:
        """What is not seen where only inotify watches."""
        blind = [BLIND_ACTOR]
        if any(watch.only == "setid" for watch in self._plan.watches):
            blind.append(BLIND_SETID)
        if ino.full:
            blind.append(BLIND_PARTS.format(ino.watched, ino.full))
        return tuple(blind)

    def _prove_fanotify(self, fan: FanotifySource) -> None:
        temporary = not fan.covers(self._proof)
        if temporary:
            fan.add_temporarily(self._proof)
        try:
            self._prove(fan)
        finally:
            if temporary:
                fan.remove(self._proof)

    def _prove(self, source: FanotifySource | InotifySource) -> None:
        """Make a file and wait for its event. Raises Unavailable where none arrives."""
        name = f".proof-{os.getpid()}"
        source.expect(os.fsencode(name))
        try:
            with _made(f"{self._proof}/{name}"):
                self._await(source)
        finally:
            source.expect(b"")
        if not source.proven:
            raise Unavailable(source.why or "no event arrived")

    def proves_itself(self) -> bool:
        """The self-test once more (daily): does the rung that stands still hear of things? At most a second."""
        try:
            if self._fan is not None:
                self._prove_fanotify(self._fan)
            elif self._ino is not None:
                self._prove(self._ino)
        except (Unavailable, OSError):
            return False
        return True

    def _await(self, source: FanotifySource | InotifySource) -> None:
        """Read until the proof is there. What else happens meanwhile is not lost."""
        poll = select.poll()
        poll.register(source.fileno(), select.POLLIN)
        end = time.monotonic() + PROOF_S
        while not source.proven and not source.why and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._note(source.read())

    def remark(self) -> tuple[str, ...]:
        """After mounts changed: watch the new ones too. What cannot be watched as it happens, in plain sentences."""
        blind: tuple[str, ...] = ()
        if self._fan is not None:
            self.rung = self.rung._replace(blind=(blind := self._serve_failed(self._fan.mark(self._plan.watches))))
        elif self._ino is not None:
            self._ino.renew(self._plan)
            self.rung = self.rung._replace(blind=(blind := self._blind_of(self._ino)))
        return blind

    def renew(self, watches: Sequence[Watch], manifest: Lookup | None) -> tuple[str, ...]:
        """Another baseline is in force. The caller asks for a sweep that compares; the answer is as for `remark`."""
        self._plan = Plan(resolved(watches, self._context.root))
        self._manifest = manifest
        if self._fan is not None:
            self._fan.renew(self._plan)
        return self.remark()

    def refer(self, manifest: Lookup | None) -> None:
        """Other reference values hold for the same watches. The caller looks again at what differs."""
        self._manifest = manifest

    def fileno(self) -> int | None:
        live = self._epoll is not None and (self._fan is not None or self._ino is not None)
        return self._epoll.fileno() if live and self._epoll is not None else None

    def close(self) -> None:
        self._stop_sources()
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    # -- events

    @property
    def behind(self) -> bool:
        """More happens than is worked off: what else comes through the same queue (program starts) comes late."""
        return any(source is not None and source.behind for source in (self._fan, self._ino))

    @property
    def caught_up(self) -> bool:
        """Is everything told that happened until now? What came through an earlier event may still wait its turn."""
        if self._waiting or self._targets or self._rescan:
            return False
        poll = select.poll()
        for source in (self._fan, self._ino):
            if source is not None:
                poll.register(source.fileno(), select.POLLIN)
        return not poll.poll(0)

    def observe(self, now: int) -> Iterable[Observation]:  # noqa: ARG002 - looking at everything is a sweep's
        return ()

    def ready(self, now: int) -> Iterator[Observation]:
        """Take in what happened and look at what has settled."""
        self._take_in()
        self._notice_full()
        expired = self._timer is not None and self._timer.expired()
        if expired:
            self._armed = False
        if expired or len(self._waiting) >= PENDING_MAX:
            yield from self._look(now)
        self._arm(0 if expired else SETTLE_S)
        self._hand_over()

    def _take_in(self) -> None:
        self._actors.clear()
        for source in (self._fan, self._ino):
            # A full list is worked off before more is read: the kernel's queue holds the rest.
            if source is not None and len(self._waiting) < PENDING_MAX:
                self._note(source.read())
        self._count_lost()

    def _notice_full(self) -> None:
        """A tree that came later found no watches left."""
        ino = self._ino
        if ino is None or not ino.full:
            return
        sentence = BLIND_PARTS.format(ino.watched, ino.full)
        if not any(line.endswith(f"({ino.full})") for line in self.rung.blind):
            self.rung = self.rung._replace(blind=(*self.rung.blind, sentence))

    def _arm(self, seconds: float) -> None:
        if self._waiting and not self._armed and self._timer is not None:
            self._timer.arm(seconds)
            self._armed = True

    def _note(self, touches: Iterator[Touch]) -> None:
        try:
            for touch in touches:
                watch = touch.zone.decide(touch.path)
                moved = touch.came or touch.went  # what is below may be watched even if the path itself is not
                if not moved and (watch is None or (watch.only and not self._may_be_setid(touch.path))):
                    continue
                self._wait_for(touch.path, self._actor(touch.pid), watch, touch.came, touch.went)
        except DecodeError:  # the kernel's structures are not what we know: only a sweep can tell now
            self._lost += 1
        self._arm(SETTLE_S)

    def _may_be_setid(self, path: str) -> bool:
        """The cheap question for the many files that no other watch concerns: could this be a subject at all?"""
        try:
            at = os.lstat(self._context.root.rstrip("/") + path)
        except OSError:
            return path in self._told or self._reference(path) is not None
        if S_ISREG(at.st_mode) and at.st_mode & 0o6111:
            return True
        return path in self._told or (S_ISREG(at.st_mode) and self._reference(path) is not None)

    def _wait_for(
        self,
        path: str,
        actor: Actor,
        watch: Watch | None,
        came: bool = False,
        went: bool = False,
        alias: bool = False,
    ) -> None:
        before = self._waiting.get(path)
        if before is not None:
            actor = before.actor if actor == NOBODY else actor
            came, went, alias = came or before.came, went or before.went, alias and before.alias
        self._waiting[path] = _Waiting(actor, watch, came, went, alias)

    def _actor(self, pid: int) -> Actor:
        if pid <= 0:
            return NOBODY
        if pid not in self._actors:
            self._actors[pid] = self._context.actor_of(pid)
        return self._actors[pid]

    def _count_lost(self) -> None:
        lost = sum(source.lost for source in (self._fan, self._ino) if source is not None) + self._lost
        if not lost:
            return
        self._lost = 0
        for source in (self._fan, self._ino):
            if source is not None:
                source.lost = 0
        self._rescan = True
        self._on_lost(lost)

    def _hand_over(self) -> None:
        if self._rescan or self._targets:
            rescan, targets = self._rescan, tuple(self._targets)
            self._rescan = False
            self._targets.clear()
            self._on_work(rescan, targets)

    # -- looking

    def _look(self, now: int) -> Iterator[Observation]:
        end = time.monotonic() + SLICE_S
        while self._waiting and time.monotonic() < end:
            path = next(iter(self._waiting))
            waiting = self._waiting.pop(path)
            yield from self._settled(path, waiting, now)

    def _settled(self, path: str, waiting: _Waiting, now: int) -> Iterator[Observation]:
        seen = self._one(path, waiting.watch, waiting.actor, now, Origin.LIVE, self._eye)
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

    def found(self, observation: Observation) -> Observation | None:
        """What a helper saw, with the actor that was seen here. None: we are about to look there ourselves, because
        the kernel told of it, too; that look knows who did it and when."""
        path = observation.subject
        self._take_in()
        self.remember((path,))
        if path in self._waiting:
            return None
        actor = self._remembered.pop(path, NOBODY)
        return observation if actor == NOBODY else observation._replace(actor=actor, origin=Origin.LIVE)

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
            if told == path or told in self._waiting:
                continue
            with contextlib.suppress(OSError):
                other = os.lstat(prefix + told)
                if (other.st_dev, other.st_ino) == (at.st_dev, at.st_ino):
                    self._wait_for(told, actor, self._plan.decide(told), alias=True)

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
        seen = observe(eye, watch, self._context.root, path, now, origin, actor)
        if seen.note == LATER:
            self._leave(path, actor)
            if not always:
                return None
            return seen._replace(status=Status.UNREADABLE, columns={"category": seen.columns["category"]})
        expected = self._reference(path)
        if watch is not None and watch.only == "setid" and not always:
            subject = seen.columns.get("setid") or expected is not None or path in self._told
            if not subject:
                return None
        return self._remember(seen, expected)

    def _remember(self, seen: Observation, expected: Entry | None) -> Observation:
        """Keep in mind what differs, and ask for its package then only."""
        wanted = expected.columns() if expected is not None else None
        present = seen.status is Status.PRESENT
        if present and wanted is not None and all(seen.columns[name] == value for name, value in wanted.items()):
            self._told.pop(seen.subject, None)
            return seen
        if not present and wanted is None:
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
                        self._leave(path, actor)
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
                self._leave(path, actor)
                return
            for at, name in enumerate(visit.names):
                watch = visit.watch or visit.watches[at]
                if watch.only != "setid" or (S_ISREG(visit.stats[at].st_mode) and visit.stats[at].st_mode & 0o6111):
                    self._wait_for(f"{visit.path}/{name}", actor, watch)

    def _leave(self, path: str, actor: Actor) -> None:
        """This is for a helper."""
        self._targets[path] = None
        if actor != NOBODY:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[path] = actor

    def _reference(self, path: str) -> Entry | None:
        if self._manifest is None:
            return None
        try:
            return self._manifest.lookup(os.fsencode(path))
        except DecodeError:
            self._rescan = True
            return None

    # -- descriptors

    def _register(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN)

    def _unregister(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.unregister(fd)

    def _stop_sources(self) -> None:
        for source in (self._fan, self._ino):
            if source is not None:
                source.close()
        self._fan = self._ino = None


class _made:  # noqa: N801 - reads like a word where it is used
    """A file that exists for as long as the block."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(self._path, flags, 0o600))

    def __exit__(self, *_: object) -> None:
        os.unlink(self._path)
