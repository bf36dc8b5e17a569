"""Uplink, a real mosquitto and the collector: by MQTT 5 and 3.1.1, with TLS on both sides, killed at bad moments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mosquitto import PROGRAM, Mosquitto, by_mqtt, receiving
from small_world import Device, finding, moment, state
from world import ROOT, collector, contents, join, known, status

from edgeguard.collector.enrolment import Enrolment
from edgeguard.records import compose, mqttclient, mqttlink, mqttwire, uplink
from edgeguard.records import link as clocked
from edgeguard.records.link import Target
from edgeguard.settings import Second

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
pytest.importorskip("paho.mqtt.client", reason="python3-paho-mqtt is how MQTT is spoken")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="mosquitto is not installed")
VERSIONS = {"5": (mqttclient.V5,), "3.1.1": (mqttclient.V311,)}


@pytest.fixture
def broker(device, tmp_path):
    mosquitto = Mosquitto(collector(str(tmp_path / "c"), device))
    yield mosquitto
    mosquitto.stop(signal.SIGKILL)


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "c")


def run(device: Device) -> dict:
    uplink.Uplink(device.settings).run()
    return status(device)


@pytest.mark.parametrize("version", VERSIONS)
def test_from_the_spool_to_the_database_and_back(device, directory, broker, version, monkeypatch):
    monkeypatch.setattr(mqttlink, "VERSIONS", VERSIONS[version])
    for number in range(4):
        device.record_and_seal(
            compose.finding(finding(f"/usr/bin/{number}"), moment()), compose.text("noise", moment())
        )
    before = device.segments()
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    try:
        said = run(device)
        assert (said["ok"], said["waiting"], said["sent"], said["transport"]) == (True, 0, 8, "mqtt")
        result = device.seal()
        assert (result["waiting"], result["problems"]) == (0, [])
        assert len(device.segments()) == 2  # the newest of each stream anchors its chain
        assert run(device)["sent"] == 0
        os.unlink(f"{device.inbox}/receipt.egr")  # as if the answer had been lost: sent again, stored once
        assert run(device)["sent"] == 2
    finally:
        said = serving.stop()
    assert "not" not in said, said
    held = contents(directory)
    assert {bytes(row[-1]) for row in held["segments"]} == set(before.values())
    assert (len(held["records"]), held["incidents"]) == (8, [])


def test_mqtt_and_https_are_one_log(device, directory, broker):
    """What came one way is known the other way: same ingest, same receipts."""
    serving = receiving(directory, broker.port)
    try:
        device.record_and_seal(state("one"))
        by_mqtt(device, directory, broker.port)
        assert run(device)["sent"] == 1
        device.record_and_seal(state("two"))
        join(device, directory, serving.port)
        said = run(device)
        assert (said["sent"], said["transport"]) == (1, "https")
        device.record_and_seal(state("three"))
        by_mqtt(device, directory, broker.port)
        assert run(device)["sent"] == 1
        assert device.seal()["waiting"] == 0
    finally:
        serving.stop()
    assert len(contents(directory)["segments"]) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_a_broker_without_a_collector_frees_nothing(device, directory, broker, version, monkeypatch):
    """It acknowledges each message (PUBACK) and delivers none; in MQTT 5 it says that nobody is there."""
    monkeypatch.setattr(mqttlink, "VERSIONS", VERSIONS[version])
    monkeypatch.setattr(mqttlink, "RECEIPT_S", 1)
    device.record_and_seal(state())
    before = device.segments()
    by_mqtt(device, directory, broker.port)
    said = run(device)
    assert (said["ok"], said["name"], said["waiting"], said["sent"]) == (False, "no-receipt", 1, 0)
    assert "Sending PUBACK" in broker.log()
    assert device.seal()["waiting"] == 1
    assert device.segments() == before
    monkeypatch.setattr(mqttlink, "RECEIPT_S", 30)
    serving = receiving(directory, broker.port)
    try:
        assert run(device)["ok"]
        assert device.seal()["waiting"] == 0
    finally:
        serving.stop()
    assert len(contents(directory)["segments"]) == 1


def test_the_broker_is_killed_in_the_middle_and_comes_back(device, directory, broker, monkeypatch):
    """The collector finds it again by itself, and the device on its next run; all is there once."""
    monkeypatch.setattr(mqttlink, "WELL", 1)  # one segment in a message, so that there is a middle
    for number in range(12):
        device.record_and_seal(state(f"state {number}"))
    before = device.segments()
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    posts = []
    real = mqttlink.MqttLink.post

    def post(self, *more):
        if len(posts) == 5:
            broker.stop(signal.SIGKILL)
        posts.append(1)
        return real(self, *more)

    monkeypatch.setattr(mqttlink.MqttLink, "post", post)
    try:
        said = run(device)
        assert (said["ok"], said["name"], said["sent"]) == (False, "unreachable", 5)
        assert device.segments() == before
        monkeypatch.setattr(mqttlink.MqttLink, "post", real)
        broker.start()
        for _ in range(30):
            line = serving.process.stderr.readline()
            if line.startswith("mqtt: receiving"):
                break
            assert line.startswith("mqtt: "), line
        assert run(device)["ok"]
        assert device.seal()["waiting"] == 0
    finally:
        serving.stop()
    assert {bytes(row[-1]) for row in contents(directory)["segments"]} == set(before.values())
    assert contents(directory)["incidents"] == []


def test_the_collector_is_killed_between_storing_and_answering(device, directory, broker, monkeypatch):
    monkeypatch.setattr(mqttlink, "RECEIPT_S", 2)
    device.record_and_seal(state())
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    serving.process.send_signal(signal.SIGSTOP)  # it is subscribed, and does not answer
    try:
        said = run(device)
        assert (said["name"], said["waiting"]) == ("no-receipt", 1)
        serving.stop(signal.SIGKILL)
        serving = receiving(directory, broker.port)
        monkeypatch.setattr(mqttlink, "RECEIPT_S", 30)
        said = run(device)
        assert (said["ok"], said["sent"]) == (True, 1)
        assert device.seal()["waiting"] == 0
    finally:
        serving.stop(signal.SIGKILL)
    assert len(contents(directory)["segments"]) == 1


def test_nobody_writes_for_another_or_reads_what_others_are_told(device, directory, broker):
    """The broker's ACL, as we generate it; and behind it the signature."""
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    device.record_and_seal(state())
    way = mqttlink.MqttLink(target(directory, broker.port))
    try:
        session = way._open()
        victim = bytes(16)
        session.publish(mqttwire.topic(victim, mqttwire.UP), b"")
        session.publish(mqttwire.topic(device.id, mqttwire.RX), b"fake")
        session.subscribe([mqttwire.topic(victim, mqttwire.RX)], 5)  # mosquitto grants it, and delivers nothing
        assert session.next(time.monotonic() + 3) is None
        assert way._frames.refusal == 0x87  # not authorized; MQTT 5 says so
        assert way.post(b"").status == 200
        assert session.next(time.monotonic() + 0.5) is None
        denied = [line for line in broker.log().splitlines() if "Denied PUBLISH" in line]
        assert len(denied) == 2
        assert mqttwire.topic(victim, mqttwire.UP) in denied[0]
        assert mqttwire.topic(device.id, mqttwire.RX) in denied[1]
    finally:
        way.close()
        serving.stop()
    assert contents(directory)["incidents"] == []


def target(directory: str, port: int) -> Target:
    at = known(directory, 1)
    return Target(f"mqtts://127.0.0.1:{port}", at["ca"], at["certificate"], at["key"])


def test_a_topic_is_nobodys_word(device, directory, broker):
    """Past the ACL: another's segments under our topic are refused, and neither they nor what was stored before is a
    sign of life."""
    foreign = Device(str(Path(directory).parent / "foreign"))
    foreign.seed = b"\x02" * 32
    Path(foreign.settings.paths.state, "keys/device.key").write_bytes(foreign.seed)
    foreign.record_and_seal(state("of another"))
    serving = receiving(directory, broker.port)
    way = mqttlink.MqttLink(target(directory, broker.port))
    try:
        body = b"".join([*foreign.statements().values(), *foreign.segments().values()])
        reply = way.post(body)
        assert reply.status == 200
        assert seen(directory) is None
        device.record_and_seal(state("ours"))
        body = b"".join([*device.statements().values(), *device.segments().values()])
        assert way.post(body).status == 200
        first = seen(directory)
        assert first is not None
        assert way.post(body).status == 200
        assert way.post(b"").status == 200
        assert seen(directory) == first
        assert way.post(b"nonsense").status == 400
    finally:
        way.close()
        said = serving.stop()
    assert "pump-07: segment" in said
    assert len(contents(directory)["segments"]) == 1


def seen(directory: str):
    import sqlite3

    with sqlite3.connect(f"{directory}/collector.db") as connection:
        found = connection.execute("SELECT seen FROM devices").fetchone()[0]
    connection.close()
    return found


def test_the_broker_says_how_much_it_takes(device, directory, broker, monkeypatch):
    """MQTT 5: bodies are split below it; a segment that is larger alone is told, and the others go."""
    broker.stop()
    small = Mosquitto(directory, "max_packet_size 4000")
    for number in range(12):
        device.record_and_seal(*[state(f"state {number} " + os.urandom(150).hex()) for _ in range(2)])
    device.record_and_seal(*[state(os.urandom(150).hex()) for _ in range(40)])
    giant = max(device.segments().items(), key=lambda item: len(item[1]))
    assert len(giant[1]) > 4000
    serving = receiving(directory, small.port)
    by_mqtt(device, directory, small.port)
    try:
        said = run(device)
        assert (said["name"], said["sent"]) == ("too-large", 12)
        assert said["refused"] == [{"name": giant[0], "reason": "the broker takes no more than 2976 bytes"}]
        assert device.seal()["waiting"] == 1
        device.record_and_seal(state("after it"))
        assert run(device)["sent"] == 1
    finally:
        serving.stop()
        small.stop()
    assert len(contents(directory)["segments"]) == 13


def test_a_certificate_is_renewed_by_way_of_the_broker(device, directory, broker, monkeypatch):
    from edgeguard.codec import certificates
    from edgeguard.codec.certificates import Validity

    monkeypatch.setattr(Validity, "due", lambda self, now: True)
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    first = certificates.validity(certificates.der(certificates.read(f"{directory}/devices/pump-07/client.pem")))
    device.record_and_seal(state())
    time.sleep(1.1)  # a certificate's times are in seconds
    try:
        said = run(device)
        assert said["ok"], said
        renewed = certificates.read(f"{device.inbox}/client.pem")
        assert certificates.validity(certificates.der(renewed)).ends > first.ends
        assert certificates.common_name(certificates.der(renewed)) == device.id.hex()
        assert run(device)["ok"]  # shown to the broker, who takes it
    finally:
        said = serving.stop()
    assert "pump-07: certificate renewed" in said


def test_who_was_revoked_is_refused_until_it_enrols_again(device, directory, broker):
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    device.record_and_seal(state())
    enrolment = Enrolment(directory, lambda: 1000)
    try:
        assert not enrolment.barred(device.id)
        enrolment.revoke(device.id)
        said = run(device)
        assert (said["name"], said["waiting"]) == ("refused", 1)
        assert "403" in said["error"]
        enrolment._db.execute(
            "INSERT INTO tokens (hash, name, created, expires, used, device) VALUES (x'00', 'pump-07', 0, 9, 2000, ?)",
            (device.id,),
        )
        assert run(device)["ok"]
    finally:
        serving.stop()


def test_two_workers_share_what_comes(device, directory, broker):
    """Each message goes to one of them; MQTT 5 only. (SQLite allows the two on one machine.)"""
    first = receiving(directory, broker.port, 'share = "edgeguard"\n')
    second = receiving(directory, broker.port, 'share = "edgeguard"\n')
    way = mqttlink.MqttLink(target(directory, broker.port))
    try:
        for _ in range(8):
            assert way.post(b"").status == 200
        session = way._open()
        assert session.next(time.monotonic() + 0.5) is None  # no second answer
    finally:
        way.close()
        first.stop()
        second.stop()
    passed = [line for line in broker.log().splitlines() if "Sending PUBLISH to edgeguard-collector-" in line]
    assert len(passed) == 8
    assert len({line.split("edgeguard-collector-")[1][:12] for line in passed}) == 2


def test_the_second_collector_may_be_behind_a_broker(device, directory, broker, tmp_path):
    """A fallback by another way than the first: what waits gets there, and stays here until the first has it."""
    first = collector(str(tmp_path / "first"), device)
    second = Second(**(known(directory, 1) | {"url": f"mqtts://127.0.0.1:{broker.port}"}))
    join(device, first, 1, second=second)
    device.record_and_seal(state("while the first is down"))
    serving = receiving(directory, broker.port)
    try:
        said = run(device)
        assert (said["name"], said["transport"], said["second"]["sent"]) == ("unreachable", "https", 1)
        assert "the second collector answers" in said["error"]
        assert device.seal()["waiting"] == 1
    finally:
        serving.stop()
    assert len(contents(directory)["segments"]) == 1


def test_a_budget_holds_by_mqtt_too(device, directory, broker):
    """The backlog stops where the rate says so, findings go; both directions count, with the handshake."""
    for number in range(12):
        device.record_and_seal(compose.text(f"{number}" + os.urandom(2000).hex(), moment()))
    device.record_and_seal(compose.finding(finding(), moment()))
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port, rate_bytes=100)  # a bucket of 6,000 bytes, 3,000 for the backlog
    try:
        said = run(device)
        assert said["ok"]
        assert said["retry_after"] > 0
        assert 1 < said["sent"] < 13
        assert said["waiting"] == 13 - said["sent"]
    finally:
        serving.stop()
    streams = {row[1] for row in contents(directory)["segments"]}
    assert 0 in streams


def test_a_clock_of_the_past_is_no_reason_to_be_silent(device, directory, broker, monkeypatch):
    """As for HTTPS: certificates are judged at the newest moment that is known."""
    device.record_and_seal(state())
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    monkeypatch.setattr(clocked.time, "time_ns", lambda: 1_000_000_000 * 86_400)  # the second day of 1970
    try:
        assert run(device)["ok"]
    finally:
        serving.stop()
    assert len(contents(directory)["segments"]) == 1


def test_what_may_come_is_bounded_for_each_answer_not_for_all(device, directory, broker, monkeypatch):
    monkeypatch.setattr(mqttlink, "IN_MAX", 1500)
    serving = receiving(directory, broker.port)
    way = mqttlink.MqttLink(target(directory, broker.port))
    try:
        assert [way.post(b"").status for _ in range(20)] == [200] * 20
    finally:
        way.close()
        serving.stop()


def test_bytes_are_counted_as_for_https(device, directory, broker):
    serving = receiving(directory, broker.port)
    device.record_and_seal(state())
    by_mqtt(device, directory, broker.port)
    way = mqttlink.MqttLink(target(directory, broker.port))
    try:
        body = b"".join([*device.statements().values(), *device.segments().values()])
        way.post(body)
        spent = way.spent()
        assert len(body) + 3000 < spent < len(body) + 12_000  # a whole handshake among them
        way.post(b"")
        assert 300 < way.spent() < 2000
        way.close()
        assert way.spent() < 1000
        assert way.spent() == 0
    finally:
        way.close()
        serving.stop()


def test_wrong_certificates_have_names(device, directory, broker, tmp_path):
    device.record_and_seal(state())
    stranger = collector(str(tmp_path / "stranger"), Device(str(tmp_path / "x")))
    theirs = f"{stranger}/devices/pump-07"
    cases = {
        "untrusted": {"ca": f"{theirs}/ca.pem"},
        "wrong-name": {"url": f"mqtts://127.0.0.2:{broker.port}"},
        "tls": {"certificate": f"{theirs}/client.pem", "key": f"{theirs}/client.key"},
        "settings": {"certificate": f"{directory}/mqtt.pem", "key": f"{directory}/mqtt.key"},
        "plain-http": {"url": f"mqtt://127.0.0.1:{broker.port}"},
    }
    broker.stop()
    wide = Path(broker.conf)
    wide.write_text(wide.read_text().replace(f"listener {broker.port} 127.0.0.1", f"listener {broker.port}"))
    broker.start()
    for name, changes in cases.items():
        by_mqtt(device, directory, broker.port, **changes)
        said = run(device)
        assert said["name"] == name or (name == "tls" and said["name"] == "unreachable"), (name, said)
        assert said["waiting"] == 1


def test_what_the_uplink_takes_of_memory(device, directory, broker, tmp_path):
    """In a process of its own, as on a device: at most 32 MiB. Nothing of paho is loaded for https."""
    for number in range(20):
        device.record_and_seal(*[state(f"state {number} " + os.urandom(200).hex()) for _ in range(40)])
    serving = receiving(directory, broker.port)
    by_mqtt(device, directory, broker.port)
    agent = tmp_path / "agent.toml"
    at = device.settings.uplink
    keys = ("url", "ca", "certificate", "key", "collector_key")
    agent.write_text(
        f'[paths]\nexchange = "{device.settings.paths.exchange}"\n[uplink]\n'
        + "".join(f'{key} = "{getattr(at, key)}"\n' for key in keys)
    )
    words = (
        "import resource, runpy, sys; sys.argv[1:] = ['--settings', sys.argv[1]]\n"
        "try: runpy.run_path('packaging/bin/edgeguard-uplink', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "status = open('/proc/self/status').read(); peak = int(status.split('VmHWM:')[1].split()[0])\n"
        "print(code, peak, 'paho' in sys.modules)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", words, str(agent)], cwd=ROOT, capture_output=True, timeout=60, check=True, text=True
        )
    finally:
        serving.stop()
    code, peak, loaded = done.stdout.split()
    print(done.stdout)
    assert (code, loaded) == ("0", "True"), done.stderr
    assert int(peak) <= 32 * 1024
    assert status(device)["sent"] == 20
