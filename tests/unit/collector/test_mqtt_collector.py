"""The collector's side of MQTT alone: what a broker may do to it, who is answered what, and what add-broker makes."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from scripted_broker import CONNACK, PUBLISH, SUBACK, SUBSCRIBE, Peer, Scripted, length, message
from small_world import Device, state
from world import collector

from edgeguard.codec import certificates
from edgeguard.collector import authority, mqtt, store
from edgeguard.collector.config import Mqtt
from edgeguard.collector.enrolment import Enrolment
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import main as collector_main
from edgeguard.collector.relayed import STRANGERS_MAX, Relayed
from edgeguard.errors import DecodeError
from edgeguard.records import mqttclient, mqttwire, receipts
from edgeguard.records.mqttwire import RENEW, RX, UP, Answer, mark

pytest.importorskip("paho.mqtt.client", reason="python3-paho-mqtt is how MQTT is spoken")


class Here:
    """A collector without a server: what is answered, and what is logged."""

    def __init__(self, device: Device, root: Path) -> None:
        self.directory = collector(str(root / "c"), device)
        self.said: list[str] = []
        self.db = store.connect(f"{self.directory}/collector.db")
        seed = Path(self.directory, "collector.key").read_bytes()
        self.ingest = Ingest(self.db, seed, lambda: 1_795_416_200_000)
        self.enrolment = Enrolment(self.directory, lambda: 5000)
        said = self.said
        self.relayed = Relayed(
            self.directory, self.ingest, self.enrolment, said.append, lambda name, _: said.append(name)
        )


@pytest.fixture
def here(device, tmp_path):
    made = Here(device, tmp_path)
    yield made
    made.db.close()
    made.enrolment.close()


def der(path: str) -> bytes:
    return x509.load_pem_x509_certificate(Path(path).read_bytes()).public_bytes(serialization.Encoding.DER)


def test_each_message_has_its_answer(here, device):
    device.record_and_seal(state())
    body = b"".join([*device.statements().values(), *device.segments().values()])
    answer = here.relayed.answer(device.id, UP, body)
    assert (answer.of, answer.status) == (mark(body), 200)
    receipt = receipts.verified(answer.body, [public(here)], device.id)
    assert receipt.heads
    assert here.said == ["pump-07"]
    assert here.relayed.answer(device.id, UP, b"x" * 300_000).status == 413
    assert here.relayed.answer(device.id, UP, b"nonsense").status == 400
    here.db.execute("PRAGMA query_only = ON")  # as a full disk would answer
    failed = here.relayed.answer(device.id, UP, body)
    assert (failed.status, failed.retry_after) == (503, 60)


def public(here: Here) -> bytes:
    return bytes.fromhex(Path(here.directory, "collector.pub").read_text())


def test_strangers_fill_neither_log_nor_database(here):
    for number in range(STRANGERS_MAX + 50):
        answer = here.relayed.answer(number.to_bytes(16, "big"), UP, b"")
        assert answer.status == 403
        here.relayed.answer(number.to_bytes(16, "big"), UP, b"")
    assert len(here.said) == STRANGERS_MAX
    assert here.said[-1].endswith("no more of them are named")
    assert here.db.execute("SELECT count(*) FROM incidents").fetchone() == (0,)


def test_only_a_certificate_of_ours_for_this_device_is_renewed(here, device, tmp_path):
    bundle = f"{here.directory}/devices/pump-07"
    ours = der(f"{bundle}/client.pem")
    assert here.relayed.answer(device.id, RENEW, ours).status == 200
    stranger = collector(str(tmp_path / "s"), device)
    authority.bundle(here.directory, str(tmp_path / "other"), bytes(16))
    ca = x509.load_pem_x509_certificate(Path(here.directory, "ca.pem").read_bytes())
    wrong = {
        "another CA, the same name": der(f"{stranger}/devices/pump-07/client.pem"),
        "another device": der(f"{tmp_path}/other/client.pem"),
        "the server": der(f"{here.directory}/server.pem"),
        "the CA": der(f"{here.directory}/ca.pem"),
        "altered": ours[:-5] + bytes([ours[-5] ^ 1]) + ours[-4:],
        "cut": ours[:-1],
        "nothing": b"",
        "junk": b"\x30\x82" + os.urandom(300),
        "expired": made(here, ca, device.id.hex(), -2),
    }
    for name, data in wrong.items():
        assert here.relayed.answer(device.id, RENEW, data).status == 403, name
    assert here.relayed.answer(device.id, RENEW, made(here, ca, device.id.hex(), 2)).status == 200
    here.enrolment.revoke(device.id)
    assert here.relayed.answer(device.id, RENEW, ours).status == 403


def made(here: Here, ca: x509.Certificate, name: str, days: int) -> bytes:
    """A certificate by our CA that ends in so many days."""
    ca_key = serialization.load_pem_private_key(Path(here.directory, "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    )
    builder = builder.issuer_name(ca.subject).public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    builder = builder.serial_number(7).not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days))
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_version_that_x509_does_not_know_is_our_error(tmp_path):
    """The library raises an exception for it that is no ValueError."""
    authority.create(str(tmp_path / "ca"), ["localhost"])
    der = certificates.der((tmp_path / "ca/server.pem").read_bytes())
    at = der.index(b"\xa0\x03\x02\x01\x02") + 4
    with pytest.raises(DecodeError):
        authority.issued(str(tmp_path / "ca"), "0" * 32, der[:at] + b"\1" + der[at + 1 :])
    csr = certificates.request("x")[1]
    at = csr.index(b"\x02\x01\x00") + 2
    with pytest.raises(DecodeError, match="version"):
        authority.requested(csr[:at] + b"\5" + csr[at + 1 :])


@given(st.binary(max_size=200))
def test_any_certificate_is_ours_or_our_error(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "ca"
    if not directory.exists():
        authority.create(str(directory), ["localhost"])
    with pytest.raises(DecodeError):
        authority.issued(str(directory), "0" * 32, data)


def test_a_broker_gets_what_it_needs_once(here, device, capsys):
    capsys.readouterr()
    assert collector_main(["add-broker", here.directory, "--host", "b.example", "--host", "10.0.0.1"]) == 0
    folder = f"{here.directory}/broker"
    assert sorted(os.listdir(folder)) == ["acl", "broker.key", "broker.pem", "ca.pem", "mosquitto.conf"]
    assert os.stat(f"{folder}/broker.key").st_mode & 0o077 == 0
    assert os.stat(f"{here.directory}/mqtt.key").st_mode & 0o077 == 0
    assert 'url = "mqtts://b.example:8883"' in capsys.readouterr().out
    assert collector_main(["add-broker", here.directory, "--host", "b.example"]) == 64
    key = Path(here.directory, "mqtt.key").read_bytes()
    assert collector_main(["add-broker", here.directory, "--host", "c.example", "--out", f"{folder}2"]) == 0
    assert Path(here.directory, "mqtt.key").read_bytes() == key
    capsys.readouterr()
    assert collector_main(["add-broker", here.directory, "--host", "2001:db8::7", "--out", f"{folder}3"]) == 0
    said = capsys.readouterr().out
    assert said.count('url = "mqtts://[2001:db8::7]:8883"') == 2  # here and on devices
    assert max(len(line.replace(here.directory, "")) for line in said.splitlines()) <= 80


# --- a broker that does what it likes ------------------------------------------------------------------------------


class Listening:
    """A Subscriber at a scripted broker."""

    def __init__(self, directory: str, script, answer=None, share: str = "") -> None:
        if not os.path.exists(f"{directory}/broker"):
            assert collector_main(["add-broker", directory, "--host", "127.0.0.1"]) == 0
        self.broker = Scripted(directory, script)
        self.said: list[str] = []
        self.asked: list[tuple[bytes, str, bytes]] = []

        def recorded(*asked) -> Answer:
            self.asked.append(asked)
            return Answer(mark(asked[2]), 200, None, b"r") if answer is None else answer(*asked)

        config = Mqtt(f"mqtts://127.0.0.1:{self.broker.port}", "", "", "", share)
        self.subscriber = mqtt.Subscriber(config, directory, recorded, self.said.append)
        self.subscriber.start()

    def until(self, test) -> None:
        for _ in range(200):
            if test():
                return
            time.sleep(0.05)
        raise AssertionError((self.said, self.asked))

    def close(self) -> None:
        self.subscriber.stop()
        assert not self.subscriber._thread.is_alive()
        self.broker.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.1, 0.3))
    monkeypatch.setattr(mqtt, "CONNACK_S", 4)
    monkeypatch.setattr(mqtt, "SUBACK_S", 4)


def subscribed(peer: Peer) -> None:
    peer.welcome()
    asked = peer.read()
    assert asked.kind == SUBSCRIBE
    peer.send(SUBACK, asked.content[:2] + peer.properties() + b"\1\1")


def test_it_comes_back_whatever_the_broker_did(here, device):
    """Silent, refusing, no MQTT, a giant, gone: each said once, and then an honest one is served."""
    turns = threading.Lock()
    ways = ["refuse", "junk", "giant", "gone", "poison", "honest"]
    answered = []

    def script(peer: Peer) -> None:
        with turns:
            way = ways[0] if len(ways) == 1 else ways.pop(0)
        if way == "refuse":
            peer.read()
            peer.send(CONNACK, b"\0\x87" + peer.properties())
        elif way == "junk":
            peer.read()
            peer.line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        elif way == "giant":
            subscribed(peer)
            peer.line.sendall(bytes([PUBLISH << 4]) + length(200_000_000) + b"A" * 70_000)
        elif way == "poison":
            subscribed(peer)
            peer.publish(f"eg/1/{'0' * 32}/up", b"poison")
            answered.append(peer.published().payload)
        elif way == "honest":
            subscribed(peer)
            peer.publish(f"eg/1/{'0' * 32}/up", b"left behind", retain=True)
            peer.publish("x/y", b"not ours")
            peer.publish(f"eg/1/{device.id.hex()}/{RX}", b"not to us")
            peer.publish(f"eg/1/{device.id.hex()}/{UP}", b"body")
            answered.append(peer.published())
            while True:
                peer.read()

    def answer(_device: bytes, _kind: str, payload: bytes) -> Answer:
        if payload == b"poison":
            raise KeyError("a bug")
        return Answer(mark(payload), 200, None, b"r")

    listening = Listening(here.directory, script, answer)
    try:
        listening.until(lambda: len(answered) == 2)
    finally:
        listening.close()
    assert mqttwire.decode(answered[0]).status == 500
    sent = answered[1]
    assert sent.topic == f"eg/1/{device.id.hex()}/rx"
    assert mqttwire.decode(sent.payload) == Answer(mark(b"body"), 200, None, b"r")
    assert listening.asked[-1] == (device.id, UP, b"body")
    assert b"left behind" not in {asked[2] for asked in listening.asked}
    said = "\n".join(listening.said)
    for words in (
        "does not let us in (reason 135)",
        "a packet of more than",
        "KeyError",
        "a topic that is none of ours",
    ):
        assert words in said
    assert said.count("receiving from") >= 3


def test_replies_that_nobody_acknowledges_are_bounded(here, device):
    """The broker brings messages and never acknowledges ours: the session ends, memory does not grow."""

    def script(peer: Peer) -> None:
        subscribed(peer)
        for number in range(1, 2000):  # until the other side ends it
            peer.publish(f"eg/1/{'0' * 32}/up", b"body", number=number)
            time.sleep(0.001)

    listening = Listening(here.directory, script)
    try:
        listening.until(lambda: any("acknowledges nothing" in line for line in listening.said))
    finally:
        listening.close()


def pings(peer: Peer) -> None:
    while True:
        peer.line.sendall(b"\xc0\0" * 8000)


def of_qos_2(peer: Peer) -> None:
    for number in range(1, 60_000):
        peer.line.sendall(message("x/y", b"A" * 1000, 5, qos=2, number=number))


@pytest.mark.parametrize(("flood", "words"), [(pings, "reads no answer"), (of_qos_2, "QoS 2")])
def test_what_paho_would_keep_without_end_ends_the_session(here, flood, words):
    """Nothing of the broker is read here, however much it sends; paho would answer and keep all of it."""

    def script(peer: Peer) -> None:
        subscribed(peer)
        flood(peer)

    listening = Listening(here.directory, script)
    try:
        listening.until(lambda: any(words in line for line in listening.said))
    finally:
        listening.close()


def test_what_the_broker_grants_and_nobody_asked_for_is_not_kept(here, device, monkeypatch):
    sessions, answered = [], []

    class Session(mqtt.Session):
        def __init__(self, *words) -> None:
            super().__init__(*words)
            sessions.append(self)

    def script(peer: Peer) -> None:
        subscribed(peer)
        for number in range(1000, 1100):  # of few codes each: paho takes 0.2 ms for one
            peer.send(SUBACK, number.to_bytes(2, "big") + peer.properties() + b"\1" * 3)
        peer.publish(f"eg/1/{device.id.hex()}/{UP}", b"body")
        answered.append(peer.published())

    monkeypatch.setattr(mqtt, "Session", Session)
    listening = Listening(here.directory, script)
    try:
        listening.until(lambda: answered)
    finally:
        listening.close()
    assert sessions[0]._granted == [1, 1]


def test_shared_needs_mqtt_5(here):
    """What knows 3.1.1 only would give each message to all of them, or to none."""
    versions = []

    def script(peer: Peer) -> None:
        peer.read()
        versions.append(peer.version)
        peer.line.sendall(b"\x20\x02\0\1")

    listening = Listening(here.directory, script, share="edgeguard")
    try:
        listening.until(lambda: len(versions) > 2)
    finally:
        listening.close()
    assert set(versions) == {5}
    assert listening.subscriber.topics() == ["$share/edgeguard/eg/1/+/up", "$share/edgeguard/eg/1/+/renew"]


def test_it_stops_while_the_broker_says_nothing(here):
    listening = Listening(here.directory, lambda peer: time.sleep(5))
    time.sleep(0.5)
    began = time.monotonic()
    listening.close()
    assert time.monotonic() - began < 12


def test_a_collector_without_paho_says_so(here, monkeypatch, capsys):
    pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
    Path(here.directory, "edgeguard-collector.toml").write_text('[mqtt]\nurl = "mqtts://localhost"\n')
    monkeypatch.setattr(mqttclient, "available", lambda: False)
    assert collector_main(["serve", here.directory, "--listen", "127.0.0.1:0"]) == 1
    assert "apt install python3-paho-mqtt" in capsys.readouterr().err
