"""A collector for journeys, from this tree, with what a device needs to know of it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.device.machine import Machine

PROGRAM = str(Path(__file__).resolve().parents[2] / "packaging/bin/edgeguard-collector")
PORT = 7443


def uplink(address: str, port: int = PORT) -> str:
    """Settings of a device that sends there."""
    return f'[uplink]\nurl = "https://{address}:{port}"\nflush_s = 5\n'


class Collector:
    """A collector on the host. Devices know it as `address`; it listens on `listen`, there too by default."""

    def __init__(self, folder: Path, address: str, *, listen: str = "", port: int = PORT) -> None:
        self.folder = folder
        self.listen = f"{listen or address}:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.run("init", str(folder), "--host", address)

    def run(self, verb: str, *words: str) -> str:
        done = subprocess.run([PROGRAM, verb, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def introduce(self, device: Machine) -> None:
        """Make device and collector known to each other."""
        key = device.read("/var/lib/edgeguard/keys/device.pub").decode().strip()
        bundle = self.folder.with_name("bundle")
        self.run("add-device", str(self.folder), "--name", "dev", "--key", key, "--out", str(bundle))
        for file in bundle.iterdir():
            mode = 0o640 if file.name == "client.key" else 0o644
            device.write(f"/etc/edgeguard/uplink/{file.name}", file.read_bytes(), mode)
        device.run("chgrp edgeguard-uplink /etc/edgeguard/uplink/client.key; sync").ok()  # a power cut may come soon

    def start(self) -> None:
        """Returns when it listens; one that does already goes on."""
        if self._process and self._process.poll() is None:
            return
        log = (self.folder / "serve.log").open("ab")
        # whatever becomes of the tests, no collector stays
        command = ["/usr/bin/setpriv", "--pdeathsig", "TERM", PROGRAM, "serve", str(self.folder)]
        command += ["--listen", self.listen]
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
            time.sleep(min(0.5, within / 60))


def complete(events: list[dict[str, Any]]) -> None:
    """Each stream's records are in order, none twice, none missing."""
    streams: dict[int, list[int]] = {}
    for event in events:
        streams.setdefault(event["stream"], []).append(event["seq"])
    for stream, numbers in streams.items():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"stream {stream}: {numbers}"
        assert numbers[0] == 1
