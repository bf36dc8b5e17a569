"""Upgrades, seen from the daemon: what changes while packages are installed waits until it can be explained.

The hook of apt and dpkg puts a transaction into the spool before anything is unpacked. A helper reads what its packages
will do; from then on only differences of these paths, and of paths that may be made of them, are held. When dpkg has
ended, a helper looks at all of them and signs new reference values; then each held path is looked at once more, and
what still differs is told like any other change, with who did it. Nothing is held longer than `HOLD_S`, whatever dpkg
does, and nothing besides files ever.

What is only needed while packages are installed is imported then: most of the time it costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeguard.codec.manifest import Reader
from edgeguard.daemon.baselines import upgraded
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.judging import Judging
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.daemon.river import River
from edgeguard.daemon.sensing import Sensing, now_ms
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.trouble import Trouble
from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import inotify
from edgeguard.model import NOBODY, Actor, Observation, Origin, Severity, Status
from edgeguard.sensors.look import LATER
from edgeguard.settings import Settings

TICK_S = 1.0  # while a transaction is open
SETTLE_S = 3.0  # without dpkg at work: the transaction has ended
UNFINISHED_S = 12.0  # then a transaction without its name is not finished any more
BEHIND_S = 120.0  # how long it is waited for then that the sensor tells what happened meanwhile
STARTING_S = 30.0  # so long its caller counts as at work even where dpkg has no lock yet
UNREAD_S = 300.0  # how long any difference is held while nobody knows yet what the packages will do
HOLD_S = 600.0  # how long a difference is held at all
ACCOUNTS_MAX = 256  # accounts that are held; beyond, they are told
HELD_MAX = 8192  # paths that are held, 250 bytes each; beyond, they are found by a sweep afterwards
ASKED_BYTES = 4 << 20  # of held paths that a helper is asked about
RELEASE_S = 0.05  # of looking in one turn of the loop
OPEN_S = 7200.0  # then a transaction has ended, whoever holds dpkg's lock
PREPARE_S, EXPLAIN_S = 3600.0, 900.0
# By these it is decided what an archive vouches for. A difference that ends before it is judged is told all the same.
ANCHORS = (
    *("/etc/apt/sources.list", "/etc/apt/trusted.gpg", "/etc/apt/keyrings/", "/usr/share/keyrings/"),
    *("/usr/bin/gpgv", "/usr/bin/sqv", "/usr/bin/dpkg-deb", "/usr/lib/apt/"),
)
ANCHORS_MAX = 64
NOT_BY_IT = "changed while packages were installed, and not by them"
DPKG = ("/usr/bin/dpkg", "/usr/bin/dpkg-divert", "/usr/bin/dpkg-statoverride")


class _Held(NamedTuple):
    actor: Actor
    origin: Origin
    since: float  # monotonic seconds


class Upgrades:
    """Asked for every observation whether it waits. `judge` takes an observation that does not wait any more."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        helpers: Helpers,
        judging: Judging,
        river: River,
        sensing: Sensing,
        telling: Telling,
        trouble: Trouble,
        judge: Callable[[Observation], None],
        compare: Callable[[], None],  # a sweep that judges everything anew
        sweeping: Callable[[], bool],  # does a sweep of everything run?
        busy: Callable[[], str] | None = None,  # why dpkg is at work, "" if it is not
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._helpers = helpers
        self._judging = judging
        self._river = river
        self._sensing = sensing
        self._telling = telling
        self._trouble = trouble
        self._judge = judge
        self._compare = compare
        self._sweeping = sweeping
        self._busy = busy or self._dpkg_running
        self._spool = f"{settings.paths.exchange}/packages"
        self._queue: inotify.Queue | None = None
        self._open: dict[str, float] = {}  # transaction -> when it was first seen; not judged yet
        self._readers: dict[str, Reader] = {}  # of those that are prepared
        self._fds: dict[str, int] = {}
        self._held: dict[str, _Held] = {}
        self._accounts: dict[str, tuple[Observation, float]] = {}  # that came or went, and since when they wait
        self._asked: dict[str, tuple[Observation, float]] = {}  # those that the running helper is asked about
        self._anchors: dict[str, Observation] = {}  # held ones that decide which packages are believed
        self._batch: dict[str, _Held] = {}  # what the running helper is asked about
        self._release: list[tuple[str, _Held]] = []
        self._overflowed = False
        self._quiet_since = 0.0
        self._tick: Timer | None = None

    # -- the spool

    def begin(self) -> None:
        """When the sensors stand. What waits in the spool happened while nobody looked."""
        with contextlib.suppress(OSError):
            os.makedirs(self._spool, mode=0o700, exist_ok=True)
        try:
            self._queue = inotify.Queue()
            self._queue.add(self._spool, inotify.IN_MOVED_TO | inotify.IN_CREATE)
            self._loop.watch(self._queue.fileno(), self._rung)
        except (Unavailable, OSError) as error:
            text = f"{self._spool} cannot be watched ({error}): package upgrades are told file by file"
            self._trouble.sensor_blind("upgrades", text)
            return
        self._scan()

    def close(self) -> None:
        if self._queue is not None:
            self._loop.unwatch(self._queue.fileno())
            self._queue.close()
            self._queue = None
        for fd in self._fds.values():
            os.close(fd)
        self._readers.clear()
        self._fds.clear()

    def _rung(self) -> None:
        assert self._queue is not None
        self._queue.read()  # which one it was is seen in the directory
        self._scan()
        self._loop.later(UNFINISHED_S, self._scan, slack=5.0)  # a hook that was killed leaves its work without a name

    def _scan(self) -> None:
        with contextlib.suppress(OSError):
            if not os.listdir(self._spool):
                return
        from edgeguard.upgrades import transactions

        with contextlib.suppress(OSError):
            transactions.finish_interrupted(self._spool, time.time())
        new = [name for name in transactions.ids(self._spool) if name not in self._open]
        for name in new:
            self._open[name] = self._quiet_since = time.monotonic()
        if new:
            self._prepare()
        if self._open and self._tick is None:
            self._tick = self._loop.later(TICK_S, self._ticked)

    # -- asked for every observation

    @property
    def active(self) -> bool:
        return bool(self._open)

    @property
    def holding(self) -> bool:
        """Is there something that was told and is not judged yet? It is in memory only."""
        return bool(self._held or self._batch or self._release or self._overflowed)

    def holds(self, observation: Observation) -> bool:
        """Does this difference wait? Only files and quiet accounts do, only while packages are installed, only what
        these may explain."""
        if observation.kind == "account" and (self._open or self._asked):
            return self._holds_account(observation)
        if not self._open or observation.kind != "file":
            return False
        if observation.subject in self._anchors and not self._river.deviates(observation, now_ms()):
            self._judge(self._anchors.pop(observation.subject))  # for a while somebody else could vouch for packages
        if not self._may_be_explained(observation):
            return False
        if not self._river.deviates(observation, now_ms()):
            self._held.pop(observation.subject, None)
            return False
        if observation.subject.startswith(ANCHORS) and len(self._anchors) < ANCHORS_MAX:
            self._anchors.setdefault(observation.subject, observation)
        if len(self._held) >= HELD_MAX and observation.subject not in self._held:
            self._overflowed = True
            return True
        before = self._held.get(observation.subject)
        actor = observation.actor if observation.actor != NOBODY or before is None else before.actor
        since = before.since if before is not None else time.monotonic()
        self._held[observation.subject] = _Held(actor, observation.origin, since)
        return True

    def _holds_account(self, observation: Observation) -> bool:
        """One that came and can do nothing, or one that went. What amounts to more is told at once, and so is a change
        of one that was there."""
        subject = observation.subject
        self._accounts.pop(subject, None)
        self._asked.pop(subject, None)
        if not self._open or len(self._accounts) >= ACCOUNTS_MAX or not self._river.deviates(observation, now_ms()):
            return False
        from edgeguard.upgrades.kinds import BY_OTHERS, quiet_account

        references = self._river.references
        known = references.expected("account", subject) if references is not None else None
        came = observation.status is Status.PRESENT and known is None and quiet_account(subject, observation.columns)
        went = observation.status is Status.ABSENT and known is not None and known.get("uid") != 0
        if not (came or went) or _maker(observation.actor) == BY_OTHERS:
            return False
        self._accounts[subject] = (observation, time.monotonic())
        return True

    def _may_be_explained(self, observation: Observation) -> bool:
        now = time.monotonic()
        if any(name not in self._readers and now - seen < UNREAD_S for name, seen in self._open.items()):
            return True
        path = os.fsencode(observation.subject)
        try:
            if any(reader.lookup(path) is not None for reader in self._readers.values()):
                return True
        except DecodeError:
            return False
        columns = observation.columns
        if observation.status is Status.ABSENT and (references := self._river.references) is not None:
            columns = {**(references.expected("file", observation.subject) or {}), **columns}
        from edgeguard.upgrades.kinds import may_be

        target = os.fsencode(str(columns.get("target") or ""))
        return may_be(path, target, str(columns.get("category")), _maker(observation.actor))

    # -- helpers

    def _prepare(self) -> None:
        wanted = [name for name in self._open if name not in self._readers]

        def message(words: dict[str, Any]) -> None:
            if isinstance(name := words.get("prepared"), str):
                self._prepared(name)
            elif "refused" in words:
                name, why = words["refused"]
                self._trouble.helper_failed("prepare", f"{name}: {why}")
                self._drop(name)

        def done(error: str) -> None:
            if error:
                self._trouble.helper_failed("prepare", error)
                for name in wanted:
                    if name not in self._readers:
                        self._drop(name)
            else:
                self._trouble.helper_well("prepare")
            if any(name not in self._readers for name in self._open):
                self._prepare()

        if wanted:
            request = {"transactions": wanted, "digest": self._judging.algorithm.value}
            self._helpers.start("prepare", request, message, done, timeout_s=PREPARE_S, low=True)

    def _prepared(self, name: str) -> None:
        if name not in self._open or name in self._fds:
            return
        from edgeguard.upgrades import transactions

        try:
            fd = os.open(transactions.manifest_of(self._settings.paths.state, name), os.O_RDONLY | os.O_CLOEXEC)
            self._fds[name] = fd
            self._readers[name] = Reader(fd)
        except (OSError, DecodeError) as error:
            self._trouble.helper_failed("prepare", f"{name}: {error}")
            self._drop(name)

    def _ticked(self) -> None:
        self._tick = None
        now = time.monotonic()
        if self._at_work(now):
            self._quiet_since = now
        waiting = (*(held.since for held in self._held.values()), *(since for _, since in self._accounts.values()))
        oldest = min(waiting, default=now)
        ready = all(name in self._readers for name in self._open)
        quiet = now - self._quiet_since
        ended = quiet >= SETTLE_S and not self._sweeping() and (self._caught_up() or quiet >= BEHIND_S)
        if "explain" not in self._helpers.running and not self._release and self._open:
            if ready and (ended or now - min(self._open.values()) > OPEN_S):
                self._explain(final=True)
            elif now - oldest >= HOLD_S:
                self._explain(final=False)
        if self._open:
            self._tick = self._loop.later(TICK_S, self._ticked, slack=0.5)

    def _dpkg_running(self) -> str:
        from edgeguard.remediations.preflight import dpkg_running

        return dpkg_running("/proc", self._settings.paths.root)

    def _caught_up(self) -> bool:
        """A busy device tells of files later than dpkg changes them."""
        files: Any = self._sensing.sensor("files")
        return files is None or files.caught_up

    def _at_work(self, now: float) -> bool:
        if self._busy():
            return True
        return any(now - seen < STARTING_S and _lives(name) for name, seen in self._open.items())

    def _explain(self, *, final: bool) -> None:
        names = sorted(self._readers)
        self._batch, self._held = self._held, {}
        if not names:
            self._let_go(self._batch)
            self._let_accounts_go()
            return
        try:
            held: list[list[Any]] = [
                [os.fsencode(path), _maker(item.actor)]
                for path, item in self._batch.items()
                if not any(reader.lookup(os.fsencode(path)) for reader in self._readers.values())
            ]
        except DecodeError as error:  # a card that fails: what is held is told, and no later start stumbles over it
            self._trouble.helper_failed("explain", str(error))
            batch, self._batch = self._batch, {}
            for name in names:
                self._drop(name)
            self._let_go(batch)
            return
        size = 0
        for count, (path, _) in enumerate(held):
            size += len(path)
            if size > ASKED_BYTES:  # the helper takes no longer request; these are told
                del held[count:]
                break
        self._asked, self._accounts = self._accounts, {}
        answer: dict[str, Any] = {}
        request = {
            "transactions": names,
            "held": held,
            "accounts": [_plain(observation) for observation, _ in self._asked.values()],
            **self._judging.for_sweeps(),
        }
        self._helpers.start(
            "explain",
            request,
            answer.update,
            lambda error: self._explained(names, answer, error, final=final),
            timeout_s=EXPLAIN_S,
            low=True,
        )

    def _explained(self, names: list[str], answer: dict[str, Any], error: str, *, final: bool) -> None:
        if error:
            self._trouble.helper_failed("explain", error)
        else:
            self._trouble.helper_well("explain")
        if "overlay" in answer:  # also where it ended before its last work was done: this is signed and in place
            if unproven := answer.get("unproven"):
                self._telling.state("sweep", f"upgrade: {unproven} files made of packages, their content is not proven")
            if (over := upgraded(answer["overlay"])) is not None:
                self._judging.packages_came(over)
        elif error:  # it may have signed, and the manifest that held before is taken away then
            self._judging.look_for_upgraded()
        if final:
            for package in answer.get("packages", ()):
                self._tell(package)
            for name in names:
                self._drop(name)
        batch, self._batch = self._batch, {}
        for path in answer.get("look", ()):  # not as signed, and no event may have told: an old version that was kept
            batch.setdefault(os.fsdecode(path), _Held(NOBODY, Origin.SWEEP, 0.0))
        self._overflowed = self._overflowed or answer.get("compare") is True
        self._let_go(batch)
        asked, self._asked = self._asked, {}
        self._judge_accounts(asked)
        if not self._open:
            self._let_go(self._held)
            self._held = {}
            self._let_accounts_go()
        self._find_overflowed()

    def _tell(self, package: dict[str, Any]) -> None:
        odd = package["other"] or package["word"] == "nobody"
        self._telling.package(package, severity=Severity.LOW if odd else Severity.INFORMATIONAL)

    def _drop(self, name: str) -> None:
        """A transaction is over. What it holds is let go by whoever ends it."""
        self._open.pop(name, None)
        self._readers.pop(name, None)
        if (fd := self._fds.pop(name, None)) is not None:
            os.close(fd)
        from edgeguard.upgrades import transactions

        with contextlib.suppress(OSError):
            transactions.forget(self._settings.paths.state, self._spool, name)
        if not self._open and "explain" not in self._helpers.running:
            self._let_go(self._held)
            self._held = {}
            self._let_accounts_go()
            self._find_overflowed()

    # -- letting go

    def _find_overflowed(self) -> None:
        if self._overflowed:
            self._overflowed = False
            self._compare()

    def _let_accounts_go(self) -> None:
        waiting, self._accounts = self._accounts, {}
        self._judge_accounts(waiting)

    def _judge_accounts(self, waiting: dict[str, tuple[Observation, float]]) -> None:
        """As they are: another look at one that changed meanwhile has taken it off the list."""
        for observation, _ in waiting.values():
            deviates = self._river.deviates(observation, now_ms())
            self._judge(observation._replace(note=NOT_BY_IT) if deviates and not observation.note else observation)

    def _let_go(self, held: dict[str, _Held]) -> None:
        start = not self._release
        self._release += held.items()
        if start and self._release:
            self._loop.later(0, self._look)

    def _look(self) -> None:
        """Look at some of the paths again: what is as expected now never was a finding."""
        files: Any = self._sensing.sensor("files")
        end = time.monotonic() + RELEASE_S
        while self._release and time.monotonic() < end:
            path, held = self._release.pop(0)
            self._anchors.pop(path, None)
            if files is None:
                continue
            seen = files.observe_path(path, now_ms(), held.actor, held.origin)
            if seen.note == LATER:
                continue  # too large to be read here: a helper has been asked, and tells
            if not seen.note and self._river.deviates(seen, now_ms()):
                seen = seen._replace(note=NOT_BY_IT)
            self._judge(seen)
        if self._release:
            self._loop.later(0, self._look)


def _plain(account: Observation) -> list[Any]:
    """As the helper takes it."""
    from edgeguard.codec.values import columns_to_plain, to_plain
    from edgeguard.upgrades.kinds import ACCOUNT_COLUMNS

    columns = {name: account.columns.get(name) for name in ACCOUNT_COLUMNS}
    there = account.status is Status.PRESENT
    return [to_plain(account.subject), _maker(account.actor), columns_to_plain(columns) if there else None]


def _maker(actor: Actor) -> int:
    """Was it dpkg, or a child of it? What ended before it could be asked, or hangs on a parent that did, is unknown."""
    from edgeguard.upgrades.kinds import BY_DPKG, BY_OTHERS, BY_UNKNOWN

    if actor.exe in DPKG or any(exe in DPKG for _, exe in actor.parents):
        return BY_DPKG
    whole = bool(actor.parents) and actor.parents[-1][0] == 1
    return BY_OTHERS if whole else BY_UNKNOWN


def _lives(name: str) -> bool:
    """Is whoever called the hook still there?"""
    pid = name.partition("-")[2]
    return pid != "0" and os.path.exists(f"/proc/{pid}")
