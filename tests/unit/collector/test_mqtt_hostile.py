"""A broker that does what it likes: nothing unsent leaves the device, nothing grows or waits for ever, and an honest
one gets all afterwards. Its certificate is one of our CA: a broker that was taken over."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_broker import CONNACK, PUBACK, PUBLISH, SUBACK, Peer, Scripted, length, message, packet
from small_world import Device, moment, state
from test_hostile_collector import ALL_HELD, EVERYTHING, FAR, STRANGER
from world import ROOT, Serving, collector, contents, join, known, status

from edgeguard.codec import cose
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.store import connect
from edgeguard.records import compose, mqttclient, mqttlink, mqttwire, receipts, uplink
from edgeguard.records.mqttwire import RX, Answer, mark
from edgeguard.records.receipts import Receipt
from edgeguard.settings import Uplink

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
pytest.importorskip("paho.mqtt.client", reason="python3-paho-mqtt is how MQTT is spoken")


@pytest.fixture
def ours(device, tmp_path):
    """A collector's directory, and a device with a few segments."""
    directory = collector(str(tmp_path / "c"), device)
    for number in range(3):
        device.record_and_seal(state(f"state {number}"), compose.text("noise", moment()))
    return directory


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    for name in ("CONNACK_S", "SUBACK_S", "RECEIPT_S"):
        monkeypatch.setattr(mqttlink, name, 1)


@pytest.fixture
def patient(soon, monkeypatch):
    """For a broker that answers: a machine that is busy is no reason to fail."""
    for name in ("CONNACK_S", "SUBACK_S", "RECEIPT_S"):
        monkeypatch.setattr(mqttlink, name, 30)


def by_mqtt(device: Device, directory: str, port: int) -> None:
    at = known(directory, 1) | {"url": f"mqtts://127.0.0.1:{port}"}
    device.settings = device.settings._replace(uplink=Uplink(**at))


def run(device: Device, directory: str, script, *, seal: bool = True) -> dict:
    """`seal`: and have what came back judged by the sealer, who must let go of nothing."""
    broker = Scripted(directory, script)
    by_mqtt(device, directory, broker.port)
    before = device.segments()
    try:
        uplink.Uplink(device.settings).run()
        if seal:
            device.seal()
        assert device.segments().items() >= before.items()
    finally:
        broker.close()
    return status(device) | {"connections": broker.connections}


def all_arrives(device: Device, directory: str, before: dict) -> None:
    """An honest collector gets all of it afterwards."""
    device.record_and_seal(state("later"))
    serving = Serving(directory)
    join(device, directory, serving.port)
    try:
        assert uplink.Uplink(device.settings).run() == 0
        assert status(device)["waiting"] == 0
    finally:
        serving.stop()
    assert {bytes(row[-1]) for row in contents(directory)["segments"]} >= set(before.values())


# --- silence, and ends -----------------------------------------------------------------------------------------------


def silent_after(*steps: str):
    def script(peer: Peer) -> None:
        for step in steps:
            getattr(peer, step)()
        time.sleep(4)

    return script


def ends_after(*steps: str):
    def script(peer: Peer) -> None:
        for step in steps:
            getattr(peer, step)()

    return script


def refuses(code: int):
    def script(peer: Peer) -> None:
        peer.read()
        peer.send(CONNACK, bytes([0, code]) + peer.properties())

    return script


def no_room(peer: Peer) -> None:
    peer.welcome()
    asked = peer.read()
    peer.send(SUBACK, asked.content[:2] + peer.properties() + b"\x80")
    peer.read()


def dismissed(peer: Peer) -> None:
    """DISCONNECT by the broker, which MQTT 5 knows: the session is taken over."""
    peer.up_to_post()
    peer.send(14, b"\x8e\0")


SILENT = {
    "nothing": (silent_after(), "timeout"),
    "no CONNACK": (silent_after("read"), "timeout"),
    "no SUBACK": (silent_after("welcome"), "timeout"),
    "only PUBACK": (silent_after("welcome", "subscribed", "published"), "no-receipt"),
    "no PUBACK": (silent_after("welcome", "subscribed"), "no-receipt"),
    "ends at once": (ends_after(), "unreachable"),
    "ends after CONNECT": (ends_after("read"), "unreachable"),
    "ends after CONNACK": (ends_after("welcome"), "unreachable"),
    "ends after SUBACK": (ends_after("welcome", "subscribed"), "unreachable"),
    "ends after PUBACK": (ends_after("welcome", "subscribed", "published"), "unreachable"),
    "dismissed": (dismissed, "unreachable"),
    "refused": (refuses(0x87), "refused"),
    "no such version": (refuses(1), {"refused", "unreachable"}),
    "no reading": (no_room, "refused"),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_broker_that_stops_anywhere_has_a_name_and_costs_a_moment(device, ours, name):
    script, word = SILENT[name]
    before, began = device.segments(), time.monotonic()
    said = run(device, ours, script)
    assert said["name"] in word if isinstance(word, set) else said["name"] == word, said
    assert (said["ok"], said["waiting"], said["sent"]) == (False, 6, 0)
    assert time.monotonic() - began < 20
    assert said["connections"] <= 2
    all_arrives(device, ours, before)


def test_an_exchange_has_an_end_whatever_drips(device, ours, monkeypatch):
    monkeypatch.setattr(mqttlink, "EXCHANGE_S", 1)
    monkeypatch.setattr(mqttlink, "CONNACK_S", 60)

    def drips(peer: Peer) -> None:
        peer.read()
        peer.line.sendall(b"\x20\x7f")
        for _ in range(100):
            peer.line.sendall(b"\0")
            time.sleep(0.1)

    began = time.monotonic()
    assert run(device, ours, drips)["name"] == "timeout"
    assert time.monotonic() - began < 8  # the drip alone would last 10 s


def test_a_broker_of_3_1_1_is_spoken_to_as_such(device, ours, patient):
    """It hangs up on what it does not know, or says so (which a client of 5 reads as reason 132)."""
    for impolite in (True, False):
        versions = []

        def script(peer: Peer, *, impolite: bool = impolite, versions: list = versions) -> None:
            asked = peer.read()
            versions.append(peer.version)
            if asked.content[6] == 5:
                if not impolite:
                    peer.line.sendall(packet(CONNACK, b"\0\1"))
                return
            peer.send(CONNACK, b"\0\0")
            peer.subscribed()
            sent = peer.published()
            peer.publish(f"eg/1/{device.id.hex()}/rx", honest(device, ours, sent.payload))
            peer.until_gone()

        assert run(device, ours, script, seal=False)["ok"]
        assert versions == [5, 4]
        Path(device.inbox, receipts.FILE).unlink()


def honest(device: Device, directory: str, body: bytes) -> bytes:
    """What the collector would answer."""
    connection = connect(f"{directory}/collector.db")
    ingest = Ingest(connection, Path(directory, "collector.key").read_bytes(), lambda: time.time_ns() // 1_000_000)
    receipt = ingest.take(body, ingest.device(device.id))[1]
    connection.close()
    return mqttwire.encode(Answer(mark(body), 200, None, receipt))


# --- floods ----------------------------------------------------------------------------------------------------------


def endless(make):
    def script(peer: Peer) -> None:
        sent = peer.up_to_post()
        topic = sent.topic.rpartition("/")[0] + "/" + RX
        data = make(topic, peer.version)
        while True:
            peer.line.sendall(data)

    return script


def before_connack(data: bytes):
    def script(peer: Peer) -> None:
        peer.read()
        while True:
            peer.line.sendall(data)

    return script


GIANT = bytes([PUBLISH << 4]) + length(200_000_000)
FLOODS = {
    "a giant message": endless(lambda topic, version: GIANT + b"A" * 65536),
    "a giant before CONNACK": before_connack(GIANT + b"A" * 65536),
    "a giant CONNACK": before_connack(bytes([CONNACK << 4]) + length(200_000_000) + b"\0" * 65536),
    "a length without end": endless(lambda topic, version: b"\x30" + b"\xff" * 65536),
    "messages": endless(lambda topic, version: message(topic, b"A" * 3000, version)),
    "messages of QoS 2": endless(
        lambda topic, version: b"".join(message(topic, b"A", version, qos=2, number=n) for n in range(1, 60_000))
    ),
    "other topics": endless(lambda topic, version: message("x/y", b"A", version)),
    "pings": endless(lambda topic, version: b"\xd0\0" * 10_000),
    "acknowledgements": endless(lambda topic, version: packet(PUBACK, b"\0\x09") * 5000),
    "no packet at all": endless(lambda topic, version: b"\0" * 65536),
    "another protocol": before_connack(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}
FLOOD_NAMES = {"oversized-reply", "bad-reply", "unreachable", "no-receipt"}  # the last: a busy machine reads slowly


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_costs_neither_memory_nor_time(device, ours, name, tmp_path):
    """In a process of its own, as on a device: the uplink's peak is what it is without a flood."""
    broker = Scripted(ours, FLOODS[name])
    by_mqtt(device, ours, broker.port)
    before = device.segments()
    path = tmp_path / "agent.toml"
    at = device.settings.uplink
    lines = [f'{key} = "{getattr(at, key)}"' for key in ("url", "ca", "certificate", "key", "collector_key")]
    path.write_text(f'[paths]\nexchange = "{device.settings.paths.exchange}"\n[uplink]\n' + "\n".join(lines) + "\n")
    words = (
        "import json, resource, sys; from edgeguard.records import mqttlink, uplink;"
        "from edgeguard.settings import load;"
        "mqttlink.RECEIPT_S = mqttlink.CONNACK_S = 9; start = resource.getrusage(resource.RUSAGE_SELF);"
        "code = uplink.Uplink(load(sys.argv[1])).run(); use = resource.getrusage(resource.RUSAGE_SELF);"
        "print(json.dumps([code, use.ru_maxrss - start.ru_maxrss, use.ru_utime + use.ru_stime]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", words, str(path)], cwd=ROOT, capture_output=True, timeout=60, check=True
        )
    finally:
        broker.close()
    code, grown, cpu = json.loads(done.stdout)
    assert code == uplink.EX_TEMPFAIL
    assert grown < 12_000  # kB: TLS alone is 6,000
    assert cpu < 3
    assert status(device)["name"] in FLOOD_NAMES, status(device)
    assert device.segments() == before


# --- lies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", ["stranger", "collector"])
@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(b"D" * 16, FAR, EVERYTHING),
        Receipt(b"D" * 16, FAR, (), ALL_HELD),
        Receipt(bytes(16), FAR, EVERYTHING, ALL_HELD),
        Receipt(b"D" * 16, 0),
        Receipt(b"D" * 16, FAR),
    ],
    ids=["all confirmed", "all held", "another device", "nothing, long ago", "nothing"],
)
def test_a_receipt_that_lies_keeps_nothing_from_being_sent(device, ours, receipt, signer):
    receipt = receipt._replace(device=device.id if receipt.device == b"D" * 16 else receipt.device)
    seed = STRANGER if signer == "stranger" else Path(ours, "collector.key").read_bytes()
    signed = cose.sign1(receipts.encode(receipt), seed, cose.RECEIPT_AAD)

    def script(peer: Peer) -> None:
        sent = peer.up_to_post()
        while True:
            answer = mqttwire.encode(Answer(mark(sent.payload), 200, None, signed))
            peer.publish(sent.topic.rpartition("/")[0] + "/" + RX, answer)
            sent = peer.published()

    before = device.segments()
    run(device, ours, script)
    run(device, ours, script)
    all_arrives(device, ours, before)


def test_what_answers_something_else_is_no_answer(device, ours, patient):
    """Retained, to another body, for another device, no reply at all: passed over, and the true one counts."""

    def script(peer: Peer) -> None:
        sent = peer.up_to_post()
        topic = sent.topic.rpartition("/")[0] + "/" + RX
        good = honest(device, ours, sent.payload)
        lie = cose.sign1(receipts.encode(Receipt(device.id, FAR, EVERYTHING)), STRANGER, cose.RECEIPT_AAD)
        peer.publish(topic, mqttwire.encode(Answer(mark(sent.payload), 200, None, lie)), retain=True)
        peer.publish(topic, mqttwire.encode(Answer(mark(b"other"), 200, None, lie)))
        peer.publish(f"eg/1/{'0' * 32}/rx", mqttwire.encode(Answer(mark(sent.payload), 200, None, lie)))
        for junk in (b"", b"\xff" * 100, b"\x85\x01\x41", lie, good[:-1], good + b"\0"):
            peer.publish(topic, junk)
        peer.publish(topic, good, qos=0)
        peer.until_gone()

    said = run(device, ours, script, seal=False)
    assert (said["ok"], said["sent"]) == (True, 6), said
    assert device.seal()["problems"] == []
    held = receipts.unverified(Path(device.inbox, receipts.FILE).read_bytes())
    assert held.time < FAR


def test_an_old_receipt_is_not_taken_for_a_new_one(device, ours, patient):
    """The broker keeps what the collector once said and says it again, in a reply that looks right."""
    kept = []

    def truthful(peer: Peer) -> None:
        sent = peer.up_to_post()
        kept.append(mqttwire.decode(honest(device, ours, sent.payload)).body)
        topic = sent.topic.rpartition("/")[0] + "/" + RX
        peer.publish(topic, mqttwire.encode(Answer(mark(sent.payload), 200, None, kept[0])))
        peer.until_gone()

    def again(peer: Peer) -> None:
        sent = peer.up_to_post()
        topic = sent.topic.rpartition("/")[0] + "/" + RX
        peer.publish(topic, mqttwire.encode(Answer(mark(sent.payload), 200, None, kept[0])))
        peer.until_gone()

    broker = Scripted(ours, truthful)
    by_mqtt(device, ours, broker.port)
    assert uplink.Uplink(device.settings).run() == 0
    broker.close()
    assert device.seal()["waiting"] == 0
    device.record_and_seal(state("new"))
    assert device.seal()["waiting"] == 1
    before = device.segments()
    said = run(device, ours, again)
    assert (said["name"], said["waiting"], said["sent"]) == ("old-receipt", 1, 0)
    all_arrives(device, ours, before)


@pytest.mark.parametrize("status_", [400, 403, 413, 429, 503])
def test_the_collectors_no_is_heard(device, ours, status_, patient):
    def script(peer: Peer) -> None:
        sent = peer.up_to_post()
        topic = sent.topic.rpartition("/")[0] + "/" + RX
        peer.publish(topic, mqttwire.encode(Answer(mark(sent.payload), status_, 120, b"no \x1b[31m")))
        peer.until_gone()

    said = run(device, ours, script)
    assert said["name"] == ("busy" if status_ in {429, 503} else "refused")
    assert "\x1b" not in said["error"]
    assert said["retry_after"] == 120
    broker = Scripted(ours, script)  # and the rest that it asked for is kept
    by_mqtt(device, ours, broker.port)
    uplink.Uplink(device.settings).run()
    broker.close()
    assert broker.connections == 0


class Cut:
    """A line of which the client hears so many bytes."""

    def __init__(self, line, left: int) -> None:
        self._line, self._left = line, left
        self.heard = 0

    def recv(self, size: int) -> bytes:
        if self._left <= self.heard:
            return b""
        data = self._line.recv(min(size, self._left - self.heard))
        self.heard += len(data)
        return data

    def __getattr__(self, name: str):
        return getattr(self._line, name)


def test_cut_anywhere(device, ours, monkeypatch, patient):
    """After any number of bytes from the broker: a name, and nothing is gone."""

    def script(peer: Peer) -> None:
        sent = peer.up_to_post()
        peer.publish(sent.topic.rpartition("/")[0] + "/" + RX, honest(device, ours, sent.payload))
        peer.until_gone()

    lines: list[Cut] = []
    real = mqttclient.Session.__init__
    left = FAR

    def cut(self, line, *more) -> None:
        lines.append(Cut(line, left))
        real(self, lines[-1], *more)

    monkeypatch.setattr(mqttclient.Session, "__init__", cut)
    before = device.segments()
    assert run(device, ours, script, seal=False)["ok"]
    total = lines[0].heard
    assert total > 200
    names = set()
    for place in (*range(16), *range(16, total - 1, 41), total - 1):
        left = place
        Path(device.inbox, receipts.FILE).unlink(missing_ok=True)
        said = run(device, ours, script, seal=False)
        names.add(said["name"])
        assert not said["ok"], place
        assert not Path(device.inbox, receipts.FILE).exists()
        assert device.segments() == before
    assert names <= {"unreachable", "timeout", "no-receipt"}
    left = FAR
    assert run(device, ours, script, seal=False)["ok"]
    assert device.seal()["problems"] == []


def test_paho_is_missing(device, ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    monkeypatch.setitem(sys.modules, "paho", None)
    said = run(device, ours, ends_after())
    assert said["name"] == "settings"
    assert "apt install python3-paho-mqtt" in said["error"]
    assert said["connections"] == 0
