#!/usr/bin/python3
"""What a quiet device sends and receives in a day: 24 hourly exchanges with a real collector, over TLS, counted.

Between both stands a relay that counts what goes by, either way: handshakes, certificates, HTTP, segments, receipts.
The headers of TCP and IP come on top (52 bytes a packet; the kernel says how many there were). A quiet hour is a record
of a sweep and what is measured in it; in the whole day somebody changes a handful of things.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit/records"))

from small_world import Device, finding

from edgeguard.model import Severity
from edgeguard.records import compose, uplink
from edgeguard.records.compose import Moment
from edgeguard.settings import Uplink

TOP = Path(__file__).resolve().parents[2]
HOURS = 24
BAR_KB = 150
HEADERS = 52  # bytes: IPv4 20, TCP 20, its timestamps 12
WALL = 1_795_416_177_140
PROGRAM = str(TOP / "packaging/bin/edgeguard-collector")
TCP_SEGMENTS = slice(136, 144)  # tcpi_segs_out, tcpi_segs_in of struct tcp_info (linux/tcp.h)


class Relay:
    """Passes connections on to `port` and counts their bytes and packets, both ways."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.bytes = self.packets = self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()
        self._done = threading.Condition()
        self._open = 0

    def _accept(self) -> None:
        while True:
            here, _ = self._listener.accept()
            there = socket.create_connection(("127.0.0.1", self._target))
            with self._done:
                self._open += 1
                self.connections += 1
            threading.Thread(target=self._serve, args=(here, there), daemon=True).start()

    def _serve(self, here: socket.socket, there: socket.socket) -> None:
        back = threading.Thread(target=self._pass, args=(there, here), daemon=True)
        back.start()
        self._pass(here, there)
        back.join()
        counts = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)[TCP_SEGMENTS]
        here.close()
        there.close()
        with self._done:
            self.packets += sum(int.from_bytes(counts[at : at + 4], sys.byteorder) for at in (0, 4))
            self._open -= 1
            self._done.notify_all()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._done:
                    self.bytes += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side was done first

    def settled(self) -> None:
        with self._done:
            self._done.wait_for(lambda: not self._open, 10)


def a_day(device: Device, relay: Relay) -> None:
    for hour in range(HOURS):
        now = hour * 3_600_000
        records = []
        for quarter in range(4):
            at = Moment(now + quarter * 900_000, WALL + now + quarter * 900_000, 2)
            step = hour * 4 + quarter
            records.append(
                compose.metric(
                    {
                        "cpu_ms": 40_000 + step * 731,
                        "rss_kib": 21_500 + step % 7 * 4,
                        "received_bytes": 9_000_000 + step * 70_123,
                        "sent_bytes": 4_000_000 + step * 55_321,
                        "processes": 121 + step % 5,
                        "listening": 6,
                        "established": step % 3,
                        "memory_free_kib": 612_000 + step * 37 % 9000,
                        "disk_free_kib": 11_000_000 - step * 61,
                        "temperature_mc": 48_312 + step * 97 % 1700,
                        "load_permille": 20 + step * 13 % 90,
                        "observations": 2000 + step * 11,
                        "lost": 0,
                        "open_findings": 2,
                        "spool_bytes": 1800 + step % 4 * 350,
                    },
                    at,
                )
            )
        records.append(
            compose.state("sweep", Moment(now + 5, WALL + now + 5, 2), "21034 files, 1.2 s, nothing differs")
        )
        if hour % 5 == 0:
            change = finding(f"/etc/pump/pump{hour}.conf", Severity.LOW, id=f"F-{hour:04d}")
            records.append(compose.finding(change, Moment(now + 60_000, WALL + now + 60_000, 2)))
        device.record_and_seal(*records)
        code = uplink.Uplink(device.settings).run()
        if code:
            raise SystemExit(f"the uplink ended with {code}: {Path(device.inbox, 'status.json').read_text()}")
        device.seal()  # the receipt lets them go
    relay.settled()


def main() -> int:
    place = tempfile.mkdtemp(prefix="edgeguard-wire-")
    collector = f"{place}/collector"
    device = Device(f"{place}/device")
    known = ["add-device", collector, "--name", "quiet", "--key", device.public.hex()]
    for words in (["init", collector], known):
        subprocess.run([PROGRAM, *words], stdout=subprocess.DEVNULL, check=True)
    serving = subprocess.Popen(
        [PROGRAM, "serve", collector, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert serving.stderr is not None
        relay = Relay(int(serving.stderr.readline().rpartition(":")[2]))
        bundle = f"{collector}/devices/quiet"
        device.settings = device.settings._replace(
            uplink=Uplink(
                url=f"https://127.0.0.1:{relay.port}",
                ca=f"{bundle}/ca.pem",
                certificate=f"{bundle}/client.pem",
                key=f"{bundle}/client.key",
                collector_key=f"{bundle}/collector.pub",
            )
        )
        a_day(device, relay)
    finally:
        serving.terminate()
        serving.communicate(timeout=20)
        shutil.rmtree(place)
    total = (relay.bytes + HEADERS * relay.packets) / 1000
    row = {
        "name": "a quiet day on the wire",
        "value": round(total, 1),
        "unit": "kB",
        "bar": BAR_KB,
        "reference": f"{relay.connections} connections, {relay.bytes:,} bytes in {relay.packets:,} packets",
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
