"""A network that cuts, repeats and reorders, and a collector that dies while it stores: in the end all is there once.

Cut after any number of bytes of a small exchange, in either direction, by an end and by a reset: the uplink says what
happened under a name, nothing leaves the device without a receipt, and the next run goes on.
"""

import itertools
import os
import random
import signal
import threading
from collections import deque
from pathlib import Path

import pytest
from proxy import DOWN, UP, Proxy
from small_world import Device, finding, moment, state
from world import Serving, collector, contents, join, status

from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.records import compose, link, uplink

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
# A cut costs a handshake. `EDGEGUARD_CUTS=1` cuts after each of the 4,000 bytes, which takes minutes.
EVERY = int(os.environ.get("EDGEGUARD_CUTS", "61"))
NAMES = {"unreachable", "timeout", "tls", "bad-reply", "untrusted", "plain-http"}


def run(device: Device) -> dict:
    uplink.Uplink(device.settings).run()
    return status(device)


def test_cut_anywhere(device, tmp_path, monkeypatch):
    serving = Serving(collector(str(tmp_path / "c"), device))
    proxy = Proxy(serving.port)
    # What the collector says of thousands of cut handshakes must not fill the pipe: it would wait for a reader.
    reader = threading.Thread(target=deque, args=(serving.process.stderr, 0), daemon=True)
    reader.start()
    join(device, serving.directory, proxy.port)
    monkeypatch.setattr(link, "EXCHANGE_S", 5)  # a cut that is not noticed would be seen here, not after two minutes
    device.record_and_seal(compose.finding(finding(), moment()))
    before = device.segments()
    try:
        assert run(device)["ok"]
        total = list(proxy.passed)
        assert min(total) > 1000
        receipt = Path(device.inbox, "receipt.egr")
        said = []
        for direction, reset in ((UP, False), (DOWN, True)):
            for place in (*range(0, total[direction], EVERY), *range(total[direction] - 3, total[direction])):
                receipt.unlink(missing_ok=True)
                proxy.cut = (direction, place, reset)
                answer = run(device)
                said.append(answer["name"])
                assert answer["ok"] == receipt.exists()
                assert answer["ok"] or answer["name"] in NAMES, (direction, place, answer)
                assert device.segments() == before
        assert len(said) > 50
        assert said.count("") <= len(said) // 20  # where the last bytes say nothing that matters
        proxy.cut = None
        assert run(device)["ok"]
        result = device.seal()
        assert (result["waiting"], result["problems"]) == (0, [])
    finally:
        proxy.close()
        serving.process.terminate()
        serving.process.wait(20)
        reader.join(20)
    assert len(contents(serving.directory)["segments"]) == 1
    assert contents(serving.directory)["incidents"] == []


def test_ten_times_in_any_order_is_once_in_order(device, tmp_path):
    """Through the real server: single segments and batches, shuffled, each ten times; beside it, in order, once."""
    for number in range(6):
        device.record_and_seal(state(f"state {number}"), compose.text(f"text {number}", moment()))
    said = b"".join(device.statements().values())
    parts = [said + part for part in device.segments().values()]
    straight = collector(str(tmp_path / "straight"), device)
    for part in parts:
        take(straight, device, part)
    serving = Serving(collector(str(tmp_path / "c"), device))
    join(device, serving.directory, serving.port)
    chance = random.Random(7)
    bodies = [b"".join(chance.sample(parts, chance.randint(1, 4))) for _ in range(20)] + parts * 10
    chance.shuffle(bodies)
    known = device.settings.uplink
    line = link.Link(link.Target(known.url, known.ca, known.certificate, known.key))
    try:
        for body in bodies:
            assert line.post(body).status == 200
        assert line.spent() > sum(map(len, bodies))
        assert run(device)["ok"]
        assert device.seal()["waiting"] == 0
    finally:
        line.close()
        serving.stop()
    assert contents(serving.directory) == contents(straight)


def take(directory: str, device: Device, data: bytes, kill_at: int = 0) -> None:
    """Into the database without a network. `kill_at`: kill this very process before that statement."""
    connection = store.connect(f"{directory}/collector.db")
    seed = Path(directory, "collector.key").read_bytes()
    ingest = Ingest(connection, seed, lambda: 1_795_416_200_000)
    known = ingest.device(device.id)
    assert known is not None
    statements = itertools.count(1)

    def trace(_statement: str) -> None:
        if next(statements) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    connection.set_trace_callback(trace if kill_at else None)
    ingest.take(data, known)
    connection.close()


def test_a_collector_killed_at_any_statement_of_its_commit(device, tmp_path):
    """Killed before each statement in turn, on one and the same database: all of a POST is there or nothing, and what
    is sent again after that makes the same database as if nothing had happened."""
    for number in range(3):
        device.record_and_seal(state(f"state {number}"), compose.finding(finding(), moment()))
    body = b"".join(device.segments().values())
    truth = collector(str(tmp_path / "truth"), device)
    take(truth, device, body)
    whole = contents(truth)
    directory = collector(str(tmp_path / "c"), device)
    empty = contents(directory)
    killed: list[dict] = []
    for statement in itertools.count(1):
        child = os.fork()
        if child == 0:
            try:
                take(directory, device, body, kill_at=statement)
            finally:
                os._exit(0)
        _, how = os.waitpid(child, 0)
        if not os.WIFSIGNALED(how):
            break
        killed.append(contents(directory))
    assert empty in killed[20:]
    assert all(found in (empty, whole) for found in killed)
    assert killed == sorted(killed, key=lambda found: found == whole)  # what is committed stays
    assert contents(directory) == whole
    take(directory, device, body)
    assert contents(directory) == whole
    with store.connect_readonly(f"{directory}/collector.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
