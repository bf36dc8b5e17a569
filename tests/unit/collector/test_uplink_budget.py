"""What goes first, what waits, and what a device's bill says: budgets over runs, counted on the wire."""

import os

import pytest
from proxy import Proxy
from small_world import Device, moment, state
from world import Serving, collector, join, status

from edgeguard.records import compose, delivery, memory, uplink
from edgeguard.records.outbox import Name

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")


@pytest.fixture
def serving(device, tmp_path):
    serving = Serving(collector(str(tmp_path / "c"), device))
    yield serving
    serving.stop()


def noise(device: Device, count: int) -> None:
    """Segments of the verbose stream, 2 to 3 KB each."""
    for _ in range(count):
        device.record_and_seal(*(compose.text(os.urandom(400).hex(), moment()) for _ in range(6)))


def run(device: Device) -> dict:
    assert uplink.Uplink(device.settings).run() == 0
    return status(device)


def test_findings_go_and_the_backlog_waits_for_its_half(device, serving, monkeypatch):
    noise(device, 12)
    size = sum(map(len, device.segments().values())) // 12
    join(device, serving.directory, serving.port, day_bytes=10 * size)
    said = run(device)
    assert said["ok"]
    assert 5 <= said["sent"] <= 6
    assert said["waiting"] == 12 - said["sent"]
    assert 86_000 < said["retry_after"] <= 86_401
    before = memory.load(f"{device.inbox}/{memory.FILE}")
    device.record_and_seal(state("something happens"))
    said = run(device)
    assert (said["sent"], said["ok"]) == (1, True)
    assert min(device.segments()).startswith("0-")
    assert 86_000 < said["retry_after"] <= 86_401
    monkeypatch.setattr(delivery, "now", lambda: before.books.day + 86_400_001)
    monkeypatch.setattr(uplink, "now", lambda: before.books.day + 86_400_001)
    assert run(device)["sent"] in {5, 6}
    assert run(device)["sent"] == 0


def test_a_rate_is_kept_over_runs(device, serving):
    noise(device, 6)
    join(device, serving.directory, serving.port, rate_bytes=200)  # a bucket of 12,000 bytes
    first = run(device)
    assert first["sent"] < 6
    assert 20 <= first["retry_after"] < 300
    assert run(device)["sent"] == 0
    device.record_and_seal(state())
    assert run(device)["sent"] <= 1


def test_every_byte_on_the_wire_is_counted(device, serving):
    """The books against a proxy that counts: TLS is in, and headers of packets come on top."""
    proxy = Proxy(serving.port)
    try:
        noise(device, 3)
        join(device, serving.directory, proxy.port)
        run(device)
        passed = sum(proxy.passed)
        used = memory.load(f"{device.inbox}/{memory.FILE}").books.used
        assert passed <= used <= passed + 80 * 52
        assert used > sum(map(len, device.segments().values()))
    finally:
        proxy.close()


def test_a_handshake_that_fails_is_paid_for(device, serving, tmp_path):
    other = collector(str(tmp_path / "other"), device)
    device.record_and_seal(state())
    join(device, serving.directory, serving.port, ca=f"{other}/ca.pem", day_bytes=1500)
    for _ in range(3):
        uplink.Uplink(device.settings).run()
    assert status(device)["retry_after"]
    assert status(device)["ok"]  # the budget is spent: nothing is wrong but that
    assert memory.load(f"{device.inbox}/{memory.FILE}").books.used < 6000


def test_one_connection_for_all_of_a_run(device, serving, monkeypatch):
    proxy = Proxy(serving.port)
    monkeypatch.setattr(delivery, "BODY_MAX", 6000)
    try:
        noise(device, 6)
        join(device, serving.directory, proxy.port)
        assert run(device)["sent"] == 6
        assert proxy.connections == 1
    finally:
        proxy.close()


def test_what_came_as_newest_of_security_is_no_backlog(device):
    one = uplink.Uplink(device.settings).first
    one._newest = 7
    assert [name for name in (Name(0, 1), Name(1, 6), Name(1, 7), Name(1, 8), Name(2, 9)) if one._urgent(name)] == [
        Name(0, 1), Name(1, 7), Name(1, 8),
    ]  # fmt: skip
