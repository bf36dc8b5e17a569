"""Which sensors the guard starts, in which order, and how they hang together.

The process sensor comes before the files sensor where it can hear of programs by itself; where it cannot, the files
sensor lends it its events. Capabilities that only the start needs are given up here, when the last sensor stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeguard.daemon.sensing import now_ms
from edgeguard.daemon.sweeps import Request
from edgeguard.errors import EdgeGuardError
from edgeguard.linux import capabilities
from edgeguard.model import Origin, Watch
from edgeguard.sensors import Rung, sensor_class
from edgeguard.sensors.health import Reason
from edgeguard.sensors.processes import Processes
from edgeguard.sensors.walk import resolved
from edgeguard.sensors.watching import Plan, literal_root

if TYPE_CHECKING:
    from edgeguard.daemon.guard import Guard


def start_sensors(guard: Guard) -> None:
    """Start every sensor of the table; one that fails is said to be blind and the others go on."""
    processes = Processes(guard.context, guard.actors, hints=True)
    processes.on_exec = lambda _process: guard.sensing.program_started()
    _add(guard, processes, snapshot=True)
    _add_files(guard, processes)
    for name in ("listeners", "usb", "host", "accounts", "packages"):
        make: Any = sensor_class(name)
        _add(guard, make(guard.context), snapshot=True)
    _add(guard, guard.health, snapshot=True)
    if processes.rung.name == "polling":
        guard.sensing.hurry("listeners", processes.interval_s)
    with contextlib.suppress(OSError):  # an ordinary user has none to give up
        capabilities.give_up(capabilities.CAP_SYS_ADMIN)
    guard.sensing.run()


def _add(guard: Guard, sensor: Any, *, snapshot: bool) -> Rung | None:
    try:
        return guard.sensing.add(sensor, snapshot=snapshot)
    except (OSError, EdgeGuardError) as error:
        guard.health.report(Reason.SENSOR_BLIND, f"sensor {sensor.name}", str(error), now=now_ms())
        return None


def _add_files(guard: Guard, processes: Processes) -> None:
    assert guard.in_force is not None
    from edgeguard.sensors.files import Files

    lend = processes.rung.name != "proc connector"
    files = Files(
        guard.context,
        guard.in_force.baseline.policy.watches,
        guard.manifest,
        guard.settings.paths.state,
        on_work=lambda rescan, targets: work(guard, targets if not rescan else ()),
        on_lost=lambda count: lost(guard, count),
        on_exec=(lambda pid, path: hint(guard, processes, pid, path)) if lend else None,
        hash_file_max=guard.settings.budget.hash_file_max,
    )
    rung = _add(guard, files, snapshot=False)
    guard.sensing.storm = lambda: files.behind
    if lend and (rung is None or rung.name != "fanotify"):
        processes.no_hints()


def hint(guard: Guard, processes: Processes, pid: int, path: str) -> None:
    """A program was opened for execution; the kernel told the files sensor."""
    for observation in processes.exec_hint(pid, path, now_ms()):
        guard.sensing.live("processes", observation)
    guard.sensing.program_started()


def work(guard: Guard, targets: tuple[str, ...]) -> None:
    """What is too much for the resident daemon; without targets, everything."""
    guard.sweeps.ask(Request(Origin.SWEEP, targets=targets))


def lost(guard: Guard, count: int) -> None:
    guard.health.report(Reason.EVENTS_LOST, "events", f"{count} events of files were lost", now=now_ms())
    guard.loop.later(0, guard.tell_health)


def renew(guard: Guard) -> None:
    """Another baseline is in force: sensors ask anew what is known and what is watched."""
    assert guard.in_force is not None
    for name in ("processes", "listeners"):
        sensor: Any = guard.sensing.sensor(name)
        if sensor is not None:
            sensor.renew()
    files: Any = guard.sensing.sensor("files")
    if files is not None:
        files.renew(guard.in_force.baseline.policy.watches, guard.manifest)


def remark(guard: Guard, points: Iterable[str]) -> tuple[str, ...]:
    """Something was mounted or unmounted at `points`: files there are watched too, as well as our rights still allow.
    What is to be looked at: the points that watches speak of, and every finding at or below one."""
    assert guard.in_force is not None
    files: Any = guard.sensing.sensor("files")
    if files is not None:
        files.remark()
    watches = resolved(guard.in_force.baseline.policy.watches, guard.settings.paths.root)
    concerned = tuple(concerning(watches, points))
    standing = tuple(path for path in guard.standing("file") if any(_within(path, point) for point in concerned))
    return tuple(dict.fromkeys((*concerned, *standing)))


def concerning(watches: Sequence[Watch], points: Iterable[str]) -> Iterator[str]:
    """Mount points in or above what is watched. Watches for set-id programs stay on their own file system."""
    plan = Plan(watches)
    roots = [literal_root(watch.path) for watch in watches if not watch.only]
    for point in points:
        watch = plan.decide(point)
        if (watch is not None and not watch.only) or any(_within(root, point) for root in roots):
            yield point


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
