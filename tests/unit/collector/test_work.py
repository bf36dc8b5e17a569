"""Workers behind the queue: killed, cut off and fed with what is no segment, and a front that passes on their word."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import nats_server
import postgres_server
import pytest
from nats_server import Broker
from small_world import finding, moment, statement
from test_ingest import segment
from world import ROOT, Serving, join, status

from edgeguard.codec import cose
from edgeguard.collector import authority, jetstream
from edgeguard.collector.config import Config, Queue
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.jetstream import Away, Front
from edgeguard.collector.main import main
from edgeguard.collector.work import Post, Worker
from edgeguard.records import compose, receipts, uplink, wire

WHY = postgres_server.missing() or nats_server.missing()
pytestmark = [pytest.mark.scale, pytest.mark.skipif(bool(WHY), reason=WHY or "is there")]
WAIT_S = 8


def connect(url):
    from edgeguard.collector import postgres  # its library may be missing where these tests are only read

    return postgres.connect(url)


class World:
    """A broker, a database and a collector's directory; workers and fronts on demand."""

    def __init__(self, server, folder, *, wait_s=WAIT_S):
        server.schema("work")
        self.server = server
        self.broker = Broker(folder / "nats")
        self.url = server.url("work")
        self.directory = folder / "c"
        self.directory.mkdir()
        self.configuration = self.directory / "edgeguard-collector.toml"
        queue = f'[queue]\nurl = "{self.broker.url}"\nwait_s = {wait_s}\nmax_mib = 1\n'
        self.configuration.write_text(f'[store]\nurl = "{self.url}"\n{queue}')
        self.queue = Queue(self.broker.url, wait_s=wait_s, max_mib=1)
        assert main(["init", str(self.directory)]) == 0
        self.public = cose.public_of((self.directory / "collector.key").read_bytes())
        self.db = connect(self.url)
        self.workers = []

    def device(self, number):
        return Ingest(self.db, bytes(32), lambda: 1).add_device(f"d{number}", cose.public_of(identity(number)))

    def work(self, command=()):
        usual = [sys.executable, str(ROOT / "packaging/bin/edgeguard-collector"), "work", str(self.directory)]
        made = subprocess.Popen(command or usual, stderr=subprocess.PIPE, text=True)
        while not (line := made.stderr.readline()).startswith("working for"):
            assert line, made.wait(5)
        self.workers.append(made)
        return made

    def end(self, worker, number=signal.SIGTERM):
        self.workers.remove(worker)
        worker.send_signal(number)
        return worker.communicate(timeout=30)[1]

    def stop(self):
        for worker in list(self.workers):
            self.end(worker, signal.SIGKILL)
        self.broker.stop()
        self.db.close()

    def segments(self):
        return [
            tuple(row) for row in self.db.execute("SELECT device, seq, hash FROM segments ORDER BY 1, 2").fetchall()
        ]

    def waiting(self):
        """Messages in the stream."""

        async def ask():
            nats = jetstream.client()
            connection = await nats.connect(self.broker.url)
            try:
                return (await connection.jetstream().stream_info(jetstream.STREAM)).state.messages
            finally:
                await connection.close()

        return asyncio.run(ask())


@pytest.fixture
def world(server, tmp_path):
    made = World(server, tmp_path)
    yield made
    made.stop()


def identity(number):
    return bytes([number + 1]) * 32


def chain(number, length):
    device, made, previous = cose.device_id(cose.public_of(identity(number))), [], wire.NO_PREVIOUS
    for sequence in range(1, length + 1):
        made.append(segment(sequence, previous, device=device, stream=1))
        previous = sha256(made[-1]).digest()
    return [statement(identity(number)) + made[0], *made[1:]]


def with_front(world, run):
    """`run(front)` once it is connected."""

    async def whole():
        front = Front(world.queue, lambda _line: None)
        front.start()
        until = time.monotonic() + 20
        while front._connection is None:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        try:
            return await run(front)
        finally:
            await front.stop()

    return asyncio.run(whole())


def heads(world, answer, device):
    assert answer.status == 200, answer
    return receipts.verified(answer.body, [world.public], device.id).heads


async def sent(world, front, device, parts, pause_s=0.3):
    """As a device: each until its receipt comes. Returns how often none came."""
    again = 0
    for sequence, part in enumerate(parts, 1):
        while True:
            with contextlib.suppress(Away):
                answer = await front.post(device.id.hex(), part)
                if answer.status == 200 and heads(world, answer, device)[0].sequence >= sequence:
                    break
            again += 1
            await asyncio.sleep(pause_s)
    return again


def test_a_receipt_comes_from_a_worker_and_nothing_stays_in_the_queue(world):
    device = world.device(0)
    worker = world.work()

    async def run(front):
        answers = [await front.post(device.id.hex(), part) for part in chain(0, 3)]
        return [heads(world, answer, device)[0].sequence for answer in answers]

    assert with_front(world, run) == [1, 2, 3]
    world.end(worker)
    assert world.waiting() == 0
    assert len(world.segments()) == 3


def test_the_unit_starts_one_and_ends_it(world):
    """Its command, with this Python and this tree, told to end as systemd does."""
    unit = (ROOT / "systemd/edgeguard-collector-work@.service").read_text().splitlines()
    (command,) = (line.removeprefix("ExecStart=") for line in unit if line.startswith("ExecStart="))
    for there, here in {
        "${PYTHON}": sys.executable,
        "/usr/bin/edgeguard-collector": str(ROOT / "packaging/bin/edgeguard-collector"),
        "/var/lib/edgeguard-collector": str(world.directory),
    }.items():
        assert f" {there}" in command
        command = command.replace(there, here)
    before = sorted(world.directory.iterdir())
    worker = world.work(command.split())
    device, (part,) = world.device(1), chain(1, 1)
    assert with_front(world, lambda front: front.post(device.id.hex(), part)).status == 200
    said = world.end(worker)
    assert (worker.returncode, said) == (0, "")
    assert sorted(world.directory.iterdir()) == before


def test_without_a_worker_there_is_no_receipt_though_the_broker_has_it(world):
    device = world.device(0)
    world.queue = world.queue._replace(wait_s=1)

    async def run(front):
        with pytest.raises(Away, match="no worker answered"):
            await front.post(device.id.hex(), chain(0, 1)[0])

    with_front(world, run)
    assert world.waiting() == 1
    world.work()
    until = time.monotonic() + 20
    while not world.segments():  # it is stored all the same: sent again it is a duplicate
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_is_no_segment_is_answered_and_never_comes_again(world):
    device = world.device(0)
    worker = world.work()
    good, broken = chain(0, 2)

    async def run(front):
        junk = await front.post(device.id.hex(), b"junk")
        stranger = await front.post("ff" * 16, good)
        altered = await front.post(device.id.hex(), good[:-1] + bytes([good[-1] ^ 1]))
        return junk, stranger, altered, await front.post(device.id.hex(), good)

    junk, stranger, altered, stored = with_front(world, run)
    assert (junk.status, stranger.status) == (400, 403)
    refused = receipts.verified(altered.body, [world.public], device.id).refused
    assert [refusal.reason for refusal in refused] == ["altered"]
    assert heads(world, stored, device)[0].sequence == 1
    said = world.end(worker)
    assert "unknown device " + "ff" * 16 in said
    assert world.waiting() == 0
    assert broken not in world.segments()


def test_a_worker_that_is_killed_at_any_moment_loses_and_doubles_nothing(world):
    """Some of these kills fall into a commit, some between it and the receipt, some between that and the ack."""
    devices = [world.device(number) for number in range(8)]
    parts = [chain(number, 25) for number in range(8)]

    async def killing(done):
        kills = 0
        while not done.is_set():
            worker = await asyncio.to_thread(world.work)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(done.wait(), 0.02 + 0.05 * (kills % 7))
            await asyncio.to_thread(world.end, worker, signal.SIGKILL)
            kills += 1
        return kills

    async def run(front):
        done = asyncio.Event()
        killer = asyncio.create_task(killing(done))
        await asyncio.gather(*(sent(world, front, *each) for each in zip(devices, parts, strict=True)))
        done.set()
        return await killer

    world.queue = world.queue._replace(wait_s=1)
    assert with_front(world, run) >= 3
    right = [(device.id, seq, sha256(part if seq > 1 else part[len(statement(identity(number))) :]).digest())
             for number, device in enumerate(devices) for seq, part in enumerate(parts[number], 1)]  # fmt: skip
    assert world.segments() == sorted(right)
    assert world.db.execute("SELECT count(*), count(DISTINCT (device, stream, seq)) FROM records").fetchone() == (
        400,
        400,
    )
    assert world.db.execute("SELECT count(*) FROM incidents").fetchone() == (0,)


def test_a_worker_that_dies_within_its_transaction_is_replaced_while_the_device_waits(world):
    device = world.device(0)
    first, second = chain(0, 2)
    dying = world.work()

    async def run(front):
        await sent(world, front, device, [first])
        blocker = connect(world.url)
        with blocker.transaction(device.id.hex()):
            waiting = asyncio.create_task(front.post(device.id.hex(), second))
            await asyncio.sleep(1)
            await asyncio.to_thread(world.end, dying, signal.SIGKILL)
        blocker.close()
        assert len(world.segments()) == 1
        await asyncio.to_thread(world.work)
        return heads(world, await waiting, device)[0].sequence  # given to the other one after ACK_WAIT_S

    world.queue = world.queue._replace(wait_s=30)
    assert with_front(world, run) == 2
    assert len(world.segments()) == 2


@pytest.mark.parametrize("forgotten", [0.0, 0.5, 1.0])
def test_a_broker_that_loses_what_it_acknowledged_loses_nothing(world, forgotten):
    """JetStream syncs every two minutes by default: what a power cut takes, no receipt had been given for."""
    device, other = world.device(0), world.device(1)
    world.queue = world.queue._replace(wait_s=1)
    parts, others = chain(0, 6), chain(1, 6)

    async def run(front):
        for part in parts[:3]:  # the broker has them, nobody works
            with pytest.raises(Away):
                await front.post(device.id.hex(), part)
        world.broker.end(signal.SIGKILL)
        lost = world.broker.forget(forgotten)
        with pytest.raises(Away):
            await front.post(device.id.hex(), parts[0])
        world.broker.start()
        await asyncio.to_thread(world.work)
        await asyncio.gather(sent(world, front, device, parts), sent(world, front, other, others))
        return lost

    lost = with_front(world, run)
    assert bool(lost) == bool(forgotten)
    assert [row[1] for row in world.segments()] == [*range(1, 7), *range(1, 7)]
    assert world.db.execute("SELECT count(*) FROM records").fetchone() == (24,)
    assert world.db.execute("SELECT count(*) FROM incidents WHERE resolved IS NULL").fetchone() == (0,)


def test_a_broker_whose_disk_is_new_gets_its_stream_again(world):
    device = world.device(0)
    world.work()

    async def run(front):
        await sent(world, front, device, chain(0, 1))
        world.broker.end(signal.SIGKILL)
        await asyncio.to_thread(subprocess.run, ["rm", "-r", str(world.broker.store)], check=True)
        world.broker.start()
        return await sent(world, front, device, chain(0, 3))

    world.queue = world.queue._replace(wait_s=2)
    with_front(world, run)
    assert len(world.segments()) == 3


def test_a_full_stream_refuses_and_the_disk_stays_free(world):
    device = world.device(0)
    world.queue = world.queue._replace(wait_s=1)

    async def run(front):
        posts = [front.post(device.id.hex(), bytes(200_000)) for _ in range(10)]
        return [str(error) for error in await asyncio.gather(*posts, return_exceptions=True)]

    said = with_front(world, run)
    assert sum("maximum bytes exceeded" in line for line in said) >= 4, said
    assert sum("no worker answered" in line for line in said) <= 6, said


def test_a_database_that_is_slow_or_away_gives_no_receipt_until_it_has_committed(world):
    device = world.device(0)
    world.work()
    first, second, third = chain(0, 3)

    async def run(front):
        await sent(world, front, device, [first])
        blocker = connect(world.url)
        with blocker.transaction(device.id.hex()):  # as a slow commit of another worker
            slow = asyncio.create_task(front.post(device.id.hex(), second))
            await asyncio.sleep(1.5)
            assert not slow.done()
        assert heads(world, await slow, device)[0].sequence == 2
        blocker.close()
        world.server.stop("immediate")
        away = asyncio.create_task(front.post(device.id.hex(), third))
        await asyncio.sleep(1.5)
        assert not away.done()
        world.server.start()
        return heads(world, await away, device)[0].sequence  # the message came again by itself

    world.queue = world.queue._replace(wait_s=20)
    assert with_front(world, run) == 3


# As docs/scale.md has it.
BROKER = """
tls {{ cert_file: "{0}/server.pem", key_file: "{0}/server.key", ca_file: "{0}/ca.pem", verify: true }}
authorization {{ users: [
  {{ user: front, password: "front word", permissions: {{
      publish: ["eg.up.*", "$JS.API.>"], subscribe: ["eg.re.>", "_INBOX.>"] }} }}
  {{ user: worker, password: "worker word", permissions: {{
      publish: ["eg.re.>", "$JS.API.>", "$JS.ACK.EDGEGUARD.>"], subscribe: ["_INBOX.>"] }} }}
] }}
"""


def test_over_tls_with_names_passwords_and_permissions(world, tmp_path):
    device = world.device(0)
    bundle = tmp_path / "bundle"
    authority.bundle(str(world.directory), str(bundle), bytes(16))
    broker = Broker(tmp_path / "tls", BROKER.format(world.directory))
    url = broker.url.replace("nats:", "tls:")
    secured = {"ca": f"{bundle}/ca.pem", "certificate": f"{bundle}/client.pem", "key": f"{bundle}/client.key"}
    password = world.directory / "queue.password"
    password.write_text("worker word\n")
    password.chmod(0o600)
    files = "".join(f'{name}_file = "{path}"\n' for name, path in secured.items())
    text = world.configuration.read_text().replace(world.broker.url, url)
    world.configuration.write_text(f'{text}user = "worker"\npassword_file = "queue.password"\n{files}')
    world.queue = Queue(url, "front", "front word", **secured, wait_s=WAIT_S, max_mib=1)
    try:
        world.work()

        async def run(front):
            return heads(world, await front.post(device.id.hex(), chain(0, 1)[0]), device)[0].sequence

        assert with_front(world, run) == 1
        said = []

        async def wrong():
            front = Front(world.queue._replace(password="guessed"), said.append)
            front.start()
            for _ in range(200):
                await asyncio.sleep(0.1)
                if "Authorization Violation" in " ".join(said):
                    break
            with pytest.raises(Away):
                await front.post(device.id.hex(), b"")
            await front.stop()

        asyncio.run(asyncio.wait_for(wrong(), 30))
        assert "Authorization Violation" in " ".join(said)
        assert "guessed" not in " ".join(said)
    finally:
        broker.stop()


def test_what_a_worker_cannot_store_is_said_and_does_not_come_again(world, monkeypatch):
    """Our own bug with one POST: the others are stored, this one is answered, and it blocks nobody."""
    devices = [world.device(number) for number in range(3)]
    worker = Worker(str(world.directory), Config(database=world.url), world.queue, lambda _line: None, lambda: 1)
    worker._open()
    real = Ingest._take_all

    def failing(self, parts, **how):
        if devices[1] in parts:
            raise ZeroDivisionError
        return real(self, parts, **how)

    monkeypatch.setattr(Ingest, "_take_all", failing)
    posts = [Post(None, jetstream.subject(each.id.hex()), chain(n, 1)[0], 1) for n, each in enumerate(devices)]
    found = worker._take_all(posts)
    assert [outcome.answer.status for outcome in found] == [200, 503, 200]
    assert "ZeroDivisionError" in found[1].why
    assert {row[0] for row in world.segments()} == {devices[0].id, devices[2].id}
    # What comes for the third time goes alone: it may be what killed the workers before.
    asked = []
    monkeypatch.setattr(
        Ingest, "_take_all", lambda self, parts, **how: asked.append(len(parts)) or real(self, parts, **how)
    )
    worker._take_all([post._replace(deliveries=3 - (at > 0)) for at, post in enumerate(posts)])
    assert asked == [1, 2]
    worker._db.close()


def test_an_uplink_over_https_with_a_front_and_a_worker(world, device):
    pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
    directory = str(world.directory)
    assert main(["add-device", directory, "--name", "pump-07", "--key", device.public.hex()]) == 0
    device.record_and_seal(compose.finding(finding(), moment()))
    device.record_and_seal(compose.text("words", moment()))
    serving = Serving(directory)
    try:
        join(device, directory, serving.port)
        worker = world.work()
        assert uplink.Uplink(device.settings).run() == 0
        assert status(device)["sent"] == 2
        world.end(worker)
        device.record_and_seal(compose.text("more", moment()))
        world.broker.end(signal.SIGKILL)
        uplink.Uplink(device.settings).run()
        said = status(device)
        assert (said["ok"], said["retry_after"]) == (False, 5)
        assert len(world.segments()) == 2
        world.broker.start()
        world.work()
        until = time.monotonic() + 20
        while not status(device)["ok"]:
            assert time.monotonic() < until
            uplink.Uplink(device.settings).run()
    finally:
        said = serving.stop()
    assert len(world.segments()) == 3
    assert main(["revoke", directory, "pump-07"]) == 0


def test_a_small_fleet_with_everything_killed_on_the_way(tmp_path):
    sys.path.insert(0, str(ROOT / "packaging/tools"))
    import scale_demo

    lines = []
    with tempfile.TemporaryDirectory(prefix="egscale") as folder:
        options = scale_demo.parsed(["--devices", "100", "--events", "40000", "--size", "16", "--post", "2"])
        assert scale_demo.run(options, Path(folder), lines.append) == [], "\n".join(lines)
    assert "nothing lost, nothing doubled" in lines[-1]
