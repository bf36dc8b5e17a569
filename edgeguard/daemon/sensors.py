"""Which sensors run, in which order they start, and how they hang together.

The process sensor comes before the files sensor where it can hear of programs by itself; where it cannot, the files
sensor lends it its events. Capabilities that only the start needs are given up here, when the last sensor stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from edgeguard.codec.layers import Lookup
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.daemon.river import River
from edgeguard.daemon.sensing import Sensing, now_ms
from edgeguard.daemon.trouble import Trouble
from edgeguard.errors import EdgeGuardError
from edgeguard.linux import capabilities
from edgeguard.model import Finding, Observation, Watch
from edgeguard.sensors import Context, Rung, sensor_class
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.health import Health
from edgeguard.sensors.ldcache import CACHE
from edgeguard.sensors.processes import Processes
from edgeguard.sensors.walk import resolved
from edgeguard.sensors.watching import Plan
from edgeguard.settings import Settings

DAY_S = 86_400.0
MAGIC = "*?["  # in the path of a watch they are wildcards
KERNELS_OWN = ("/proc/", "/sys/", "/dev/", "/run/")  # no key file lies there, and their events would wake us
REMARK_S = 0.5  # mounts come in groups
# Policies leave it out, because each upgrade makes it anew; its events wake the sensor that reads it.
LIBRARIES = Watch(CACHE, "volatile", recurse=False, content=False, checks=("type", "mode", "uid", "gid"))

SENSOR_OF = {
    "listener": ("listeners",),
    "process": ("processes",),
    "usb": ("usb",),
    "sysctl": ("host",),
    "module": ("host",),
    "mount": ("host",),
    "sshd": ("host",),
    "library_dir": ("host",),
    "account": ("accounts",),
    "authorized_key": ("accounts",),
    "package": ("packages",),
    "health": ("health",),
}


class Sensors:
    """Starts and renews them all. `observed` takes what they see at our wish; `sweep` looks at what is too much for
    the resident daemon, without paths at everything."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        context: Context,
        actors: Actors,
        health: Health,
        sensing: Sensing,
        river: River,
        trouble: Trouble,
        observed: Callable[[Observation], None],
        sweep: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._context = context
        self._actors = actors
        self._health = health
        self._sensing = sensing
        self._river = river
        self._trouble = trouble
        self._observed = observed
        self._sweep = sweep
        self._watches: Sequence[Watch] = ()
        self._manifest: Lookup | None = None
        self._mounted: dict[str, None] = {}  # since the last remark
        self._remark_timer: Timer | None = None
        self._attended: frozenset[str] = frozenset()  # places beyond the policy's watches
        self._attend_timer: Timer | None = None

    # -- start and another baseline

    def start(self, watches: Sequence[Watch], manifest: Lookup | None) -> None:
        """Start every sensor of the table; one that fails is said to be blind and the others go on."""
        self._watches, self._manifest = watches, manifest
        processes = Processes(self._context, self._actors, hints=True)
        processes.on_exec = lambda _process: self._sensing.program_started()
        self._add(processes, snapshot=True)
        self._add_files(processes, manifest)
        for name in ("listeners", "usb", "host", "accounts", "packages"):
            make: Any = sensor_class(name)
            self._add(make(self._context), snapshot=True)
        self._add(self._health, snapshot=True)
        if processes.rung.name == "polling":
            self._sensing.hurry("listeners", processes.interval_s)
        with contextlib.suppress(OSError):  # an ordinary user has none to give up
            capabilities.give_up(capabilities.CAP_SYS_ADMIN)
        self._sensing.run()
        self.attend()

    def _add(self, sensor: Any, *, snapshot: bool) -> Rung | None:
        try:
            return self._sensing.add(sensor, snapshot=snapshot)
        except (OSError, EdgeGuardError) as error:
            self._trouble.sensor_blind(sensor.name, str(error))
            return None

    def _add_files(self, processes: Processes, manifest: Lookup | None) -> None:
        from edgeguard.sensors.files import Files

        def hint(pid: int, path: str) -> None:
            """A program was opened for execution; the kernel told the files sensor."""
            for observation in processes.exec_hint(pid, path, now_ms()):
                self._sensing.live("processes", observation)
            self._sensing.program_started()

        lend = processes.rung.name != "proc connector"
        files = Files(
            self._context,
            (*self._watches, *attention(self._watches, ())),
            manifest,
            self._settings.paths.state,
            on_work=lambda rescan, targets: self._sweep(targets if not rescan else ()),
            on_lost=self._trouble.events_lost,
            on_exec=hint if lend else None,
            hash_file_max=self._settings.budget.hash_file_max,
        )
        files.remember(self._river.standing("file"))
        rung = self._add(files, snapshot=False)
        self._sensing.storm = lambda: files.behind
        self._sensing.untold = rung is None or rung.name == "sweep"
        if lend and (rung is None or rung.name != "fanotify"):
            processes.no_hints()

    def renew(self, watches: Sequence[Watch], manifest: Lookup | None) -> None:
        """Another baseline is in force: sensors ask anew what is known and what is watched."""
        self._watches = watches
        for name in ("processes", "listeners"):
            sensor: Any = self._sensing.sensor(name)
            if sensor is not None:
                sensor.renew()
        self._manifest = manifest
        if self._files is not None:
            self._files.renew((*watches, *attention(watches, self._attended)), manifest)
        self._sensing.settle()

    def relearned(self) -> None:
        """Reference values were learned anew: what logs had lost before is settled."""
        if self._files is not None:
            self._files.relearned()

    def refer(self, manifest: Lookup | None) -> None:
        """Packages brought other files: what is known is another, what is watched is not."""
        self._manifest = manifest
        for name in ("processes", "listeners"):
            sensor: Any = self._sensing.sensor(name)
            if sensor is not None:
                sensor.renew()
        if self._files is not None:
            self._files.refer(manifest)
        for name in ("packages", "processes", "listeners"):
            self._sensing.look(name)

    def accounts_changed(self) -> None:
        """Somebody may have another home now. Several accounts change in one go."""
        if self._attend_timer is None:
            self._attend_timer = self._loop.later(REMARK_S, self.attend)

    def attend(self) -> None:
        """Let the files sensor hear of the key files of users whose homes no watch names (/var/www, /srv/git)."""
        self._attend_timer = None
        places: frozenset[str] = getattr(self._sensing.sensor("accounts"), "places", frozenset())
        if places == self._attended or self._files is None:
            return
        before, self._attended = attention(self._watches, self._attended), places
        if (extra := attention(self._watches, places)) != before:
            self._files.renew((*self._watches, *extra), self._manifest)

    @property
    def _files(self) -> Any:
        return self._sensing.sensor("files")

    # -- looks out of turn

    def look_at(self, finding: Finding) -> None:
        """Look again at what a finding is about."""
        if finding.kind != "file":
            for name in SENSOR_OF.get(finding.kind, ()):
                self._sensing.look(name)
        elif self._files is not None:
            self._observed(self._files.observe_path(finding.subject, now_ms()))

    def prove_daily(self) -> None:
        """Once a day: does the rung that we stand on still carry?"""
        self._loop.later(DAY_S, self._prove, slack=3600.0)

    def _prove(self) -> None:
        if self._files is not None:
            if self._files.proves_itself():
                self._trouble.sensor_sees("files")
            else:
                self._trouble.sensor_blind("files", "its own event did not arrive")
            self._trouble.tell()
        self.prove_daily()

    # -- mounts

    def mounted(self, point: str) -> None:
        """Something was mounted or unmounted there."""
        self._mounted[point] = None
        if self._remark_timer is None:
            self._remark_timer = self._loop.later(REMARK_S, self._remark)

    def _remark(self) -> None:
        self._remark_timer = None
        points, self._mounted = self._mounted, {}
        if self._files is not None:
            self._files.remark()  # files there are watched too, as well as our rights still allow
            self._sensing.settle()
        if targets := self._concerned(points):  # what was there before we watched
            self._sweep(targets)
        if any(point.startswith(("/etc", "/root", "/home")) for point in points):
            for name in ("accounts", "host"):  # a file mounted over /etc/passwd changes it, and no event tells
                self._sensing.look(name)

    def _concerned(self, points: Iterable[str]) -> tuple[str, ...]:
        """What is to be looked at: the points that watches speak of, and every finding at or below one."""
        watches = resolved(self._watches, self._settings.paths.root)
        concerned = tuple(concerning(watches, points))
        standing = self._river.standing("file")
        below = tuple(path for path in standing if any(_within(path, point) for point in concerned))
        return tuple(dict.fromkeys((*concerned, *below)))


def attention(watches: Sequence[Watch], places: Iterable[str]) -> tuple[Watch, ...]:
    """A watch for each place that the policy leaves to its set-id watch, or to none; and for the loader's cache."""
    plan = Plan(watches)
    beyond = sorted(place for place in places if not any(mark in place for mark in MAGIC))
    wanted = (LIBRARIES, *(Watch(place, "key", recurse=False) for place in beyond))
    return tuple(
        one
        for one in wanted
        if not one.path.startswith(KERNELS_OWN) and ((watch := plan.decide(one.path)) is None or watch.only)
    )


def concerning(watches: Sequence[Watch], points: Iterable[str]) -> Iterator[str]:
    """Mount points in or above what is watched. Watches for set-id programs stay on their own file system."""
    plan, others = Plan(watches), Plan([watch for watch in watches if not watch.only])
    for point in points:
        watch = plan.decide(point)
        if (watch is not None and not watch.only) or others.zone(point).nodes:
            yield point


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
