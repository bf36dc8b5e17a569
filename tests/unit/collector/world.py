"""A collector process of our own, a device that knows it, and what its database holds apart from when it came."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from small_world import Device

from edgeguard.collector.main import main as collector_main
from edgeguard.settings import Uplink

ROOT = Path(__file__).parents[3]
TABLES = {
    "segments": "device, stream, seq, hash, previous, first, n, epoch, boot, mono, wall, clock, bytes",
    "records": "device, stream, seq, type, severity, boot, mono, wall, code, body",
    "heads": "device, stream, seq, hash, last_good, next_record",
    "drops": "device, stream, first, last, reason",
    "boots": "device, boot, offset, clock",
}


class Serving:
    """`edgeguard-collector serve`."""

    def __init__(self, directory: str, port: int = 0, *more: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "packaging/bin/edgeguard-collector"), "serve", directory,
             "--listen", f"127.0.0.1:{port}", *more],
            stderr=subprocess.PIPE, cwd=directory, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        self.port = int(line.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> str:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=20)[1]


def collector(directory: str, device: Device, name: str = "pump-07") -> str:
    assert collector_main(["init", directory]) == 0
    assert collector_main(["add-device", directory, "--name", name, "--key", device.public.hex()]) == 0
    return directory


def join(device: Device, directory: str, port: int, **changes) -> None:
    device.settings = device.settings._replace(uplink=Uplink(**(known(directory, port) | changes)))


def known(directory: str, port: int) -> dict[str, str]:
    bundle = f"{directory}/devices/pump-07"
    return {
        "url": f"https://127.0.0.1:{port}", "ca": f"{bundle}/ca.pem", "certificate": f"{bundle}/client.pem",
        "key": f"{bundle}/client.key", "collector_key": f"{bundle}/collector.pub",
    }  # fmt: skip


def status(device: Device) -> dict:
    raw = Path(device.inbox, "status.json").read_bytes()
    assert len(raw) <= 4096
    return json.loads(raw)


def contents(directory: str) -> dict[str, list]:
    """Everything in the database but row numbers, times of arrival, counters and incidents that were resolved."""
    with sqlite3.connect(f"{directory}/collector.db") as connection:
        found = {
            table: connection.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()
            for table, columns in TABLES.items()
        }
        incidents = "SELECT device, stream, seq, name FROM incidents WHERE resolved IS NULL ORDER BY 1, 2, 3, 4"
        found["incidents"] = connection.execute(incidents).fetchall()
    connection.close()
    return found
