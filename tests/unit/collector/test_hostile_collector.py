"""A collector that answers what it likes: nothing unsent leaves the device, nothing grows, and the next one gets all.

The other side has a certificate of our CA, so it passes TLS: a collector that was taken over, or a broken one.
"""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_world import Device, moment, state
from world import ROOT, Serving, collector, contents, join, status

from edgeguard.codec import cose
from edgeguard.records import compose, link, memory, receipts, uplink
from edgeguard.records.receipts import Head, Range, Receipt

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
FAR = (1 << 63) - 1
OK = b"HTTP/1.1 200 OK\r\n"


class Answering:
    """TLS with the collector's own certificate, and after each request what `answer` sends."""

    def __init__(self, directory: str, answer) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as line:
                    while _request(line):
                        self.requests += 1
                        self._answer(line)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def _request(line: ssl.SSLSocket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        more = line.recv(65536)
        if not more:
            return False
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += line.recv(65536)
    return True


def endless(piece: bytes, start: bytes = b""):
    def answer(line: ssl.SSLSocket) -> None:
        line.sendall(start)
        while True:
            line.sendall(piece)

    return answer


def once(data: bytes):
    def answer(line: ssl.SSLSocket) -> None:
        line.sendall(data)
        line.close()

    return answer


def dripping(line: ssl.SSLSocket) -> None:
    for letter in OK + b"Content-Length: 4000\r\n\r\n" + b"x" * 4000:
        line.sendall(bytes([letter]))
        time.sleep(0.05)


FLOODS = {
    "interim replies": endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "headers": endless(b"X-Y: " + b"z" * 60_000 + b"\r\n", OK),
    "one line": endless(b"A" * 65536),
    "one status line": endless(b"A" * 65536, b"HTTP/1.1 200 "),
    "a body without end": endless(b"A" * 65536, OK + b"\r\n"),
    "a giant body": endless(b"A" * 65536, OK + b"Content-Length: 99999999999\r\n\r\n"),
    "chunks": endless(b"FFFF\r\n" + b"A" * 65535 + b"\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "empty extensions": endless(b"1;" + b"x" * 9000 + b"\r\nA\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "dripping": dripping,
}
NAMES = {"dripping": "timeout", "one line": "bad-reply"}
ANSWERS = {
    "a negative length": (OK + b"Content-Length: -5\r\n\r\nabc", "bad-reply"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "bad-reply"),
    "a short body": (OK + b"Content-Length: 400\r\n\r\n\xd2\x84", "bad-reply"),
    "a bad chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "bad-reply"),
    "nothing": (b"", "unreachable"),
    "moved": (b"HTTP/1.1 307 Moved\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "refused"),
    "upgrade": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", "refused"),
    "authenticate": (b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n', "refused"),
    "wait for ever": (b"HTTP/1.1 503 No\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n", "busy"),
    "wait since ever": (b"HTTP/1.1 503 No\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n", "busy"),
    "status 999": (b"HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n", "refused"),
}


@pytest.fixture
def ours(device, tmp_path):
    """A collector's directory, and a device with a few segments."""
    directory = collector(str(tmp_path / "c"), device)
    for number in range(3):
        device.record_and_seal(state(f"state {number}"), compose.text("noise", moment()))
    return directory


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_costs_neither_memory_nor_time(device, ours, name, tmp_path):
    """In a process of its own, as on a device: the uplink's peak is what it is without a flood."""
    answering = Answering(ours, FLOODS[name])
    join(device, ours, answering.port)
    before = device.segments()
    words = (
        "import json, resource, sys; from edgeguard.records import link, uplink; from edgeguard.settings import load;"
        "link.EXCHANGE_S = 2; start = resource.getrusage(resource.RUSAGE_SELF);"
        "code = uplink.Uplink(load(sys.argv[1])).run(); use = resource.getrusage(resource.RUSAGE_SELF);"
        "print(json.dumps([code, use.ru_maxrss - start.ru_maxrss, use.ru_utime + use.ru_stime]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", words, write_settings(device, tmp_path)],
            cwd=ROOT, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
    finally:
        answering.close()
    code, grown, cpu = json.loads(done.stdout)
    assert code == uplink.EX_TEMPFAIL
    assert grown < 12_000  # kB: TLS alone is 6,000
    assert cpu < 3
    assert status(device)["name"] == NAMES.get(name, "oversized-reply")  # at once, not when the time is over
    assert device.segments() == before


def write_settings(device: Device, tmp_path: Path) -> str:
    path = tmp_path / "agent.toml"
    known = device.settings.uplink
    lines = [f'exchange = "{device.settings.paths.exchange}"', "[uplink]"]
    lines += [f'{key} = "{getattr(known, key)}"' for key in ("url", "ca", "certificate", "key", "collector_key")]
    path.write_text("[paths]\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_makes_no_sense_has_a_name(device, ours, name):
    data, word = ANSWERS[name]
    answering = Answering(ours, once(data))
    join(device, ours, answering.port)
    try:
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
    finally:
        answering.close()
    said = status(device)
    assert (said["name"], said["waiting"]) == (word, 6)
    assert said["retry_after"] is None or 0 <= said["retry_after"] <= link.RETRY_AFTER_MAX
    assert answering.requests == 1


def replying(receipt: bytes):
    return once(OK + b"Content-Length: %d\r\n\r\n" % len(receipt) + receipt)


STRANGER = b"\x55" * 32
EVERYTHING = tuple(Head(stream, FAR, bytes(32)) for stream in range(4))
ALL_HELD = tuple(Range(stream, 0, FAR) for stream in range(4))


@pytest.mark.parametrize("signer", ["stranger", "collector"])
@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(b"D" * 16, FAR, EVERYTHING),
        Receipt(b"D" * 16, FAR, (), ALL_HELD),
        Receipt(b"D" * 16, 0, EVERYTHING, ALL_HELD),
        Receipt(bytes(16), FAR, EVERYTHING, ALL_HELD),
        Receipt(b"D" * 16, 0),
        Receipt(b"D" * 16, 0, tuple(Head(stream, 10**12, bytes(32)) for stream in range(4))),
    ],
    ids=["all confirmed", "all held", "both", "another device", "nothing", "numbers of tomorrow"],
)
def test_a_receipt_that_lies_keeps_nothing_from_being_sent(device, ours, receipt, signer):
    """Whoever signs it: what the lie was about reaches the honest collector in full, and nothing unsent is deleted.

    (A collector may always lie about what it was sent: it has the key. It was sent these segments, so with the key it
    could have them deleted by naming their true hashes; everything else is beyond it.)
    """
    receipt = receipt._replace(device=device.id if receipt.device == b"D" * 16 else receipt.device)
    seed = STRANGER if signer == "stranger" else Path(ours, "collector.key").read_bytes()
    answering = Answering(ours, replying(cose.sign1(receipts.encode(receipt), seed, cose.RECEIPT_AAD)))
    join(device, ours, answering.port)
    before = device.segments()
    try:
        uplink.Uplink(device.settings).run()
        device.seal()
        assert device.segments().items() >= before.items()
        uplink.Uplink(device.settings).run()
    finally:
        answering.close()
    device.seal()
    assert device.segments().items() >= before.items()
    device.record_and_seal(state("later"))
    serving = Serving(ours)
    join(device, ours, serving.port)
    try:
        assert uplink.Uplink(device.settings).run() == 0
        assert status(device)["waiting"] == 0
    finally:
        serving.stop()
    found = {bytes(row[-1]) for row in contents(ours)["segments"]}
    assert found >= set(before.values())


def test_rest_is_kept_from_run_to_run_and_ends(device, ours, monkeypatch):
    answering = Answering(ours, once(b"HTTP/1.1 503 No\r\nRetry-After: 900\r\nContent-Length: 0\r\n\r\n"))
    join(device, ours, answering.port)
    try:
        for _ in range(3):
            assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
            assert 890 <= status(device)["retry_after"] <= 901
        assert answering.requests == 1
        kept = memory.load(f"{device.inbox}/{memory.FILE}")
        for off in (-1, link.RETRY_AFTER_MAX * 1000 + 5000):  # it is over; the clock was set back by a day
            now = time.time_ns() // 1_000_000
            first = kept.first._replace(rest_until=now + off)
            Path(device.inbox, memory.FILE).write_bytes(memory.encode(kept._replace(first=first)))
            uplink.Uplink(device.settings).run()
        assert answering.requests == 3
    finally:
        answering.close()


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 3000, b'{"v": 1, "first": 3}', b"x" * 20_000, b"1e999"])
def test_a_memory_that_makes_no_sense_is_none(tmp_path, data):
    (tmp_path / "m").write_bytes(data)
    assert memory.load(str(tmp_path / "m")) == memory.Memory()


def test_memory_reads_as_it_is_written(tmp_path):
    known = memory.Known((Range(1, 2, 9), Range(3, 1, 1)), 5, None, 7)
    kept = memory.Memory(known, known._replace(last_sent=8), memory.Books(1, 2, 3, 4, 5, -6))
    (tmp_path / "m").write_bytes(memory.encode(kept))
    assert memory.load(str(tmp_path / "m")) == kept
    assert memory.load(str(tmp_path / "n")) == memory.Memory()
