"""The journey on an emulated device: what only a machine with its own kernel, bus, clock, cable and power can show.

The tests share one device and stand in the order of a life: installed, learned, attacked, cut off, switched off,
upgraded, purged. Each can be run alone (`-k`), since each brings about what it looks at. A translated device is up to
fifty times slower than the host: the guard's bars are multiplied, and no time is measured here.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.device.collector import Collector, complete
from tests.device.emulated import OUTSIDE, Emulated
from tests.device.guard import Guard
from tests.device.machine import command
from tests.device.test_notice import ACTS, Act

pytestmark = pytest.mark.emulated

# What a test leaves behind, and the next one need not care: what the guard said about itself lasts an hour, and the
# modules that a stick made the kernel load stay.
LASTING = r"EG-HLTH-\d+|EG-HOST-002"
OURS = LASTING + r"|EG-PKG-00[23]"  # no archive signed our package, and one test goes back to an older version
TOLD = ("byte", "preload", "deleted", "memfd", "tcp4", "sysctl")  # of the acts that every device is tried with
LINGER = re.compile(r"(sleep[ (])1\b")  # an acting program stays for a second; for a slow guard, ten
STICK = {"vendor": "46f4", "product": "0001", "serial": "EG0001"}  # QEMU's storage
STICK_SUBJECT = "46f4:0001/EG0001"
ENFORCE = '[[rule]]\nid = "usb.unknown"\noverride = true\nmode = "enforce"\n'
AHEAD_S = 400 * 86400
# What systemd-timesyncd does when it has heard the time; it is not installed on test devices.
SYNCHRONISED = "mkdir -p /run/systemd/timesync; touch /run/systemd/timesync/synchronized"
LEFT = "find / /run -xdev -name '*edgeguard*' ! -path '/root/*' ! -path '/var/log/*'"  # the journal is not ours


@dataclass
class World:
    """The device with its guard, and the collector beyond its cable."""

    guard: Guard
    device: Emulated
    collector: Collector


@pytest.fixture(scope="module")
def world(
    emulate: Callable[..., Emulated], packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Installed, learned, and known to a collector that is not running yet."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    collector = Collector(tmp_path_factory.mktemp("world") / "collector", OUTSIDE, listen="127.0.0.1", port=port)
    with emulate(package=packages["edgeguard"], outside=port) as device:
        guard = Guard(device, ready=True)
        collector.introduce(device)
        try:
            yield World(guard, device, collector)
        finally:
            collector.stop()


def pid(guard: Guard) -> int:
    return int(guard.device.run("systemctl show -P MainPID edgeguard").ok().out)


def doctor(guard: Guard) -> dict[str, dict[str, Any]]:
    """What `edgeguard doctor` says, by name."""
    return {check["name"]: check for check in json.loads(guard.ask("doctor -o json").out)["checks"]}


def test_installed_and_learned(world: World, arch: str) -> None:
    machine = {"arm64": "aarch64", "armhf": "armv7l", "amd64": "x86_64"}[arch]
    assert world.device.run("uname -m").out.strip() == machine
    document = world.guard.status()
    assert document["verdict"] == "OK", world.guard.findings()
    assert document["policy"]["trust"] == "local"
    failed = world.device.run("systemctl --failed --no-legend --plain | cut -d' ' -f1").out.split()
    assert set(failed) <= {"edgeguard-uplink.service"}, "which had no keys until a moment ago"


def test_every_sensor_stands_on_its_best_rung(world: World) -> None:
    """Debian's kernel has them all; a container shows none of them."""
    best = {"files": "fanotify", "processes": "proc connector", "usb": "udev", "host": "fanotify"}
    said = doctor(world.guard)
    assert {name: said[f"sensor {name}"]["text"].partition(";")[0].partition(" (")[0] for name in best} == best


@pytest.mark.parametrize("act", [act for act in ACTS if act.name in TOLD], ids=lambda act: act.name)
def test_noticed_and_resolved(world: World, act: Act) -> None:
    try:
        world.device.run(LINGER.sub(r"\g<1>10", act.do), timeout=60 * world.device.slow).ok()
        finding = world.guard.wait_match(act.code, act.subject)
    finally:
        world.device.run(act.undo)
    assert finding["origin"] in ("live", "sweep")
    actor = finding["actor"] or {"exe": ""}
    assert re.fullmatch(act.actor, actor["exe"]), finding["actor"]
    world.guard.wait_resolved(finding["id"])


def test_a_stick_is_plugged_and_pulled(world: World) -> None:
    world.device.usb_add("storage", "stick", serial=STICK["serial"])
    try:
        finding = world.guard.wait_open("EG-USB-001", STICK_SUBJECT)
        assert {name: finding["details"][name] for name in STICK} == STICK
        # a rule in mode audit only says it
        world.device.wait("ls /dev/sda", timeout=10 * world.device.slow)
    finally:
        world.device.usb_remove("stick")
    world.guard.wait_resolved(finding["id"])


def test_a_stick_is_refused_and_let_in_again(world: World) -> None:
    guard, device = world.guard, world.device
    device.write("/etc/edgeguard/policy.d/50-site.toml", ENFORCE)
    guard.reload()
    try:
        device.usb_add("storage", "stick", serial=STICK["serial"])
        finding = guard.wait_open("EG-USB-001", STICK_SUBJECT)
        assert "done" in guard.wait_remedied(finding["id"])["remediation"]
        places = "grep -lx EG0001 /sys/bus/usb/devices/*/serial | xargs dirname"
        assert device.run(f"cat $({places})/authorized").out == "0\n"
        assert device.run("ls /dev/sda").code != 0
        guard.ask(f"undo {finding['id']} --reason test").ok()
        assert device.run(f"cat $({places})/authorized").out == "1\n"
        device.wait("ls /dev/sda", timeout=10 * device.slow)
        device.usb_remove("stick")
        guard.wait_resolved(finding["id"])
    finally:
        device.run("rm /etc/edgeguard/policy.d/50-site.toml")
        guard.reload()


def test_a_reboot_learns_nothing(world: World) -> None:
    guard, device = world.guard, world.device
    guard.settled(LASTING)
    before = guard.status()
    device.run("chmod 777 /etc/hosts").ok()
    finding = guard.wait_open("EG-FILE-003", "/etc/hosts")
    device.reboot()
    after = guard.learned()
    assert after["policy"]["revision"] == before["policy"]["revision"]
    again = guard.wait_open("EG-FILE-003", "/etc/hosts")
    assert (again["id"], again["first_seen"]) == (finding["id"], finding["first_seen"])
    device.run("chmod 644 /etc/hosts").ok()
    guard.wait_resolved(finding["id"])
    guard.settled(LASTING)  # the new boot itself is nothing to be told about


def test_cable_out_and_back(world: World) -> None:
    """Every record arrives, in order, none twice."""
    guard, device, collector = world.guard, world.device, world.collector
    collector.start()
    patience = 60 * device.slow
    touch(device, "/usr/local/bin/before")
    guard.wait_open("EG-FILE-001", "/usr/local/bin/before")
    device.run("touch /run/edgeguard/doorbell").ok()
    collector.finding("EG-FILE-001", "/usr/local/bin/before", patience)
    device.cable(up=False)
    try:
        device.wait("! ip -br link show up | grep -v ^lo | grep -q LOWER_UP", timeout=10 * device.slow)
        for number in range(3):
            touch(device, f"/usr/local/bin/meanwhile{number}")
        guard.wait_open("EG-FILE-001", "/usr/local/bin/meanwhile2")
        device.run("touch /run/edgeguard/doorbell").ok()
        time.sleep(5)  # long enough for a sender that does not need the cable
        assert not any("meanwhile" in str(event.get("subject")) for event in collector.events())
    finally:
        device.cable(up=True)
    device.wait("ip -4 -br addr show up | grep -q '10\\.0\\.2\\.'", timeout=60 * device.slow)
    device.run("touch /run/edgeguard/doorbell").ok()
    for number in range(3):
        collector.finding("EG-FILE-001", f"/usr/local/bin/meanwhile{number}", patience)
    complete(collector.events())
    device.run("rm /usr/local/bin/before /usr/local/bin/meanwhile*").ok()
    guard.settled(LASTING)


def touch(device: Emulated, path: str) -> None:
    device.run(f"printf '#!/bin/sh\\n' >{path}; chmod 755 {path}; sleep 0.5").ok()


def test_the_clock_leaps_ahead_and_back(world: World) -> None:
    guard, device = world.guard, world.device
    before = guard.status()
    device.run(f"{SYNCHRONISED}; systemctl restart edgeguard", timeout=60 * device.slow).ok()
    guard.learned()
    assert doctor(guard)["clock"]["level"] == "OK"
    standing = pid(guard)
    device.clock_jump(AHEAD_S)
    assert "s forward" in guard.wait_open("EG-HLTH-003", "clock")["details"]["detail"]
    touch(device, "/usr/local/bin/then")
    finding = guard.wait_open("EG-FILE-001", "/usr/local/bin/then")
    device.clock_jump(-AHEAD_S)
    device.wait("edgeguard findings -o jsonl | grep EG-HLTH-003 | grep -q 's back'", timeout=10 * device.slow)
    device.run("rm /usr/local/bin/then").ok()
    guard.wait_resolved(finding["id"])
    assert pid(guard) == standing, "the daemon lives on"
    assert guard.status()["policy"]["revision"] == before["policy"]["revision"]


def test_a_full_disk(world: World) -> None:
    guard, device = world.guard, world.device
    guard.settled(LASTING)
    standing = pid(guard)
    touch(device, "/usr/local/bin/full")  # there already, and changed without a byte more
    first = guard.wait_open("EG-FILE-001", "/usr/local/bin/full")
    device.fill_disk()
    try:
        device.run("chmod 4777 /usr/local/bin/full; sleep 0.5").ok()
        second = guard.wait_match("EG-FILE-005", "/usr/local/bin/full")
        trouble = guard.wait_match("EG-HLTH-004", ".*")
        assert guard.status()["areas"]["log"]["error"]
    finally:
        device.free_disk()
    guard.wait_resolved(trouble["id"], within=60)
    device.run("rm /usr/local/bin/full").ok()
    for finding in (first, second):
        guard.wait_resolved(finding["id"])
    assert pid(guard) == standing, "the daemon lives on"
    assert doctor(guard)["records"]["level"] == "OK"


def test_a_power_cut_and_a_clock_without_battery(world: World) -> None:
    """What was told and said to be stored is there; 2001 neither stops the daemon nor moves the baseline."""
    guard, device, collector = world.guard, world.device, world.collector
    guard.settled(LASTING)
    before = guard.status()
    device.cable(up=False)
    touch(device, "/usr/local/bin/cut")
    finding = guard.wait_open("EG-FILE-001", "/usr/local/bin/cut")
    device.wait("edgeguard doctor | grep -q ' 0 in memory'", timeout=10 * device.slow)
    sequence = guard.status()["areas"]["log"]["sequence"]
    device.power_cut()
    device.rtc = "2001-01-01T00:00:00"
    device.start()
    assert "recovery" in device.run("dmesg").out, "the file system was cut off, too"
    after = guard.learned()
    assert after["policy"]["revision"] == before["policy"]["revision"]
    assert after["areas"]["log"]["sequence"] >= sequence
    assert guard.wait_open("EG-FILE-001", "/usr/local/bin/cut")["id"] == finding["id"]
    touch(device, "/usr/local/bin/then")
    then = guard.wait_open("EG-FILE-001", "/usr/local/bin/then")
    device.set_clock(time.time())
    device.run("rm /usr/local/bin/cut /usr/local/bin/then").ok()
    for one in (finding, then):
        guard.wait_resolved(one["id"])
    collector.start()
    device.run("touch /run/edgeguard/doorbell").ok()
    told = collector.finding("EG-FILE-001", "/usr/local/bin/cut", 60 * device.slow)
    assert told["origin"] == "live", "the record of before the cut, not what was found again after it"
    collector.finding("EG-FILE-001", "/usr/local/bin/then", 60 * device.slow)
    complete(collector.events())


def test_upgrade_and_back(world: World, packages: dict[str, Path], tmp_path: Path) -> None:
    guard, device = world.guard, world.device
    guard.settled(LASTING)
    before, standing = guard.status(), pid(guard)
    newer = repacked(packages["edgeguard"], "9.9.9", tmp_path)
    for package, version in ((newer, "9.9.9"), (packages["edgeguard"], packages["edgeguard"].name.split("_")[1])):
        device.write(f"/root/{package.name}", package.read_bytes())
        device.run(f"DEBIAN_FRONTEND=noninteractive dpkg -i /root/{package.name}", timeout=60 * device.slow).ok()
        assert device.run("dpkg-query -W -f '${Version}' edgeguard").out == version
        after = guard.learned()
        assert pid(guard) != standing, "the new code runs"
        standing = pid(guard)
        assert after["policy"]["revision"] == before["policy"]["revision"], "a package does not move the baseline"
        guard.settled(OURS)


def repacked(package: Path, version: str, folder: Path) -> Path:
    """The same package under another version, with one file changed, as a newer one has."""
    tree = folder / "tree"
    command("dpkg-deb", "-R", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", control.read_text()))
    changed = tree / "usr/lib/python3/dist-packages/edgeguard/codes.toml"
    with changed.open("a") as file:
        file.write(f"# {version}\n")
    sums = [f"{command('md5sum', path).split()[0]}  {path.relative_to(tree)}\n" for path in payload(tree)]
    (tree / "DEBIAN/md5sums").write_text("".join(sums))
    target = folder / f"edgeguard_{version}_all.deb"
    command("dpkg-deb", "--root-owner-group", "-b", tree, target)
    shutil.rmtree(tree)
    return target


def payload(tree: Path) -> list[Path]:
    return sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink() and tree / "DEBIAN" not in p.parents)


def test_purge_leaves_nothing(world: World) -> None:
    device = world.device
    device.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge edgeguard", timeout=60 * device.slow).ok()
    assert device.run(LEFT).out == ""
    assert device.run("systemctl --failed --no-legend").out == ""
    assert device.run("pgrep -u edgeguard -a").out == ""
    assert "edgeguard" not in device.run("nft list tables").out
