#!/usr/bin/python3
"""scale_demo.py [--devices 2000] [--events 5000000]: a simulated fleet through NATS JetStream and two workers into
PostgreSQL; one worker and the broker are killed on the way, and the database is compared with the truth.

Everything runs here, in a temporary directory: PostgreSQL with fsync on, nats-server with its defaults, workers as
`edgeguard-collector work`. A device is what an uplink is: it sends its segments in their order, one POST at a time, and
goes on when a receipt of the collector names its newest segment; where none comes it sends the same again. The front's
HTTPS is left out: POSTs go into the queue by the same code.

Phases: one worker; two; two, of which one is killed (SIGKILL) and started again a little later, and then the broker,
too, whose files lose their end as if the power had gone before it synced.

The truth is made of what the devices recorded, before it is encoded: for each device the number of each record and
segment, and a digest of all contents.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import md5, sha256
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests/unit/collector")]

COLLECTOR = b"\x09" * 32
WALL = 1_795_416_177_140
STREAM = 1
MAKERS = 2
IN_FLIGHT = 256  # POSTs that wait for a receipt: what one front lets in
WAIT_S = 20
PAUSE_S = 4.0  # at most, before a device sends again; a real one waits longer
FIRST, KILL_WORKER, WORKER_BACK, KILL_BROKER = 0.2, 0.5, 0.56, 0.65  # shares of all POSTs
BROKER_AWAY_S = 2.0
FORGOTTEN = 0.2  # of each file of the broker, from its end


class Truth(NamedTuple):
    """What the database has to hold of one device."""

    segments: int
    records: int
    last: str  # hash of the last segment
    hashes: str  # digest of all their hashes, in order
    contents: str  # digest of all records, in order


def identity_of(number: int) -> bytes:
    return sha256(b"device %d" % number).digest()


def device_of(number: int) -> bytes:
    from edgeguard.codec import cose

    return cose.device_id(cose.public_of(identity_of(number)))


def chain(number: int, count: int, events: int) -> tuple[list[bytes], Truth]:
    """A device's statement, then its segments of mixed records."""
    from edgeguard.codec import cose
    from edgeguard.collector.events import stored
    from edgeguard.records import epoch, wire
    from edgeguard.records.wire import Header

    identity, seed = identity_of(number), identity_of(-1 - number)
    device = device_of(number)
    said = epoch.Statement(device, 1, cose.public_of(seed), 1, 0, WALL, 2, ())
    made, previous, first = [epoch.issue(said, identity, None)], wire.NO_PREVIOUS, 1
    hashes, contents = [], md5(usedforsecurity=False)
    for sequence in range(1, count + 1):
        mono = sequence * 60_000
        records = [_record(number, sequence, place, mono + place) for place in range(events)]
        header = Header(device, STREAM, sequence, 1, 1, first, 0, previous, mono, WALL + mono, 2, bytes(8), 0)
        made.append(cose.sign1(wire.encode_segment(header, records), seed, cose.SEGMENT_AAD))
        for place, record in enumerate(records):
            line = f"{first + place} {record.type} {record.severity} {record.mono} {record.wall} {stored(record)}\n"
            contents.update(line.encode())
        previous, first = sha256(made[-1]).digest(), first + events
        hashes.append(previous.hex())
    together = md5("".join(hashes).encode(), usedforsecurity=False).hexdigest()
    return made, Truth(count, count * events, previous.hex(), together, contents.hexdigest())


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


def make(folder: str, place: int, options: argparse.Namespace) -> None:
    """A process: every so manyth device's chain into a file each, and what is true of them."""
    truths = {}
    for number in range(place, options.devices, MAKERS):
        parts, truths[number] = chain(number, options.segments, options.size)
        Path(folder, f"{number}.parts").write_bytes(b"".join(parts))
    spent = time.process_time()
    Path(folder, f"truth-{place}.json").write_text(json.dumps({"cpu": spent, "truths": truths}))


def made(folder: Path, options: argparse.Namespace) -> tuple[dict[int, Truth], float]:
    """The fleet, in files; and the CPU seconds that it took."""
    makers = [multiprocessing.get_context("spawn").Process(target=make, args=(str(folder), place, options))
              for place in range(MAKERS)]  # fmt: skip
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    found = [json.loads(Path(folder, f"truth-{place}.json").read_text()) for place in range(MAKERS)]
    truths = {int(number): Truth(*truth) for each in found for number, truth in each["truths"].items()}
    return truths, sum(each["cpu"] for each in found)


# --- what runs -------------------------------------------------------------------------------------------------------


class Workers:
    """Processes of `edgeguard-collector work`, and the CPU seconds of all that ever were."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._alive: list[subprocess.Popen[bytes]] = []
        self._gone = 0.0

    def add(self) -> None:
        with Path(self._directory, "workers.log").open("ab") as log:
            command = [sys.executable, str(TOP / "packaging/bin/edgeguard-collector"), "work", str(self._directory)]
            self._alive.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def end(self, number: int) -> None:
        worker = self._alive.pop(0)
        self._gone += _cpu(worker.pid)
        worker.send_signal(number)
        worker.wait(30)

    def stop(self) -> None:
        while self._alive:
            self.end(signal.SIGTERM)

    def cpu(self) -> float:
        return self._gone + sum(_cpu(worker.pid) for worker in self._alive)


def _cpu(pid: int) -> float:
    import psutil

    return sum(psutil.Process(pid).cpu_times()[:2])


class World:
    """PostgreSQL, a broker and a collector's directory that knows the devices."""

    def __init__(self, folder: Path, devices: int) -> None:
        from nats_server import Broker
        from postgres_server import Server

        from edgeguard.codec import cose
        from edgeguard.collector import postgres
        from edgeguard.collector.ingest import Ingest
        from edgeguard.collector.main import main as collector

        folder.chmod(0o755)  # PostgreSQL runs as another user
        (folder / "postgres").mkdir()
        self.server = Server(folder / "postgres", fsync=True)
        self.broker = Broker(folder / "nats")
        self.directory = folder / "collector"
        self.directory.mkdir()
        settings = f'[store]\nurl = "{self.server.url()}"\n[queue]\nurl = "{self.broker.url}"\nwait_s = {WAIT_S}\n'
        (self.directory / "edgeguard-collector.toml").write_text(settings)
        with contextlib.redirect_stdout(io.StringIO()):
            if collector(["init", str(self.directory)]):
                raise SystemExit("init did not succeed")
        (self.directory / "collector.key").write_bytes(COLLECTOR)
        self.db = postgres.connect(self.server.url())
        ingest = Ingest(self.db, COLLECTOR, lambda: 1)
        with self.db.transaction():
            for number in range(devices):
                ingest.add_device(f"device-{number}", cose.public_of(identity_of(number)))
        self.workers = Workers(self.directory)

    def stop(self) -> None:
        self.workers.stop()
        self.broker.stop()
        self.db.close()
        self.server.stop("immediate")

    def seconds(self) -> dict[str, float]:
        return {"workers": self.workers.cpu(), "PostgreSQL": self.server.cpu(), "nats-server": self.broker.cpu(),
                "the fleet itself": time.process_time()}  # fmt: skip


# --- the fleet -------------------------------------------------------------------------------------------------------


class Fleet:
    """All devices, and what happens on the way. `report` gets a line for each phase."""

    def __init__(self, world: World, folder: Path, options: argparse.Namespace, report: Any) -> None:
        from edgeguard.codec import cose
        from edgeguard.collector.config import Queue
        from edgeguard.collector.jetstream import Front

        self._world, self._folder, self._options, self._report = world, folder, options, report
        self._front = Front(Queue(world.broker.url, wait_s=WAIT_S), lambda _line: None)
        self._key = [cose.public_of(COLLECTOR)]
        self._room = asyncio.Semaphore(options.in_flight)
        self._dice = random.Random(options.seed)  # noqa: S311 - no secret
        self.posts = options.devices * -(-options.segments // options.post)
        self.done = self.again = 0
        self._moved = asyncio.Event()

    async def run(self) -> None:
        self._world.workers.add()
        self._front.start()
        devices = asyncio.gather(*(self._device(number) for number in range(self._options.devices)))
        await self._until(1)  # connected, and the worker has started
        await self._phase("one worker", FIRST)
        self._world.workers.add()
        await self._phase("two workers", KILL_WORKER)
        crashes = asyncio.create_task(self._crashes())
        await self._phase("two workers, one killed and the broker, too", 1.0)
        await devices
        await crashes
        await self._front.stop()

    async def _crashes(self) -> None:
        self._world.workers.end(signal.SIGKILL)
        await self._until(int(self.posts * WORKER_BACK))
        self._world.workers.add()
        await self._until(int(self.posts * KILL_BROKER))
        self._world.broker.end(signal.SIGKILL)
        lost = self._world.broker.forget(FORGOTTEN)
        await asyncio.sleep(BROKER_AWAY_S)
        self._world.broker.start()
        self._report(f"the broker was killed, and {lost} bytes of its files were lost")

    async def _until(self, posts: int) -> None:
        while self.done < posts:
            self._moved.clear()
            await self._moved.wait()

    async def _phase(self, name: str, share: float) -> None:
        began, before, spent = time.monotonic(), self.done, self._world.seconds()
        await self._until(int(self.posts * share))
        wall, posts, after = time.monotonic() - began, self.done - before, self._world.seconds()
        if not posts:
            self._report(f"{name}: over before anybody looked; more events would tell")
            return
        segments = posts * self._options.segments / -(-self._options.segments // self._options.post)
        events = segments * self._options.size
        cpu = ", ".join(f"{what} {(after[what] - spent[what]) / segments * 1000:.2f}" for what in spent)
        used = sum(after.values()) - sum(spent.values())
        self._report(
            f"{name}: {events:,.0f} events in {wall:.1f} s, {events / wall:,.0f} events/s; ms CPU a segment: {cpu};"
            f" {used / wall:.2f} cores busy with it"
        )

    def _parts(self, number: int) -> bytes:
        return Path(self._folder, f"{number}.parts").read_bytes()

    async def _device(self, number: int) -> None:
        from edgeguard.collector.jetstream import Away
        from edgeguard.records import receipts, wire

        device = device_of(number)
        statement, *parts = wire.split(self._parts(number))
        await asyncio.sleep(self._dice.random())
        for at in range(0, len(parts), self._options.post):
            some = parts[at : at + self._options.post]
            body = b"".join([statement, *some] if at == 0 else some)
            wanted = (STREAM, at + len(some), sha256(some[-1]).digest())
            while True:
                try:
                    async with self._room:
                        answer = await self._front.post(device.hex(), body)
                    if answer.status == 200 and wanted in receipts.verified(answer.body, self._key, device).heads:
                        break
                except Away:
                    pass
                self.again += 1
                await asyncio.sleep(self._dice.uniform(0.1, PAUSE_S))
            self.done += 1
            self._moved.set()


# --- the truth -------------------------------------------------------------------------------------------------------

# One device at a time: no statement takes long, however many records there are.
_SEGMENTS = """SELECT count(*), count(DISTINCT seq), max(seq), coalesce(sum(n), 0),
    md5(string_agg(encode(hash, 'hex'), '' ORDER BY seq)) FROM segments WHERE device = ?"""
_RECORDS = """SELECT count(*), count(DISTINCT seq), max(seq), md5(string_agg(concat(
    seq, ' ', type, ' ', severity, ' ', mono, ' ', wall, ' ', body, chr(10)), '' ORDER BY seq))
    FROM records WHERE device = ?"""
_HEADS = "SELECT stream, seq, encode(hash, 'hex') FROM heads WHERE device = ?"
_TOTALS = """SELECT (SELECT count(*) FROM segments), (SELECT count(*) FROM records), sum(segments), sum(records)
    FROM devices"""
_SIZE = """SELECT sum(pg_total_relation_size(quote_ident(tablename)::regclass)) FROM pg_tables
    WHERE schemaname = 'public'"""


def differences(db: Any, truths: dict[int, Truth]) -> Iterator[str]:
    """What in the database is not as it should be."""
    for number, truth in truths.items():
        for query, right in (
            (_SEGMENTS, (*(truth.segments,) * 3, truth.records, truth.hashes)),
            (_RECORDS, (*(truth.records,) * 3, truth.contents)),
            (_HEADS, (STREAM, truth.segments, truth.last)),
        ):
            found = [tuple(row) for row in db.execute(query, (device_of(number),)).fetchall()]
            if found != [right]:
                yield f"device {number}: {found}, expected {right}"
    totals = tuple(db.execute(_TOTALS).fetchone())  # nobody else's
    right = tuple(sum(values) for values in zip(*(truth[:2] for truth in truths.values()), strict=True))
    if totals != right * 2:
        yield f"totals: {totals}, expected {right}"
    for name, count in db.execute("SELECT name, count(*) FROM incidents GROUP BY name").fetchall():
        yield f"incidents: {count} of {name}"


def run(options: argparse.Namespace, folder: Path, report: Any) -> list[str]:
    """The whole of it. Returns what is wrong."""
    parts = folder / "fleet"
    parts.mkdir()
    truths, cpu = made(parts, options)
    segments = options.devices * options.segments
    size = sum(path.stat().st_size for path in parts.glob("*.parts")) / segments
    report(
        f"{options.devices:,} devices, {segments:,} segments of {options.size} events and {size:.0f} bytes,"
        f" {segments * options.size:,} events; {options.post} segments a POST, up to {options.in_flight} POSTs at once"
    )
    report(f"recording, encoding and signing them took {cpu:.0f} s CPU before all of this")
    world = World(folder, options.devices)
    try:
        fleet = Fleet(world, parts, options, report)
        asyncio.run(fleet.run())
        world.workers.stop()
        again = world.db.execute("SELECT sum(duplicates) FROM devices").fetchone()[0]
        size = world.db.execute(_SIZE).fetchone()[0] / (segments * options.size)
        report(f"{size:.0f} bytes a record in PostgreSQL, its segment and all indexes included")
        report(f"{fleet.again} times no receipt came and a device sent again; {again} segments came twice")
        wrong = list(differences(world.db, truths))
    finally:
        world.stop()
        with contextlib.suppress(OSError):
            for line in Path(world.directory, "workers.log").read_text().splitlines()[: options.log]:
                report(f"  worker: {line}")
    for line in wrong[:20]:
        report(f"WRONG: {line}")
    right = f"the database equals the truth: {segments:,} segments, {segments * options.size:,} records"
    report(f"{len(wrong)} differences" if wrong else f"{right}; nothing lost, nothing doubled")
    return wrong


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--devices", type=int, default=2000)
    options.add_argument("--events", type=int, default=5_000_000, help="of all devices together, at least")
    options.add_argument("--size", type=int, default=64, help="events in each segment")
    options.add_argument("--post", type=int, default=4, help="segments in each POST")
    options.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="POSTs that wait for a receipt")
    options.add_argument("--seed", type=int, default=1, help="of the pauses of devices")
    options.add_argument("--log", type=int, default=0, help="so many lines of what workers said")
    arguments = options.parse_args(words)
    arguments.segments = -(-arguments.events // (arguments.devices * arguments.size))
    return arguments


def main() -> int:
    options = parsed()
    import nats_server
    import postgres_server

    why = postgres_server.missing() or nats_server.missing()
    if why:
        print(why)
        return 77
    with tempfile.TemporaryDirectory(prefix="egscale") as folder:
        return 1 if run(options, Path(folder), lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
