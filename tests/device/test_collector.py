"""From the act on a device to the collector's database, over a cable, with and without the collector."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.collector import Collector, complete, uplink
from tests.device.guard import Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

STORED_S = 3.0  # a critical finding: from the act to the collector's database


@pytest.fixture
def connected(image: Path, packages: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Guard, Collector]]:
    """A device that knows its collector; the collector is not running yet."""
    with Device(image, net="veth") as device:
        device.write("/etc/edgeguard/agent.toml", uplink(device.host_address))
        guard = Guard(device)
        guard.install(packages["edgeguard"])
        guard.learned()
        collector = Collector(tmp_path / "collector", device.host_address)
        collector.introduce(device)
        try:
            yield guard, collector
        finally:
            collector.stop()


def test_a_critical_finding_is_stored_in_time(connected: tuple[Guard, Collector]) -> None:
    guard, collector = connected
    collector.start()
    guard.device.run("systemctl restart edgeguard").ok()
    guard.learned()
    time.sleep(1)
    began = time.monotonic()
    guard.device.run("echo '# x' >>/etc/ld.so.preload; sleep 1").ok()
    collector.finding("EG-PERS-001", "/etc/ld.so.preload", STORED_S - (time.monotonic() - began))
    complete(collector.events())
    # Its receipt is read and believed: what it covers is let go, and nothing is left to complain of.
    guard.device.wait("test -s /var/lib/edgeguard/spool/receipt.egr", timeout=30)
    assert not [finding for finding in guard.findings() if finding["code"] == "EG-HLTH-008"]


def test_the_collector_returns_after_a_restart_of_the_device(connected: tuple[Guard, Collector]) -> None:
    guard, collector = connected
    for number in range(3):
        guard.device.run(f"echo '# {number}' >>/etc/hosts; sleep 0.2").ok()
    guard.wait_open("EG-FILE-002", "/etc/hosts")
    guard.device.stop()
    guard.device.start()
    guard.learned()
    guard.device.run("printf '[Service]\\nExecStart=/bin/true\\n' >/etc/systemd/system/late.service; sleep 0.5").ok()
    guard.wait_open("EG-PERS-002", "/etc/systemd/system/late.service")
    collector.start()
    guard.device.run("touch /run/edgeguard/doorbell").ok()
    collector.finding("EG-FILE-002", "/etc/hosts", 30)
    collector.finding("EG-PERS-002", "/etc/systemd/system/late.service", 30)
    complete(collector.events())
    (document,) = json.loads(collector.run("devices", str(collector.folder), "-o", "json"))["devices"]
    assert not document["incidents"]


def test_a_flipped_bit_in_a_segment_is_named(connected: tuple[Guard, Collector]) -> None:
    guard, collector = connected
    guard.device.run("echo '# x' >>/etc/ld.so.preload; sleep 1").ok()
    guard.wait_open("EG-PERS-001", "/etc/ld.so.preload")
    guard.device.wait("ls /var/spool/edgeguard/outbox/*.egs", timeout=30)
    newest = guard.device.run("ls /var/spool/edgeguard/outbox/0-*.egs | tail -n 1").out.strip()
    data = bytearray(guard.device.read(newest))
    data[len(data) // 2] ^= 1
    guard.device.inside(newest).write_bytes(data)
    collector.start()
    guard.device.run("touch /run/edgeguard/doorbell").ok()
    finding = guard.wait_match("EG-HLTH-006", ".*", within=60)
    assert re.search(os.path.basename(newest), json.dumps(finding))
