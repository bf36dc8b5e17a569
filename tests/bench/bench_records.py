#!/usr/bin/python3
"""Bytes and CPU of one event on its way out: record, journal, segment, signature; against gzipped JSON of the same.

The corpus is mixed as a device's day is (a third programs, a quarter files, then connections, ports, logins, USB and
metrics), made of real paths of this machine with random numbers, so harder than reality where numbers repeat.
A third of the paths is not in the baseline, and two thirds of the new digests are random.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import time
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeguard.codec import cose
from edgeguard.collector import events
from edgeguard.records import registry, wire
from edgeguard.records.wire import Header, Record

EVENTS = 2048
MANIFEST = 3000  # paths that the baseline holds
SEED = b"\x01" * 32
WALL = 1_795_416_177_140
UNITS = ("cron.service", "ssh.service", "session-3.scope", "pump.service")
ARGUMENTS = ("-c", "-v", "--config", "/etc/pump/pump.conf", "status", "restart", "-n", "10", "|", "grep", "load")


def paths() -> list[str]:
    found = []
    for top in ("/usr/bin", "/usr/sbin", "/usr/lib", "/etc"):
        for directory, _, names in os.walk(top):
            found += [os.path.join(directory, name) for name in sorted(names)]
            if len(found) > 4 * MANIFEST:
                break
    dice = random.Random(3)
    dice.shuffle(found)
    return found[: MANIFEST * 3 // 2]


def corpus(known: list[str]) -> list[Record]:
    dice = random.Random(7)
    programs = [path for path in known if "/bin/" in path or "/sbin/" in path][:300] or known[:300]
    mono, records, counters = 5_000, [], [0, 10**6, 10**5]
    kinds = (
        ["exec"] * 35
        + ["file"] * 25
        + ["connection"] * 10
        + ["listener"] * 8
        + ["login"] * 6
        + ["usb"] * 2
        + ["metric"] * 14
    )
    for _ in range(EVENTS):
        mono += dice.randrange(1, 60_000)
        kind = dice.choice(kinds)
        pid, exe, uid = dice.randrange(300, 32768), dice.choice(programs), dice.choice((0, 0, 1000, 33))
        address = f"10.{dice.randrange(4)}.{dice.randrange(256)}.{dice.randrange(256)}"
        if kind == "exec":
            argv = (os.path.basename(exe), *dice.choices(ARGUMENTS, k=dice.randrange(4)))
            fields = (
                exe,
                argv,
                pid,
                dice.randrange(300, 32768),
                uid,
                None,
                None,
                None,
                dice.choice(UNITS),
                None,
                None,
                True,
            )
        elif kind == "file":
            digest = dice.randbytes(32) if dice.random() < 0.65 else sha256(exe.encode()).digest()
            columns = {"sha256": digest, "size": dice.randrange(1 << 17)}
            fields = (3, dice.choice(known), columns, None, (pid, exe, None, uid))
        elif kind == "connection":
            fields = (
                5,
                6,
                "10.0.3.7",
                dice.randrange(32768, 61000),
                address,
                dice.choice((443, 22, 8883)),
                pid,
                exe,
                uid,
            )
        elif kind == "listener":
            fields = (5, 6, "0.0.0.0", dice.randrange(1024, 61000), 0, pid, exe, uid, None, dice.choice(UNITS))
        elif kind == "login":
            fields = (
                dice.randrange(2),
                "sshd",
                dice.choice(("anna", "root", "pi")),
                None,
                address,
                dice.randrange(65536),
                pid,
            )
        elif kind == "usb":
            fields = (
                0,
                dice.randrange(65536),
                dice.randrange(65536),
                dice.randbytes(6).hex(),
                "Vendor",
                "Stick",
                ("080650",),
            )
        else:
            counters = [value + dice.randrange(5000) for value in counters]
            fields = (counters[0], 15_000 + dice.randrange(400), counters[1], counters[2], 110 + dice.randrange(20), 7)
        number = next(item.number for item in registry.TYPES.values() if item.name == kind)
        records.append(Record(number, 1, mono, WALL + mono, 2, dice.randrange(1, 5), False, fields))
    return records


def seal(batch: list[Record], sequence: int, previous: bytes, reference: wire.Reference | None) -> bytes:
    header = Header(bytes(16), 1, sequence, 9_000, 3, sequence * 64, 0, previous, 0, None, 0, bytes(8), 0)
    return cose.sign1(wire.encode_segment(header, batch, reference), SEED, cose.SEGMENT_AAD)


def sealed(records: list[Record], size: int, reference: wire.Reference | None) -> tuple[float, float]:
    """Bytes and CPU microseconds per event."""
    total, previous = 0, bytes(32)
    started = time.process_time_ns()
    for number, place in enumerate(range(0, len(records), size)):
        data = seal(records[place : place + size], number + 1, previous, reference)
        previous = sha256(data).digest()
        total += len(data)
    return total / len(records), (time.process_time_ns() - started) / 1000 / len(records)


def zipped(records: list[Record], size: int) -> tuple[float, float]:
    """The same events as lean JSON lines, gzip -6, in batches of the same size."""
    documents = [{"t": record.wall, **events.body(record)} for record in records]
    total = 0
    started = time.process_time_ns()
    for place in range(0, len(documents), size):
        text = "\n".join(json.dumps(document, separators=(",", ":")) for document in documents[place : place + size])
        total += len(gzip.compress(text.encode(), 6))
    return total / len(records), (time.process_time_ns() - started) / 1000 / len(records)


def show(name: str, value: float, unit: str, **more: float) -> None:
    print(
        json.dumps({"name": name, "value": round(value, 1), "unit": unit, **{k: round(v, 1) for k, v in more.items()}})
    )


def main() -> int:
    every = paths()
    manifest = {path: index for index, path in enumerate(every[: len(every) * 2 // 3])}
    records = corpus(every)
    seal(records[:2], 1, bytes(32), None)  # cryptography is imported outside the measurement
    for size in (16, 64):
        reference, _ = zipped(records, size)
        show(
            f"record bytes, segments of {size}, baseline references",
            sealed(records, size, manifest.get)[0],
            "B/event",
            reference=reference,
        )
        show(
            f"record bytes, segments of {size}, no references",
            sealed(records, size, None)[0],
            "B/event",
            reference=reference,
        )
    json_cpu = min(zipped(records, 64)[1] for _ in range(3))
    show(
        "record CPU: encode, deflate, sign, 64",
        min(sealed(records, 64, manifest.get)[1] for _ in range(3)),
        "us/event",
        reference=json_cpu,
    )
    started = time.process_time_ns()
    for record in records:
        wire.encode_record(record)
    show("record CPU: into the journal", (time.process_time_ns() - started) / 1000 / len(records), "us/event")
    payload = cose.parse1(seal(records[:64], 1, bytes(32), None)).payload
    started = time.process_time_ns()
    for _ in range(20):
        wire.decode_segment(payload)
    show("record CPU: strict decode at the collector", (time.process_time_ns() - started) / 1000 / 1280, "us/event")
    return 0


if __name__ == "__main__":
    sys.exit(main())
