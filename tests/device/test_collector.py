"""From the act on a device to the collector's database, over a cable, with and without the collector."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device.guard import Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

TOP = Path(__file__).resolve().parents[2]
PROGRAM = str(TOP / "packaging/bin/edgeguard-collector")
STORED_S = 3.0  # a critical finding: from the act to the collector's database
PORT = 7443


class Collector:
    """A collector on the host, reached by the device over its cable."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None
        self.run("init", str(folder), "--host", address)

    def run(self, verb: str, *words: str) -> str:
        done = subprocess.run([PROGRAM, verb, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        log = (self.folder / "serve.log").open("ab")
        command = [PROGRAM, "serve", str(self.folder), "--listen", f"{self.address}:{PORT}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while "listening" not in (self.folder / "serve.log").read_text():
            assert time.monotonic() < deadline, (self.folder / "serve.log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(15)
            self._process = None

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("events", str(self.folder), "-o", "jsonl").splitlines()]

    def finding(self, code: str, subject: str, within: float) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while True:
            events = self.events()
            for event in events:
                if event.get("code") == code and event.get("subject") == subject:
                    return event
            if time.monotonic() > deadline:
                kinds = [(event.get("type"), event.get("code"), event.get("subject")) for event in events[-30:]]
                raise AssertionError(f"no {code} for {subject} within {within} s; last: {kinds}")
            time.sleep(0.05)


@pytest.fixture
def connected(image: Path, packages: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Guard, Collector]]:
    """A device that knows its collector; the collector is not running yet."""
    with Device(image, net="veth") as device:
        settings = f'[uplink]\nurl = "https://{device.host_address}:{PORT}"\nflush_s = 5\n'
        device.write("/etc/edgeguard/agent.toml", settings)
        guard = Guard(device)
        guard.install(packages["edgeguard"])
        guard.learned()
        collector = Collector(tmp_path / "collector", device.host_address)
        key = device.read("/var/lib/edgeguard/keys/device.pub").decode().strip()
        bundle = tmp_path / "bundle"
        collector.run("add-device", str(collector.folder), "--name", "dev", "--key", key, "--out", str(bundle))
        for file in bundle.iterdir():
            device.write(f"/etc/edgeguard/uplink/{file.name}", file.read_bytes(), 0o640)
        device.run("chgrp edgeguard-uplink /etc/edgeguard/uplink/*").ok()
        try:
            yield guard, collector
        finally:
            collector.stop()


def complete(events: list[dict[str, Any]]) -> None:
    """Each stream's records are in order, none twice, none missing."""
    streams: dict[int, list[int]] = {}
    for event in events:
        streams.setdefault(event["stream"], []).append(event["seq"])
    for stream, numbers in streams.items():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"stream {stream}: {numbers}"
        assert numbers[0] == 1


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
