#!/usr/bin/python3
"""scale_demo.py [--devices 200] [--segments 10] [--events 64]: a fleet on paper, PostgreSQL, one worker and then two;
prints throughput and checks that nothing is lost or doubled.

The workers are the collector's ingest without HTTPS: what is measured is verifying, decoding, storing and committing,
one segment a POST. With two workers, one is killed half-way, and its devices' segments are sent again, as devices do.
The server is one of our own in a temporary directory, with fsync on: a receipt means what it says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests/unit/collector"), str(TOP / "tests/unit/records")]

COLLECTOR = b"\x09" * 32
WALL = 1_795_416_177_140
KILL_AT = 0.5  # of the first worker's share


def seed_of(number: int) -> bytes:
    return sha256(b"device %d" % number).digest()


def segments(number: int, count: int, events: int) -> list[bytes]:
    """A device's chain: mixed records; with the first segment goes the statement about the key that signed them."""
    from edgeguard.codec import cose
    from edgeguard.records import epoch, wire
    from edgeguard.records.wire import Header

    identity, seed = seed_of(number), seed_of(-1 - number)
    device = cose.device_id(cose.public_of(identity))
    said = epoch.Statement(device, 1, cose.public_of(seed), 1, 0, WALL, 2, ())
    made, previous, first = [], wire.NO_PREVIOUS, 1
    for sequence in range(1, count + 1):
        mono = sequence * 60_000
        records = [_record(number, sequence, place, mono + place) for place in range(events)]
        header = Header(device, 1, sequence, 1, 1, first, 0, previous, mono, WALL + mono, 2, bytes(8), 0)
        part = cose.sign1(wire.encode_segment(header, records), seed, cose.SEGMENT_AAD)
        made.append(part if made else epoch.issue(said, identity, None) + part)
        previous, first = sha256(part).digest(), first + events
    return made


def _record(number: int, sequence: int, place: int, mono: int) -> Any:
    from edgeguard.records.wire import Record

    pid = 300 + (number * 31 + sequence * 7 + place) % 30_000
    kinds = (
        (1, (f"/usr/bin/tool{place % 9}", (f"--job={sequence}",), pid, 1, 0, None, None, None, "app.service")),
        (2, (3, f"/srv/data/{place % 20}", {"sha256": sha256(b"%d" % place).digest(), "size": pid})),
        (4, (5, 6, "10.0.3.7", 32_000 + place, f"10.0.{place % 9}.{sequence % 250}", 443, pid, "/usr/bin/app", 33)),
        (5, (place % 2, "sshd", "anna", None, "10.0.3.8", pid, pid)),
    )
    kind, fields = kinds[place % len(kinds)]
    return Record(kind, 1, mono, WALL + mono, fields=fields)


def work(url: str, share: list[tuple[int, list[bytes]]], together: Any, answers: Any, stop_after: int) -> None:
    """A worker: takes its devices' segments in turn, one a POST, and says what it confirmed."""
    from edgeguard.codec import cose
    from edgeguard.collector import postgres
    from edgeguard.collector.ingest import Ingest

    ingest = Ingest(postgres.connect(url), COLLECTOR, lambda: time.time_ns() // 1_000_000)
    known = {number: ingest.device(cose.device_id(cose.public_of(seed_of(number)))) for number, _ in share}
    together.wait()
    used = time.process_time()
    done = 0
    for turn in range(max((len(parts) for _, parts in share), default=0)):
        for number, parts in share:
            device = known[number]
            if turn < len(parts) and device is not None:
                ingest.take(parts[turn], device)
                done += 1
                if stop_after and done >= stop_after:
                    answers.put((done, time.process_time() - used))
                    answers.close()
                    answers.join_thread()
                    os.kill(os.getpid(), 9)  # as a machine dies: no goodbye to the database
    answers.put((done, time.process_time() - used))


def run(url: str, fleet: list[tuple[int, list[bytes]]], workers: int, *, kill: bool) -> dict[str, Any]:
    """Everything through so many workers; the figures of it."""
    from edgeguard.codec import cose
    from edgeguard.collector import postgres
    from edgeguard.collector.ingest import Ingest

    db = postgres.connect(url)
    ingest = Ingest(db, COLLECTOR, lambda: 1)
    for number, _ in fleet:
        ingest.add_device(f"device-{number}", cose.public_of(seed_of(number)))
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(workers + 1), context.Queue()
    shares = [fleet[place::workers] for place in range(workers)]
    stop = [int(sum(len(parts) for _, parts in shares[0]) * KILL_AT) if kill else 0, *[0] * (workers - 1)]
    processes = [
        context.Process(target=work, args=(url, share, together, answers, at))
        for share, at in zip(shares, stop, strict=True)
    ]
    for process in processes:
        process.start()
    together.wait()
    began = time.monotonic()
    figures = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    wall = time.monotonic() - began
    if kill:
        for number, parts in shares[0]:  # nobody confirmed the rest: the devices send all of it again
            device = ingest.device(cose.device_id(cose.public_of(seed_of(number))))
            assert device
            for part in parts:
                ingest.take(part, device)
    stored, records, distinct = db.execute(
        "SELECT count(*), coalesce(sum(n), 0), count(DISTINCT hash) FROM segments"
    ).fetchone()
    rows = db.execute("SELECT count(*) FROM records").fetchone()[0]
    incidents = db.execute("SELECT count(*) FROM incidents WHERE resolved IS NULL").fetchone()[0]
    db.close()
    done = sum(count for count, _ in figures)
    return {
        "workers": workers,
        "segments": done,
        "wall_s": wall,
        "cpu_s": sum(cpu for _, cpu in figures),
        "stored": stored,
        "distinct": distinct,
        "records": int(records),
        "rows": rows,
        "incidents": incidents,
        "server_cpu_s": 0.0,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--devices", type=int, default=200)
    options.add_argument("--segments", type=int, default=10, help="of each device")
    options.add_argument("--events", type=int, default=64, help="in each segment")
    arguments = options.parse_args()
    from postgres_server import Server, missing

    why = missing()
    if why:
        print(why)
        return 77
    print(f"{arguments.devices} devices, {arguments.segments} segments of {arguments.events} events each")
    fleet = [(number, segments(number, arguments.segments, arguments.events)) for number in range(arguments.devices)]
    expected = arguments.devices * arguments.segments
    size = sum(len(part) for _, parts in fleet for part in parts)
    print(f"{expected} segments, {size / expected:.0f} B each")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="egscale") as folder:
        server = Server(Path(folder), fsync=True)
        try:
            for workers, kill in ((1, False), (2, False), (2, True)):
                name = f"w{workers}{'k' if kill else ''}"
                server.schema(name)
                before = server.cpu()
                found = run(server.url(name), fleet, workers, kill=kill)
                found["server_cpu_s"] = server.cpu() - before
                right = (found["stored"], found["distinct"], found["records"], found["rows"], found["incidents"]) == (
                    expected, expected, expected * arguments.events, expected * arguments.events, 0,
                )  # fmt: skip
                wrong += not right
                rate = found["segments"] / found["wall_s"]
                cpu = found["cpu_s"] / found["segments"] * 1000
                note = ", one killed half-way and its devices sent again" if kill else ""
                print(
                    f"{workers} worker{'s' * (workers > 1)}{note}: {rate:,.0f} segments/s, "
                    f"{rate * arguments.events:,.0f} events/s, {cpu:.2f} ms CPU a segment in the worker, "
                    f"{found['server_cpu_s'] / expected * 1000:.2f} in the server; "
                    f"{'nothing lost, nothing doubled' if right else 'WRONG: ' + json.dumps(found)}"
                )
        finally:
            server.stop("immediate")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
