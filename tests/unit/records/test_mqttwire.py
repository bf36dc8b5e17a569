"""Topics, replies and packets of MQTT: what is ours reads as it was written, anything else is one of our errors."""

import socket
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.codec import certificates
from edgeguard.errors import DecodeError
from edgeguard.records import link, mqttclient, mqttwire, transport
from edgeguard.records.link import Target, UplinkError
from edgeguard.records.mqttwire import NOBODY, Answer, Frames
from edgeguard.settings import transport as named

DEVICE = bytes(range(16))

answers = st.builds(
    Answer,
    st.binary(min_size=16, max_size=16),
    st.integers(100, 599),
    st.none() | st.integers(1, mqttwire.RETRY_MAX),
    st.binary(max_size=200),
)


@given(answers)
def test_a_reply_reads_as_it_is_written(answer):
    assert mqttwire.decode(mqttwire.encode(answer)) == answer


@given(st.binary(max_size=300) | answers.map(mqttwire.encode).flatmap(lambda data: st.integers(0, len(data) - 1).map(
    lambda at: data[:at] + bytes([data[at] ^ 0x21]) + data[at + 1 :])))  # fmt: skip
def test_any_reply_is_one_or_our_error(data):
    try:
        answer = mqttwire.decode(data)
    except DecodeError:
        return
    assert mqttwire.encode(answer) == data or answer.retry_after == mqttwire.RETRY_MAX


@given(st.binary(min_size=16, max_size=16), st.sampled_from([mqttwire.UP, mqttwire.RENEW]))
def test_a_topic_reads_as_it_is_written(device, kind):
    assert mqttwire.parse_topic(mqttwire.topic(device, kind)) == (device, kind)


@pytest.mark.parametrize(
    "topic",
    [
        "", "eg/1", "eg/1/+/up", "eg/1/#", f"eg/1/{'0' * 32}/rx", f"eg/1/{'A' * 32}/up", f"eg/1/{'0' * 31}/up",
        f"eg/1/{'0' * 34}/up", f"eg/2/{'0' * 32}/up", f"/eg/1/{'0' * 32}/up", f"eg/1/{'0' * 32}/up/", "x" * 65536,
        f"eg/1/{' 0' * 16}/up", f"eg/1/{'0' * 32}/up\0", "eg/1/" + "\u0660" * 32 + "/up",
    ],
)  # fmt: skip
def test_a_topic_of_another_is_refused(topic):
    with pytest.raises(DecodeError):
        mqttwire.parse_topic(topic)


def packet(kind: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([kind, len(content)]) + content


@given(st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=100)), max_size=20), st.data())
def test_packets_are_followed_however_they_are_cut(packets, data):
    stream = b"".join(packet(*each) for each in packets)
    refusals = [c[2] for kind, c in packets if kind & 0xF0 == 0x40 and len(c) > 2 and (c[2] >= 0x80 or c[2] == NOBODY)]
    frames = Frames(100, len(stream))
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        frames.feed(stream[:count])
        stream = stream[count:]
    assert frames.refusal == (refusals[-1] if refusals else 0)


def test_packets_are_bounded_each_and_together():
    frames = Frames(100, 1000)
    for _ in range(9):
        frames.feed(packet(0x30, bytes(100)))
    with pytest.raises(DecodeError, match="more than 1000 bytes"):
        frames.feed(packet(0x30, bytes(100)))
    frames.grant()
    frames.feed(packet(0x30, bytes(100)))
    with pytest.raises(DecodeError, match="a packet of more than 100 bytes"):
        frames.feed(b"\x30\x65")
    with pytest.raises(DecodeError, match="does not end"):
        Frames(1 << 30).feed(b"\x30\x80\x80\x80\x80")
    frames = Frames(100)
    frames.feed(b"\x40\x03\x00\x01\x87")
    assert frames.refusal == 0x87
    frames.grant()
    assert frames.refusal == 0


def test_a_url_names_the_way():
    assert (named("mqtts://b"), named("https://c"), named("http://c"), named("")) == ("mqtt", "https", "https", "")
    assert isinstance(transport.way(Target("https://c:1", "", "", "")), link.Link)
    for url in ("mqtt://b", "mqtts+x://b"):
        with pytest.raises(UplinkError, match="only https and mqtts"):
            transport.way(Target(url, "", "", ""))


@pytest.mark.parametrize("url", ["mqtts://", "mqtts://b/x", "mqtts://a@b", "mqtts://b:99999", "mqtts://b?x=1"])
def test_a_url_of_a_broker_that_is_none(url):
    pytest.importorskip("paho.mqtt.client", reason="python3-paho-mqtt is how MQTT is spoken")
    with pytest.raises(UplinkError):
        transport.way(Target(url, "", "", ""))


def test_https_loads_nothing_of_mqtt():
    import subprocess

    words = (
        "import sys; from edgeguard.records import uplink, transport; from edgeguard.records.link import Target;"
        "transport.way(Target('https://c:1', '', '', ''));"
        "print(sorted(name for name in sys.modules if 'mqtt' in name))"
    )
    top = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", words], cwd=top, capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_the_common_name_of_certificates(tmp_path):
    """One of ours, and some of others: none, two, or one in another alphabet."""
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    oid = x509.oid.NameOID

    def made(*names: x509.NameAttribute) -> bytes:
        builder = x509.CertificateBuilder().subject_name(x509.Name(names)).issuer_name(x509.Name([]))
        builder = builder.public_key(key.public_key()).serial_number(1)
        builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        certificate = builder.not_valid_after(datetime(2050, 1, 1, tzinfo=UTC)).sign(key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.DER)

    name = x509.NameAttribute(oid.COMMON_NAME, DEVICE.hex())
    other = x509.NameAttribute(oid.ORGANIZATION_NAME, "Northfield")
    assert certificates.common_name(made(name)) == DEVICE.hex()
    assert certificates.common_name(made(other, name)) == DEVICE.hex()
    for names in ((), (other,), (name, name), (x509.NameAttribute(oid.COMMON_NAME, "é"),)):
        with pytest.raises(DecodeError):
            certificates.common_name(made(*names))


# --- paho, and whatever a broker sends -----------------------------------------------------------------------------


class Plain(socket.socket):
    """A socket that has what TLS has."""

    def pending(self) -> int:
        return 0


def heard(data: bytes, version: int) -> None:
    """A session with a broker that says these bytes and ends."""
    near, far = socket.socketpair()
    line = Plain(fileno=near.detach())
    frames = Frames(5000, 64 * 1024)
    with line, far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        session = mqttclient.Session(line, frames, version, "x", "broker", 60)
        session.connect(2, 5000)
        session.subscribe(["a"], 2)
        session.publish("b", b"c")
        until = time.monotonic() + 2
        while session.next(until) is not None:
            assert time.monotonic() < until


SUBACK = {5: b"\x90\x04\x00\x01\x00\x01", 4: b"\x90\x03\x00\x01\x01"}
CONNACK = {5: b"\x20\x03\x00\x00\x00", 4: b"\x20\x02\x00\x00"}
stages = st.sampled_from([0, 1, 2])


@given(st.sampled_from([5, 4]), stages, st.binary(max_size=60), st.sampled_from([0x20, 0x30, 0x32, 0x34, 0x40, 0x50,
       0x62, 0x70, 0x90, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0]))  # fmt: skip
def test_any_bytes_of_a_broker_end_in_our_error(version, stage, content, kind):
    """Whatever paho's parser runs into, the uplink sees one error under a name."""
    pytest.importorskip("paho.mqtt.client", reason="python3-paho-mqtt is how MQTT is spoken")
    before = (CONNACK[version] if stage else b"") + (SUBACK[version] if stage > 1 else b"")
    for data in (packet(kind, content), content):
        with pytest.raises(UplinkError) as told:
            heard(before + data, version)
        assert told.value.name in {"unreachable", "bad-reply", "oversized-reply", "refused", "timeout"}
        assert str(told.value).isprintable()
