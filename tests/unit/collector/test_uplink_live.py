"""Uplink and collector over real TLS on 127.0.0.1, and an uplink that meets every kind of wrong other side."""

import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_world import Device, finding, moment, state

from edgeguard.codec import cose
from edgeguard.collector import authority
from edgeguard.collector.main import main as collector_main
from edgeguard.records import compose, delivery, link, outbox, receipts, uplink, wire
from edgeguard.records.outbox import Name
from edgeguard.settings import Uplink

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
ROOT = Path(__file__).parents[3]


class Serving:
    """A collector process of our own."""

    def __init__(self, directory: str, port: int = 0) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "packaging/bin/edgeguard-collector"), "serve", directory,
             "--listen", f"127.0.0.1:{port}"],
            stderr=subprocess.PIPE, cwd=directory, text=True,
        )  # fmt: skip
        line = self.process.stderr.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        self.port = int(line.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> str:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=20)[1]


@pytest.fixture(scope="module")
def collector_directory(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("collector"))
    assert collector_main(["init", directory]) == 0
    public = cose.public_of(b"\x01" * 32).hex()
    assert collector_main(["add-device", directory, "--name", "pump-07", "--key", public]) == 0
    return directory


def join(device: Device, directory: str, port: int, **changes) -> None:
    bundle = f"{directory}/devices/pump-07"
    known = {
        "url": f"https://127.0.0.1:{port}", "ca": f"{bundle}/ca.pem", "certificate": f"{bundle}/client.pem",
        "key": f"{bundle}/client.key", "collector_key": f"{bundle}/collector.pub",
    }  # fmt: skip
    device.settings = device.settings._replace(uplink=Uplink(**(known | changes)))


def uplink_link(device: Device) -> link.Link:
    known = device.settings.uplink
    return link.Link(link.Target(known.url, known.ca, known.certificate, known.key))


def status(device: Device) -> dict:
    raw = Path(device.inbox, "status.json").read_bytes()
    assert len(raw) <= 4096
    return json.loads(raw)


def test_from_the_finding_to_the_database_and_back(device, collector_directory, tmp_path, capsys):
    join(device, collector_directory, 1)
    device.record_and_seal(compose.finding(finding(), moment()), compose.text("noise", moment()))
    assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL  # nobody there yet
    assert status(device)["name"] == "unreachable"
    assert status(device)["waiting"] == 2
    device.record_and_seal(state("while the collector was down"))

    serving = Serving(collector_directory)
    try:
        join(device, collector_directory, serving.port)
        assert uplink.Uplink(device.settings).run() == 0
        said = status(device)
        assert (said["ok"], said["waiting"], said["sent"], said["refused"]) == (True, 0, 3, [])
        result = device.seal()
        assert result["waiting"] == 0
        assert result["problems"] == []
        assert sorted(device.segments()) == ["0-0000000000000002.egs", "3-0000000000000001.egs"]
        assert uplink.Uplink(device.settings).run() == 0
        assert status(device)["sent"] == 0  # the receipt covers all of it
        # killed between storing and answering: sent again, stored once
        os.unlink(f"{device.inbox}/receipt.egr")
        serving.stop(signal.SIGKILL)
        again = Serving(collector_directory, serving.port)
        assert uplink.Uplink(device.settings).run() == 0
        again.stop()
    finally:
        serving.stop(signal.SIGKILL)
    capsys.readouterr()
    assert collector_main(["events", collector_directory, "-o", "jsonl"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(event["type"] for event in events) == ["finding", "state", "text"]
    assert {event["subject"] for event in events if event["type"] == "finding"} == {"/usr/sbin/sshd"}
    assert collector_main(["devices", collector_directory]) == 0
    shown = capsys.readouterr().out
    assert "segments to 2, records to 2, complete" in shown
    assert collector_main(["devices", collector_directory, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)["devices"][0]
    assert document["streams"][0]["complete_to"] == 2


def test_a_damaged_segment_is_refused_by_name_and_then_explained(device, collector_directory, tmp_path):
    directory = str(tmp_path / "own")
    collector_main(["init", directory])
    collector_main(["add-device", directory, "--name", "pump-07", "--key", device.public.hex()])
    serving = Serving(directory)
    try:
        join(device, directory, serving.port)
        device.record_and_seal(state("a"))
        device.record_and_seal(state("b"))
        device.record_and_seal(state("c"))
        path = f"{device.outbox}/0-0000000000000002.egs"
        data = bytearray(Path(path).read_bytes())
        data[-30] ^= 4
        Path(path).write_bytes(data)
        assert uplink.Uplink(device.settings).run() == 0
        assert status(device)["refused"] == [{"name": "0-0000000000000002.egs", "reason": "altered"}]
        result = device.record_and_seal(state("d"))
        assert [item["name"] for item in result["quarantined"]] == ["0-0000000000000002.egs"]
        assert uplink.Uplink(device.settings).run() == 0
        assert device.seal()["waiting"] == 0
    finally:
        said = serving.stop()
    assert "altered" in said


def test_a_certificate_of_the_ca_is_needed_and_names_the_device(device, collector_directory, tmp_path):
    serving = Serving(collector_directory)
    stranger = str(tmp_path / "stranger")
    collector_main(["init", stranger])
    collector_main(["add-device", stranger, "--name", "pump-07", "--key", device.public.hex()])
    device.record_and_seal(state())
    foreign = f"{stranger}/devices/pump-07"
    try:
        join(
            device, collector_directory, serving.port, certificate=f"{foreign}/client.pem", key=f"{foreign}/client.key"
        )
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
        assert status(device)["name"] in {"tls", "unreachable", "bad-reply"}
        authority.bundle(collector_directory, str(tmp_path / "unknown"), bytes(16))
        unknown = str(tmp_path / "unknown")
        join(
            device, collector_directory, serving.port, certificate=f"{unknown}/client.pem", key=f"{unknown}/client.key"
        )
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
        assert status(device)["name"] == "refused"
        assert "403: unknown device" in status(device)["error"]
        join(device, collector_directory, serving.port, ca=f"{foreign}/ca.pem")
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
        assert status(device)["name"] == "untrusted"
        join(device, collector_directory, serving.port, url=f"http://127.0.0.1:{serving.port}")
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
        assert status(device)["name"] == "plain-http"
    finally:
        serving.stop()


def test_a_body_too_large_and_no_segments_at_all(device, collector_directory):
    serving = Serving(collector_directory)
    try:
        join(device, collector_directory, serving.port)
        for body, code in ((b"x" * 300_000, 413), (b"nonsense", 400), (b"", 200)):
            collector = uplink_link(device)
            assert collector.post(body).status == code
            collector.close()
    finally:
        serving.stop()


class Wrong(http.server.BaseHTTPRequestHandler):
    answer = (200, b"", {})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        code, body, headers = self.answer
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class QuietServer(http.server.HTTPServer):
    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def serve(collector_directory):
    """A server that answers as told, with the real certificate or another."""
    servers = []

    def start(answer=(200, b"", {}), certificate=None, *, tls=True):
        handler = type("Handler", (Wrong,), {"answer": answer})
        server = QuietServer(("127.0.0.1", 0), handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                *(certificate or (f"{collector_directory}/server.pem", f"{collector_directory}/server.key"))
            )
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "name", "retry"),
    [
        ((200, b"garbage", {}), "bad-reply", None),
        ((200, b"\xd2\x84", {}), "bad-reply", None),
        ((200, b"\x00" * 5000, {}), "oversized-reply", None),
        ((503, b"busy", {"Retry-After": "17"}), "busy", 17),
        ((429, b"\x1b[2J\xff", {"Retry-After": "999999999"}), "busy", 86400),
        ((503, b"", {"Retry-After": "soon"}), "busy", None),
        ((503, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), "busy", 0),
        ((500, b"x" * 4000, {}), "refused", None),
        ((302, b"", {"Location": "http://elsewhere/"}), "refused", None),
        ((204, b"", {}), "refused", None),
    ],
)
def test_every_wrong_answer_has_a_name(device, collector_directory, serve, answer, name, retry):
    device.record_and_seal(state())
    join(device, collector_directory, serve(answer))
    assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
    said = status(device)
    assert (said["ok"], said["name"], said["retry_after"], said["waiting"]) == (False, name, retry, 1)
    assert said["error"].isprintable()
    assert not os.path.exists(f"{device.inbox}/receipt.egr")


def certificate(directory, target, hosts, *, expired=False):
    """A server certificate by the collector's CA, for other names or of other times."""
    real = authority._builder

    def builder(*arguments):
        made = real(*arguments)
        if expired:
            made._not_valid_before = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=9)
            made._not_valid_after = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
        return made

    authority._builder = builder
    try:
        key, pem = authority._issue(directory, "x", 5, authority.ExtendedKeyUsageOID.SERVER_AUTH, hosts)
    finally:
        authority._builder = real
    (target / "s.key").write_bytes(key)
    (target / "s.pem").write_bytes(pem)
    return str(target / "s.pem"), str(target / "s.key")


@pytest.mark.parametrize(
    ("hosts", "expired", "name"),
    [(["elsewhere.example"], False, "wrong-name"), (["127.0.0.1"], True, "certificate-expired")],
)
def test_wrong_name_and_expired_certificate(device, collector_directory, serve, tmp_path, hosts, expired, name):
    device.record_and_seal(state())
    files = certificate(collector_directory, tmp_path, hosts, expired=expired)
    join(device, collector_directory, serve(certificate=files))
    uplink.Uplink(device.settings).run()
    assert status(device)["name"] == name


def test_no_tls_there_and_something_else_entirely(device, collector_directory, serve):
    device.record_and_seal(state())
    join(device, collector_directory, serve(tls=False))
    uplink.Uplink(device.settings).run()
    assert status(device)["name"] == "plain-http"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        join(device, collector_directory, silent.getsockname()[1])
        before = link.EXCHANGE_S
        link.EXCHANGE_S = 1
        try:
            started = time.monotonic()
            uplink.Uplink(device.settings).run()
            assert time.monotonic() - started < 5
        finally:
            link.EXCHANGE_S = before
    assert status(device)["name"] == "timeout"


@pytest.mark.parametrize(
    "url", ["http://h", "https://", "https://h/path", "https://u@h", "https://h:x", "ftp://h", "https://[::1"]
)
def test_an_address_that_cannot_be_is_said(device, collector_directory, url):
    device.record_and_seal(state())
    join(device, collector_directory, 1, url=url)
    assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
    assert status(device)["name"] in {"settings", "plain-http"}


def test_missing_certificates_are_said(device, collector_directory):
    device.record_and_seal(state())
    for key in ("ca", "certificate", "key"):
        join(device, collector_directory, 1, **{key: "/nowhere/x.pem"})
        assert uplink.Uplink(device.settings).run() == uplink.EX_TEMPFAIL
        assert status(device)["name"] == "settings"


def test_findings_first_then_newest_security_then_the_backlog():
    names = [Name(stream, sequence) for stream in (0, 1, 2, 3) for sequence in (1, 2, 3)]
    assert delivery.in_order(names) == [
        *names[:3], Name(1, 3), Name(1, 1), Name(1, 2), *names[6:],
    ]  # fmt: skip
    assert delivery.in_order([]) == []


def test_a_body_is_bounded(device, monkeypatch):
    for word in "abcd":
        device.record_and_seal(state(word * 200))
    size = len(outbox.read(device.outbox, Name(0, 1)))
    (statement,) = outbox.epochs(device.outbox)
    beside = len(outbox.read_epoch(device.outbox, statement))
    monkeypatch.setattr(delivery, "BODY_MAX", 2 * size + 10 + beside)
    one = uplink.Uplink(device.settings).first
    assert list(one._batch(one.waiting())) == [Name(0, 1), Name(0, 2)]


def test_a_hostile_outbox_and_inbox(device, collector_directory):
    device.record_and_seal(state())
    Path(device.outbox, "0-0000000000000002.egs").write_bytes(b"\0" * 300_000)
    os.symlink("/etc/passwd", f"{device.outbox}/0-0000000000000003.egs")
    os.mkfifo(f"{device.outbox}/0-0000000000000004.egs")
    Path(device.outbox, "0-0000000000000005.egs").write_bytes(b"")
    Path(device.inbox, "receipt.egr").write_bytes(b"\xff" * 9000)
    Path(device.inbox, "status.json").write_bytes(b"[" * 4000)
    one = uplink.Uplink(device.settings).first
    assert list(one._batch(one.waiting())) == [Name(0, 1)]
    assert len(one.refused) == 4


@pytest.mark.parametrize("file", ["0-0000000000000002.egs", "epoch-0000000000000001.ege"])
def test_a_flipped_bit_spoils_no_other_part_of_the_body(device, collector_directory, file):
    """The collector tells parts by their lengths and types: one that is not whole would make all unreadable."""
    for name in "abc":
        device.record_and_seal(state(name))
    path = Path(device.outbox, file)
    whole = path.read_bytes()
    others = {Path(device.outbox, f"0-000000000000000{number}.egs").read_bytes() for number in (1, 3)}
    passed_over = 0
    for bit in range(8 * len(whole)):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        one = uplink.Uplink(device.settings).first
        batch = one._batch(one.waiting())
        sent = wire.split(b"".join([*one._statements(batch).values(), *batch.values()]))
        assert others <= set(sent)
        passed_over += path.read_bytes() not in sent
    assert passed_over


def test_the_launcher_says_what_is_wrong(tmp_path, device):
    program = str(ROOT / "packaging/bin/edgeguard-uplink")
    settings = tmp_path / "agent.toml"
    settings.write_text("[uplink]\nurl = 5\n")
    for arguments, code, word in (
        (["--settings", str(settings)], 64, "expected"),
        (["--nonsense"], 64, "usage"),
        (["uplink", "--settings", "/nowhere"], 0, "no [uplink] url"),
    ):
        done = subprocess.run(
            ["/usr/bin/python3", "-IS", program, *arguments], capture_output=True, timeout=30, text=True, check=False
        )
        assert (done.returncode, word in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["events", "/nowhere"], "no collector in /nowhere"),
        (["init", "{dir}"], "created once"),
        (["add-device", "{dir}", "--name", "a b", "--key", "00"], "a name has"),
        (["add-device", "{dir}", "--name", "x", "--key", "00"], "64 hex digits"),
        (["add-device", "{dir}", "--name", "pump-07", "--key", "11" * 32], "is there already"),
        (["serve", "{dir}", "--listen", "x"], "ADDRESS:PORT"),
        (["explain-gap", "{dir}", "--device", "nobody", "--stream", "0", "--through", "3"], "no device"),
    ],
)
def test_a_wrong_command_is_answered(collector_directory, capsys, arguments, word):
    assert collector_main([part.format(dir=collector_directory) for part in arguments]) == 64
    assert word in capsys.readouterr().err


def test_segments_on_a_stick(device, tmp_path, capsys):
    directory = str(tmp_path / "c")
    collector_main(["init", directory])
    collector_main(["add-device", directory, "--name", "p", "--key", device.public.hex()])
    device.record_and_seal(state("a"))
    device.record_and_seal(state("b"))
    files = [f"{device.outbox}/{name}" for name in device.segments()]
    assert collector_main(["import", directory, *files]) == 1
    assert capsys.readouterr().out.count("unknown epoch") == 2
    assert collector_main(["import", directory, *files, f"{device.outbox}/{outbox.epoch_file(1)}"]) == 0
    assert collector_main(["import", directory, *files]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "stored",
        "stored",
        "stored",
        "duplicate",
        "duplicate",
    ]
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x1b[2J")
    assert collector_main(["import", directory, str(junk)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_receipts_read_as_they_are_written():
    head, part, refusal = receipts.Head(0, 3, bytes(32)), receipts.Range(1, 2, 4), receipts.Refusal(bytes(32), "x")
    receipt = receipts.Receipt(bytes(16), 5, (head,), (part,), (refusal,), (0, 7), (b"12345678",))
    assert receipts.decode(receipts.encode(receipt)) == receipt
