"""`edgeguard doctor`: EdgeGuard about itself. Facts that are at hand, each with what to do where something is wrong."""

from __future__ import annotations

import os
import time

from edgeguard import __version__
from edgeguard.cli.text import escape
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.status import resident_bytes
from edgeguard.daemon.trouble import STREAMS
from edgeguard.errors import DecodeError
from edgeguard.linux import cgroup, mounts, swap
from edgeguard.model import Mode
from edgeguard.remediations import World
from edgeguard.sensors import Rung
from edgeguard.settings import transport

DISK_FREE_MIN = 0.05  # share of the file system that should stay free
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
MEMORY_BUDGET = 64 * 1024 * 1024  # bytes; the unit's MemoryHigh leaves room for helpers

Check = dict[str, str]


def check(level: str, name: str, text: str, fix: str = "") -> Check:
    return {"level": level, "name": name, "text": escape(text), "fix": fix}


def checks(guard: Guard) -> list[Check]:
    """In the order to show."""
    return [
        _service(guard),
        _kernel(),
        _limits(),
        *_sensors(guard),
        _baseline(guard),
        *_tools(guard),
        _disk(guard),
        _records(guard),
        _wear(guard),
        _key(guard.settings.paths.runtime),
        _identity(guard),
        _journal(guard),
        _uplink(guard),
        _clock(guard),
        *_trouble(guard),
    ]


def _service(guard: Guard) -> Check:
    minutes = int((time.time() * 1000 - guard.showing.started) / 60_000)
    memory = resident_bytes()
    text = f"edgeguard {__version__}, up {minutes} min, {memory / 1e6:.0f} MB"
    level = "OK" if memory < MEMORY_BUDGET else "WARN"
    return check(level, "service", text, "" if level == "OK" else "systemctl restart edgeguard")


def _kernel() -> Check:
    return check("OK", "kernel", f"{os.uname().release} {os.uname().machine}")


def _limits() -> Check:
    """systemd takes limits that the kernel does not keep, and says nothing."""
    void = cgroup.unlimited()
    if not void:
        return check("OK", "limits", "memory and tasks of EdgeGuard are limited")
    fix = "enable the controllers; on a Raspberry Pi: cgroup_enable=memory in cmdline.txt"
    return check("WARN", "limits", f"not limited, whatever the unit says: {' and '.join(void)}", fix)


def _sensors(guard: Guard) -> list[Check]:
    rows = []
    for report in guard.sensing.reports():
        rung = report.rung
        level = "FAIL" if not report.works else "OK" if rung.proven and report.best else "WARN"
        parts = [rung.name + ("" if rung.proven else " (not proven)")]
        parts += [f"not {' and '.join(names)}: {why}" for why, names in _reasons(rung).items()]
        parts += [sentence.removesuffix(".") for sentence in rung.blind]
        rows.append(check(level, f"sensor {report.name}", "; ".join(parts)))
    return rows


def _reasons(rung: Rung) -> dict[str, list[str]]:
    """Why better rungs do not stand, each reason once."""
    reasons: dict[str, list[str]] = {}
    for name, why in rung.tried:
        reasons.setdefault(why.removeprefix(f"{name}: "), []).append(name)
    return reasons


def _baseline(guard: Guard) -> Check:
    force = guard.judging.in_force
    if force is None:
        if guard.judging.learning:
            return check("WARN", "baseline", f"learning, {guard.judging.learning.percent} %")
        return check("FAIL", "baseline", "none in force: nothing is judged", "edgeguard baseline learn")
    text = f"revision {force.baseline.revision}, signature good, trust {force.trust}, mode {guard.judging.mode.value}"
    text += f", {len(force.baseline.policy.rules)} rules, {len(force.baseline.policy.waivers)} waivers"
    return check("OK", "baseline", text)


def _tools(guard: Guard) -> list[Check]:
    """What a remediation that is switched on needs, and this device has not got."""
    force = guard.judging.in_force
    if force is None or guard.judging.mode is not Mode.ENFORCE:
        return []
    enforced = {rule.remediation for rule in force.baseline.policy.rules if rule.mode is Mode.ENFORCE}
    if "block-port" in enforced and not os.access(World().nft, os.X_OK):
        return [check("WARN", "nft", "no port can be blocked: nft is not installed", "apt install nftables")]
    return []


def _disk(guard: Guard) -> Check:
    try:
        space = os.statvfs(guard.settings.paths.state)
    except OSError as error:
        return check("FAIL", "disk", f"{guard.settings.paths.state}: {error.strerror}")
    free = space.f_bavail / max(1, space.f_blocks)
    text = f"{space.f_bavail * space.f_frsize / 1e6:.0f} MB free ({free:.0%})"
    if space.f_flag & os.ST_RDONLY:
        return check("FAIL", "disk", "read-only: findings cannot be kept", "mount -o remount,rw, or mend the disk")
    return check("OK" if free > DISK_FREE_MIN else "WARN", "disk", text)


def _records(guard: Guard) -> Check:
    status = guard.telling.spool.status
    if guard.telling.failing:
        return check("FAIL", "records", guard.telling.failing, "make room on the disk")
    storage = guard.storage
    if fleeting := storage.fleeting():
        fix = "for records that last: [paths] state in agent.toml on a disk that is written to"
        return check("WARN", "records", f"EdgeGuard's own state is {fleeting}", fix)
    text = f"next {status.next[0]} in the stream of findings, {status.queued} in memory"
    if storage.limit:
        text += f"; segments take {storage.bytes / 1e6:.1f} of {storage.limit / 1e6:.1f} MB"
    if storage.lost:
        told = ", ".join(f"{count} of {STREAMS[stream]}" for stream, count in sorted(storage.lost.items()))
        return check("WARN", "records", f"{text}; let go undelivered: {told}", "make the collector reachable")
    return check("OK", "records", text)


def _wear(guard: Guard) -> Check:
    """Cards die of being written to; whoever finds a worn one asks who it was."""
    said = guard.storage.document()
    text = f"{guard.storage.written / 1e6:.1f} MB written by records since the start"
    if said["device_written"] is None:
        return check("OK", "wear", f"{text}; the kernel counts nothing for what it lies on")
    return check("OK", "wear", f"{text}; {said['device_written'] / 1e6:.0f} MB to {said['device']} since the boot")


def _key(runtime: str) -> Check:
    """The key that signs records must not outlive its hour on any disk."""
    try:
        mount = mounts.covering(mounts.read(), os.path.realpath(runtime))
    except (OSError, DecodeError) as error:
        return check("WARN", "signing key", f"cannot tell whether {runtime} is memory: {error}")
    if mount is None or mount.fstype not in IN_MEMORY:
        kind = mount.fstype if mount else "unknown"
        return check(
            "WARN", "signing key", f"{runtime} is on a disk ({kind}): its bytes may outlive it", "mount a tmpfs"
        )
    if names := swap.places():
        text = f"in memory, but memory may be written to {', '.join(names)}"
        return check("WARN", "signing key", text, "swap to zram, to an encrypted device, or not at all")
    return check("OK", "signing key", "in memory only, replaced within the hour")


def _identity(guard: Guard) -> Check:
    """Where the key is that vouches for the others."""
    where = guard.settings.identity.where()
    if guard.telling.identity:
        return check("FAIL", "identity", f"{where}: {guard.telling.identity}", "sudo edgeguard identity")
    return check("OK", "identity", f"the device's key is {where}")


def _journal(guard: Guard) -> Check:
    if trouble := guard.journal.trouble():
        text = f"findings do not reach the system's journal ({trouble}); the log and `edgeguard findings` have them"
        return check("WARN", "journal", text, "systemctl restart systemd-journald.socket")
    if guard.journal.lost:
        return check("WARN", "journal", f"it had no room for {guard.journal.lost} findings; the log has them")
    return check("OK", "journal", "findings are told there")


def _uplink(guard: Guard) -> Check:
    if not guard.uplinks.configured:
        return check("OFF", "uplink", "no collector is set: records stay on this device")
    said = guard.uplinks.status
    if not said.ok:
        return check("FAIL", "uplink", said.error, "check network and the [uplink] settings")
    url = guard.settings.uplink.url
    way = ", an MQTT broker; only the collector's receipt lets them go" if transport(url) == "mqtt" else ""
    return check("OK", "uplink", f"{guard.uplinks.waiting} segments wait for {url}{way}")


def _clock(guard: Guard) -> Check:
    if guard.health.clock_synchronised():
        return check("OK", "clock", "synchronised")
    return check("WARN", "clock", "not synchronised: times of findings are only as good as this clock")


def _trouble(guard: Guard) -> list[Check]:
    return [check("FAIL", "problem", line) for line in guard.health.problems()]
