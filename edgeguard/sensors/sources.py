"""What tells the files sensor that something happened: the ladder fanotify, inotify, nothing but sweeps.

A rung stands when it has seen an event of our own making. What fanotify cannot watch is watched by inotify beside it.
Here is also what is not seen on the rung that stands, in plain sentences. What a touch means is not judged here.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence

from edgeguard.errors import Unavailable
from edgeguard.model import Watch
from edgeguard.sensors import Rung
from edgeguard.sensors.touches import (
    BEYOND_WHY,
    RESTLESS,
    RESTLESS_WHY,
    FanotifySource,
    InotifySource,
    OnExec,
    Touch,
)
from edgeguard.sensors.watching import Plan

LADDER = ("fanotify", "inotify", "sweep")
PROOF_S = 1.0  # how long the self-test waits for its own event

BLIND_PARTS = "watched directories beyond the first {} are only looked at by sweeps ({})"
BLIND_SETID = "new set-id programs outside the other watched trees are only found by sweeps"
BLIND_ACTOR = "who changed a file is not known"
BLIND_LIVE = "changes of files are not seen as they happen, only by sweeps"
BLIND_OPEN = "what is written to a file that stays open is seen when it is closed, or by a sweep ({})"

Note = Callable[[Iterator[Touch]], None]


class Sources:
    """At most one of each kind. `note` takes what happens, also while the self-test waits; `proof` is a directory of
    ours."""

    def __init__(self, plan: Plan, root: str, proof: str, note: Note, on_exec: OnExec | None) -> None:
        self._plan = plan
        self._root = root
        self._proof = proof
        self._note = note
        self._on_exec = on_exec
        self._fan: FanotifySource | None = None
        self._ino: InotifySource | None = None
        self._epoll: select.epoll | None = None

    def __iter__(self) -> Iterator[FanotifySource | InotifySource]:
        return (source for source in (self._fan, self._ino) if source is not None)

    @property
    def behind(self) -> bool:
        """More is queued than one read takes."""
        return any(source.behind for source in self)

    def take_lost(self) -> int:
        """Overflows of the kernel's queues since the last question."""
        lost = 0
        for source in self:
            lost += source.lost
            source.lost = 0
        return lost

    # -- the ladder

    def climb(self, rungs: Sequence[str], epoll: select.epoll) -> Rung:
        """Down to the first rung that proves itself. Its descriptors wait in `epoll`."""
        self._epoll = epoll
        tried: list[tuple[str, str]] = []
        for name in rungs:
            try:
                if name == "fanotify":
                    return self._start_fanotify(tried)
                if name == "inotify":
                    return self._start_inotify(tried)
            except Unavailable as why:
                tried.append((name, str(why)))
        self.close()
        return Rung("sweep", os.path.isdir(self._proof), (BLIND_LIVE,), tuple(tried))

    def _start_fanotify(self, tried: list[tuple[str, str]]) -> Rung:
        fan = FanotifySource(self._plan, self._root, self._on_exec)
        try:
            failed = fan.mark(self._plan.watches)
            if sum(why != BEYOND_WHY for _, why in failed) == len(self._plan.watches):
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
                self._ino = InotifySource(Plan(rest), self._root)
                self._ino.watch()
                self._register(self._ino.fileno())
                quiet = [watch for watch, why in failed if why == RESTLESS_WHY]
                blind += [f"{watch.path}: {BLIND_ACTOR} there" for watch in rest if watch not in quiet]
                blind += [f"{RESTLESS}: {BLIND_ACTOR} there"] if quiet else []
                if self._ino.full:
                    blind.append(BLIND_PARTS.format(self._ino.watched, self._ino.full))
            except Unavailable as why:
                blind += [f"{watch.path}: only looked at by sweeps ({why})" for watch in rest]
        if self._fan is not None and self._fan.deaf_to_writes:
            blind.append(BLIND_OPEN.format(self._fan.deaf_to_writes))
        return tuple(blind)

    def _start_inotify(self, tried: list[tuple[str, str]]) -> Rung:
        ino = InotifySource(self._plan, self._root)
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

    # -- the self-test

    def prove(self) -> bool:
        """Once more: does the rung that stands still hear of things? At most a second."""
        try:
            if self._fan is not None:
                self._prove_fanotify(self._fan)
            elif self._ino is not None:
                self._prove(self._ino)
        except (Unavailable, OSError):
            return False
        return True

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

    def _await(self, source: FanotifySource | InotifySource) -> None:
        """Read until the proof is there. What else happens meanwhile is not lost."""
        poll = select.poll()
        poll.register(source.fileno(), select.POLLIN)
        end = time.monotonic() + PROOF_S
        while not source.proven and not source.why and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._note(source.read())

    # -- what changes

    def remark(self) -> tuple[str, ...]:
        """After mounts changed: watch the new ones too. What is not seen as it happens, in plain sentences."""
        if self._fan is not None:
            return self._serve_failed(self._fan.mark(self._plan.watches))
        if self._ino is not None:
            self._ino.renew(self._plan)
            return self._blind_of(self._ino)
        return ()

    def renew(self, plan: Plan) -> None:
        """Something else is watched; `remark` follows."""
        self._plan = plan
        if self._fan is not None:
            self._fan.renew(plan)

    def news(self, blind: Sequence[str]) -> str:
        """A sentence that `blind` lacks: a tree that came later found no watches left. "" for none."""
        ino = self._ino
        if ino is None or not ino.full or any(line.endswith(f"({ino.full})") for line in blind):
            return ""
        return BLIND_PARTS.format(ino.watched, ino.full)

    # -- descriptors

    def _register(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN)

    def _unregister(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        for source in self:
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
