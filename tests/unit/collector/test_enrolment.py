"""From a token to a certificate, its renewal and its end; and what time it is when the clock does not know."""

import json
import os
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from small_world import Device, state
from world import ROOT, Serving, status

from edgeguard.cli.main import main as edgeguard
from edgeguard.codec import cbor, certificates, cose
from edgeguard.collector import authority
from edgeguard.collector.enrolment import Enrolment, EnrolmentRefused
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import main as collector_main
from edgeguard.collector.store import connect
from edgeguard.records import clock, link, renewal, uplink
from edgeguard.settings import load
from tests import softtpm

aiohttp = pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
from edgeguard.collector.enrolling import ATTEMPTS_EACH, ATTEMPTS_MAX, Attempts  # noqa: E402 - needs aiohttp

NOW = 1_795_600_000_000


class World:
    """A collector that enrols, and a device that has nothing but its own key."""

    def __init__(self, device: Device, root: Path) -> None:
        self.device = device
        self.root = root
        self.directory = str(root / "c")
        assert collector_main(["init", self.directory]) == 0
        self.fingerprint = authority.fingerprint(self.directory)
        self.serving = Serving(self.directory, 0, "--enroll", "127.0.0.1:0")
        line = self.serving.process.stderr.readline()
        self.door = int(line.rpartition(":")[2])
        self.settings = root / "agent.toml"
        paths, base = device.settings.paths, root / "etc"
        self.settings.write_text(
            f'[paths]\nstate = "{paths.state}"\nexchange = "{paths.exchange}"\nruntime = "{paths.runtime}"\n'
            f'[uplink]\nurl = "https://127.0.0.1:{self.serving.port}"\nca = "{base}/ca.pem"\n'
            f'certificate = "{base}/client.pem"\nkey = "{base}/client.key"\ncollector_key = "{base}/collector.pub"\n'
            f'export_key = "{base}/operator.pub"\n'
        )
        device.settings = load(str(self.settings))

    def token(self, capsys, name: str = "pump-07") -> str:
        capsys.readouterr()
        assert collector_main(["token", self.directory, "--name", name]) == 0
        return capsys.readouterr().out.splitlines()[0].rpartition(" ")[2]

    def enroll(self, token: str, fingerprint: str = "", url: str = "") -> int:
        return edgeguard(
            ["enroll", url or f"https://127.0.0.1:{self.door}", "--token", token,
             "--ca-fingerprint", fingerprint or self.fingerprint, "--settings", str(self.settings)]
        )  # fmt: skip

    def send(self, text: str = "x") -> dict:
        self.device.record_and_seal(state(text))
        uplink.Uplink(self.device.settings).run()
        return status(self.device)


@pytest.fixture
def world(device, tmp_path):
    world = World(device, tmp_path)
    yield world
    world.serving.stop()


def test_a_token_becomes_a_certificate_that_sends(world, device, capsys):
    assert collector_main(["operator-key", world.directory]) == 0
    token = world.token(capsys)
    assert len(token) == 26 + 6
    assert world.enroll(token.lower().replace("-", " ")) == 0
    assert "Enrolled as pump-07" in capsys.readouterr().out
    modes = {name: os.stat(world.root / "etc" / name).st_mode & 0o777 for name in os.listdir(world.root / "etc")}
    assert modes == {
        "ca.pem": 0o644, "client.pem": 0o644, "client.key": 0o640, "collector.pub": 0o644, "operator.pub": 0o644,
    }  # fmt: skip
    said = world.send()
    assert (said["ok"], said["waiting"]) == (True, 0)
    assert device.seal()["waiting"] == 0


def test_a_token_is_good_once_for_one_name_and_not_for_ever(world, device, tmp_path, capsys):
    token = world.token(capsys)
    assert world.enroll(token) == 0
    assert world.enroll(token) == 1
    assert "403" in capsys.readouterr().err
    assert world.enroll(world.token(capsys, "pump-08")) == 1  # this key is pump-07
    assert world.enroll(world.token(capsys)) == 0  # the same device once more, with a token of its own
    assert world.enroll("AAAA-BBBB") == 1
    assert world.enroll("") == 64
    assert world.enroll("A" * 65) == 64
    capsys.readouterr()
    said = world.serving.stop()
    for words in ("was used already", "is known as pump-07", "a token that is none", "pump-07 enrolled from 127.0.0.1"):
        assert words in said


def test_another_collector_is_no_collector(world, tmp_path, capsys):
    token = world.token(capsys)
    assert world.enroll(token, fingerprint="00" * 32) == 1
    assert "another collector" in capsys.readouterr().err
    assert world.enroll(token, fingerprint="xyz") == 64
    assert world.enroll(token, url=f"http://127.0.0.1:{world.door}") == 1
    assert world.enroll(token, url=f"https://127.0.0.1:{world.serving.port}") == 1  # the port for certificates
    assert not os.path.exists(world.root / "etc" / "client.key")
    assert (
        world.enroll(token, fingerprint=":".join(world.fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()) == 0
    )
    capsys.readouterr()


def enrolment(tmp_path: Path) -> tuple[Enrolment, Ingest, list[int]]:
    clock_ = [NOW]
    database = connect(str(tmp_path / "collector.db"))
    return Enrolment(str(tmp_path), lambda: clock_[0]), Ingest(database, b"\x09" * 32, lambda: clock_[0]), clock_


def test_tokens_expire_and_are_not_in_the_file(tmp_path):
    book, ingest, clock_ = enrolment(tmp_path)
    public = cose.public_of(b"\x01" * 32)
    token = book.token("pump", 60)
    assert token.replace("-", "").encode() not in (tmp_path / "enrolment.db").read_bytes()
    clock_[0] += 61_000
    with pytest.raises(EnrolmentRefused, match="expired"):
        book.redeem(token, public, ingest)
    assert ingest.device_of(public) is None
    fresh = book.token("pump", 60)
    assert book.redeem(fresh, public, ingest).name == "pump"
    with pytest.raises(EnrolmentRefused, match="used"):
        book.redeem(fresh, cose.public_of(b"\x02" * 32), ingest)


def test_a_failure_leaves_the_token_good(tmp_path, monkeypatch):
    book, ingest, _ = enrolment(tmp_path)
    public = cose.public_of(b"\x01" * 32)
    token = book.token("pump", 60)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "add_device", full)
        with pytest.raises(sqlite3.OperationalError):
            book.redeem(token, public, ingest)
    assert book.redeem(token, public, ingest).name == "pump"


def test_attempts_are_bounded():
    clock_ = [0.0]
    attempts = Attempts(lambda: clock_[0])
    assert [attempts.allow("a") for _ in range(ATTEMPTS_EACH + 1)] == [True] * ATTEMPTS_EACH + [False]
    assert not any(attempts.allow("a") for _ in range(1000))
    assert sum(attempts.allow(str(number)) for number in range(1000)) == ATTEMPTS_MAX - ATTEMPTS_EACH
    clock_[0] = 61.0
    assert attempts.allow("a")
    assert len(attempts._count) == 1


def test_whoever_asks_too_often_waits(world, capsys):
    codes = [world.enroll("AAAA") for _ in range(ATTEMPTS_EACH + 2)]
    assert set(codes) == {1}
    assert "429" in capsys.readouterr().err


def body(device: Device, **changes) -> bytes:
    parts = {"version": 1, "public": device.public, "token": "AAAA", "csr": certificates.request("x")[1]} | changes
    return cose.sign1(cbor.encode(list(parts.values())), device.seed, cose.ENROL_AAD)


def test_a_request_that_is_none_is_refused(world, device, capsys):
    (world.root / "ca.pem").write_bytes(Path(world.directory, "ca.pem").read_bytes())
    weak = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak = weak.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    bodies = [
        b"", b"x" * 9000, body(device, version=2), body(device, public=b"x"), body(device, token=7),
        body(device, public=cose.public_of(b"\x05" * 32)), body(device, csr=b"\x30\x00"),
        body(device, token=world.token(capsys), csr=weak.public_bytes(serialization.Encoding.DER)),
    ]  # fmt: skip
    for number, data in enumerate(bodies):
        line = link.Link(link.Target(f"https://127.0.0.1:{world.door}", str(world.root / "ca.pem"), "", ""))
        assert line.post(data, "/v1/enroll").status in {403, 413, 429}, number
        line.close()
    with sqlite3.connect(f"{world.directory}/enrolment.db") as book:
        assert book.execute("SELECT count(*) FROM tokens WHERE used IS NOT NULL").fetchone() == (0,)


def test_a_revoked_device_is_refused_at_once_and_may_come_back(world, device, capsys):
    assert world.enroll(world.token(capsys)) == 0
    assert world.send()["ok"]
    uplink_settings = device.settings.uplink
    line = link.Link(
        link.Target(uplink_settings.url, uplink_settings.ca, uplink_settings.certificate, uplink_settings.key)
    )
    assert line.post(b"").status == 200
    time.sleep(1.1)  # a certificate tells whole seconds
    assert collector_main(["revoke", world.directory, "pump-07"]) == 0
    assert line.post(b"").status == 403  # on the connection that stands
    assert line.post(b"", renewal.PATH).status == 403
    line.close()
    said = world.send()
    assert (said["name"], said["waiting"]) == ("refused", 1)
    time.sleep(1.1)
    assert world.enroll(world.token(capsys)) == 0
    said = world.send()
    assert (said["ok"], said["waiting"]) == (True, 0)
    assert collector_main(["revoke", world.directory, "nobody"]) == 64
    capsys.readouterr()


def issue(world: World, target: Path, begins: timedelta, ends: timedelta, key_file: str = "") -> None:
    """A device's certificate by the collector's CA with other times, and its key."""
    ca = x509.load_pem_x509_certificate(Path(world.directory, "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key(Path(world.directory, "ca.key").read_bytes(), None)
    if key_file:
        key = serialization.load_pem_private_key(Path(key_file).read_bytes(), None)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(tzinfo=None)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, world.device.id.hex())])
    made = x509.CertificateBuilder(ca.subject, name, key.public_key(), 9, now + begins, now + ends)
    target.write_bytes(made.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


DAY = timedelta(days=1)


def test_a_certificate_is_renewed_when_a_third_is_left(world, device, capsys):
    assert world.enroll(world.token(capsys)) == 0
    key = f"{world.root}/etc/client.key"
    renewed = Path(device.inbox, "client.pem")
    issue(world, world.root / "etc/client.pem", -50 * DAY, 40 * DAY, key)
    assert world.send()["ok"]
    assert not renewed.exists()
    issue(world, world.root / "etc/client.pem", -70 * DAY, 20 * DAY, key)
    assert world.send()["ok"]
    fresh = certificates.validity(certificates.der(renewed.read_bytes()))
    assert fresh.ends > time.time() * 1000 + 800 * 86_400_000
    issue(world, world.root / "etc/client.pem", -70 * DAY, -DAY, key)  # the first has expired: the renewed one is shown
    assert world.send()["ok"]
    assert "certificate renewed" in world.serving.stop()


@pytest.mark.parametrize("bad", ["of another key", "ending sooner", "garbage", "of a stranger"])
def test_a_renewed_certificate_that_does_not_work_is_not_used(world, device, capsys, tmp_path, bad):
    assert world.enroll(world.token(capsys)) == 0
    key = f"{world.root}/etc/client.key"
    renewed = Path(device.inbox, "client.pem")
    if bad == "of another key":
        issue(world, renewed, -DAY, 2000 * DAY)
    elif bad == "ending sooner":
        issue(world, renewed, -DAY, DAY, key)
    elif bad == "garbage":
        renewed.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    else:
        world.directory = str(tmp_path / "stranger")
        assert collector_main(["init", world.directory]) == 0
        issue(world, renewed, -DAY, 2000 * DAY, key)
        assert world.send()["ok"] is False  # the collector does not take it: back to the first
        assert not renewed.exists()
    assert world.send()["ok"]
    capsys.readouterr()


def test_a_renewal_that_is_worth_nothing_is_told_and_changes_nothing(world, device, capsys, monkeypatch):
    assert world.enroll(world.token(capsys)) == 0
    key = f"{world.root}/etc/client.key"
    issue(world, world.root / "etc/client.pem", -70 * DAY, 20 * DAY, key)
    issue(world, world.root / "short.pem", -70 * DAY, 10 * DAY, key)
    issue(world, world.root / "other.pem", -DAY, 900 * DAY)
    real = link.Link.post
    for reply in (b"", b"x" * 100, (world.root / "short.pem").read_bytes(), (world.root / "other.pem").read_bytes()):

        def post(self, data, path=link.POST_PATH, reply=reply):
            return link.Reply(200, reply, None) if path == renewal.PATH else real(self, data, path)

        monkeypatch.setattr(link.Link, "post", post)
        said = world.send()
        assert (said["ok"], said["name"], said["waiting"]) == (False, "renewal", 0)
        assert not os.path.exists(f"{device.inbox}/client.pem")


# --- clock -----------------------------------------------------------------------------------------------------------


def test_the_newest_moment_that_we_know_of():
    assert clock.judged_at(clock.BUILT + 5, 0) == clock.BUILT + 5
    assert clock.judged_at(0, 0) == clock.BUILT
    assert clock.judged_at(0, clock.BUILT + 9) == clock.BUILT + 9
    assert clock.judged_at(0, clock.BUILT + clock.HORIZON + 1) == clock.BUILT
    assert clock.judged_at(clock.BUILT + 5, clock.BUILT + 9) == clock.BUILT + 9


def test_the_build_date_is_that_of_the_newest_release():
    head = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    day = datetime.strptime(head.partition("(")[2].strip(")"), "%Y-%m-%d").replace(tzinfo=UTC)
    assert int(day.timestamp()) * 1000 == clock.BUILT


def server(world: World, begins: timedelta, ends: timedelta) -> None:
    """The collector's certificate with other times."""
    ca = x509.load_pem_x509_certificate(Path(world.directory, "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key(Path(world.directory, "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(tzinfo=None)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "collector")])
    made = x509.CertificateBuilder(ca.subject, name, key.public_key(), 9, now + begins, now + ends)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = made.add_extension(hosts, critical=False).sign(ca_key, hashes.SHA256())
    Path(world.directory, "server.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    Path(world.directory, "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.mark.parametrize(
    ("begins", "built", "heard", "name"),
    [
        (-10, 0, 0, ""),
        (-10, -30, 0, ""),  # the release is older than the collector, but our own certificate tells more
        (5, -30, 0, "certificate-not-yet-valid"),
        (5, -30, 30, ""),  # a verified receipt knows better
        (5, 400, 0, "certificate-expired"),
    ],
)
def test_a_clock_before_all_that_we_know(world, device, capsys, monkeypatch, begins, built, heard, name):
    """OpenSSL is told not to look at the time, and we do, at a moment that makes sense."""
    assert world.enroll(world.token(capsys)) == 0
    world.serving.stop()
    server(world, begins * DAY, 300 * DAY)
    again = Serving(world.directory, world.serving.port)
    now = int(time.time() * 1000)
    monkeypatch.setattr(clock, "BUILT", now + built * 86_400_000)
    if heard:
        monkeypatch.setattr("edgeguard.records.delivery.Delivery._heard", lambda _self: now + heard * 86_400_000)
    monkeypatch.setattr(link, "time", _Past())
    try:
        assert world.send()["name"] == name
    finally:
        again.stop()


class _Past:
    """1970."""

    @staticmethod
    def time_ns() -> int:
        return 1_000_000_000

    @staticmethod
    def time() -> float:
        return 1.0


def test_the_sealer_tells_the_uplink_a_time_that_was_verified(world, device, capsys):
    assert world.enroll(world.token(capsys)) == 0
    assert world.send()["ok"]
    one = uplink.Uplink(device.settings)
    assert one.first._heard() == 0  # a receipt in the inbox is nobody's word yet
    device.seal()
    assert abs(one.first._heard() - time.time() * 1000) < 60_000
    assert os.stat(f"{device.outbox}/receipt.egr").st_mode & 0o777 == 0o640
    assert json.loads(Path(device.inbox, "status.json").read_bytes())["ok"]


def test_a_device_with_its_key_in_a_tpm_enrols_sends_and_is_verified(world, device, capsys):
    """The whole way with a real TPM: token, certificate, segments over TLS, receipt, the database."""
    softtpm.needed()
    soft = softtpm.SoftTpm()
    soft.start()
    try:
        os.unlink(f"{device.settings.paths.state}/keys/device.key")
        with world.settings.open("a") as file:
            file.write(f'[identity]\nkind = "tpm2"\ntcti = "{soft.tcti}"\n')
        device.settings = load(str(world.settings))
        token = world.token(capsys)
        assert world.enroll(token) == 1  # no key yet
        assert "edgeguard identity create" in capsys.readouterr().err
        assert edgeguard(["identity", "create", "--settings", str(world.settings)]) == 0
        assert world.enroll(token) == 0
        said = world.send()
        assert (said["ok"], said["waiting"], device.seal()["waiting"]) == (True, 0, 0)
        capsys.readouterr()
        assert collector_main(["verify", world.directory, "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["counts"] == {}
    finally:
        soft.close()
