"""The identity key outside the state directory: in a real TPM 2.0 (swtpm), and as a credential of systemd."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_world import Device, moment, state, statement
from test_epochs import HOUR, Watch

from edgeguard import identity
from edgeguard.baseline import keys
from edgeguard.cli.main import main as command
from edgeguard.codec import cose, tpm
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.verify import run as verify
from edgeguard.errors import DecodeError, IdentityUnusable, Unavailable
from edgeguard.linux import tpm2
from edgeguard.linux.tpm2 import Tpm
from edgeguard.records import compose, epoch, evidence, losses, outbox
from edgeguard.settings import Identity, load
from tests import softtpm

TREE = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TREE / "tests/vectors"))
import p256  # noqa: E402 - found by the line above

COLLECTOR = b"\x09" * 32
HANDLE = "0x81024547"
OWNED = ("-C", "o", "-g", "sha256")


@pytest.fixture
def soft():
    softtpm.needed()
    made = softtpm.SoftTpm()
    made.start()
    yield made
    made.close()


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


class World:
    """A device whose identity key is in the TPM, made as an operator makes it."""

    def __init__(self, root, soft, **more):
        self.soft = soft
        self.device = Device(str(root), **more)
        paths = self.device.settings.paths
        os.unlink(f"{paths.state}/keys/device.key")
        self.file = f"{root}/agent.toml"
        Path(self.file).write_text(
            f'[paths]\nstate = "{paths.state}"\nruntime = "{paths.runtime}"\nexchange = "{paths.exchange}"\n'
            f'[identity]\nkind = "tpm2"\nhandle = "{HANDLE}"\ntcti = "{soft.tcti}"\n'
        )
        self.device.settings = self.device.settings._replace(identity=load(self.file).identity)

    def create(self, *more):
        code = command(["--settings", self.file, "identity", "create", *more])
        if code == 0:
            self.device.public = keys.device_public(self.device.settings.paths.state)
            self.device.id = cose.device_id(self.device.public)
        return code

    def show(self, capsys):
        capsys.readouterr()
        code = command(["--settings", self.file, "-o", "json", "identity"])
        return code, json.loads(capsys.readouterr().out)

    def clean(self):
        paths = self.device.settings.paths
        report = evidence.own(evidence.Device(paths.state, paths.exchange, self.device.public, None))
        assert report.defects == []
        assert report.segments
        return report

    def statements(self):
        return [epoch.opened(data, self.device.public) for data in self.device.statements().values()]


@pytest.fixture
def world(tmp_path, soft):
    made = World(tmp_path, soft)
    assert made.create() == 0
    return made


def impatient(world, monkeypatch, seconds=0.5):
    lock = f"{world.device.settings.paths.state}/keys/tpm.lock"
    monkeypatch.setattr(identity, "tpm_of", lambda settings: Tpm(settings.identity.tcti, lock, seconds))


# --- a TPM that does its part ------------------------------------------------------------------------------------


def test_the_tpm_certifies_epochs_and_the_log_is_whole(world, watch, capsys):
    assert len(world.device.public) == cose.P256_SIZE
    world.device.record_and_seal(state("a"))
    watch.mono += HOUR
    world.device.record_and_seal(state("b"))
    world.device.seal(started=True)
    world.clean()
    one, two, *_ = world.statements()
    assert (one.number, two.number, two.announced, one.device) == (1, 2, True, world.device.id)
    parts = cose.parse1(world.device.statements()[outbox.epoch_file(1)])
    assert (parts.algorithm, parts.kid) == (cose.ES256, cose.kid_of(world.device.public))
    code, said = world.show(capsys)
    assert (code, said["kind"], said["device"], said["error"]) == (0, "tpm2", world.device.id.hex(), None)
    assert said["public"] == world.device.public.hex()
    assert not os.path.exists(f"{world.device.settings.paths.state}/keys/device.key")


def test_the_whole_way_to_a_collector_and_its_verifier(world, watch, tmp_path):
    """Sealed under a TPM, taken in, verified in the database and from the files."""
    world.device.record_and_seal(state("a"), compose.text("login", moment())._replace(stream=1))
    watch.mono += HOUR
    world.device.record_and_seal(state("b"))
    os.makedirs(tmp_path / "collector")
    database = store.connect(str(tmp_path / "collector/collector.db"))
    ingest = Ingest(database, COLLECTOR, lambda: 1_000)
    known = ingest.add_device("pump-07", world.device.public)
    parts = [*world.device.segments().values(), *world.device.statements().values()]
    verdicts, _ = ingest.take(b"".join(parts), known)
    assert {verdict.name for verdict in verdicts} == {"stored"}
    assert database.execute("SELECT count(*) FROM incidents").fetchone() == (0,)
    database.close()
    report = verify(str(tmp_path / "collector"))
    assert (report.defects, report.segments) == ([], len(world.device.segments()))
    files = verify(world.device.outbox, keys=[world.device.public])
    assert (files.defects, files.segments) == ([], len(world.device.segments()))


def test_what_was_let_go_is_written_down_under_the_key_in_the_tpm(tmp_path, soft, watch):
    world = World(tmp_path, soft, spool_bytes=8 * 4096)
    world.create()
    for turn in range(12):
        world.device.record_and_seal(state(f"{turn}"), compose.text(f"noise {turn}", moment()))
    word = losses.read(world.device.spool_directory, [world.device.public], world.device.id)
    assert word.drops
    world.clean()


def test_the_baseline_of_a_device_without_a_fleet_is_signed_in_the_tpm(world):
    """The same key: a document of megabytes, too, because the TPM sees its digest only."""
    signer = keys.own(world.device.settings)
    data = signer.sign1(bytes(5_000_000), cose.BASELINE_AAD)
    trusted, name = keys.trusted_keys("/nonexistent", keys.device_public(world.device.settings.paths.state))
    assert name == "local"
    assert len(cose.verify1(data, trusted, cose.BASELINE_AAD)) == 5_000_000


def test_a_restart_of_device_and_tpm_keeps_the_identity(world, watch):
    world.device.record_and_seal(state("a"))
    world.soft.stop()
    os.unlink(f"{world.device.settings.paths.runtime}/epoch.key")
    world.soft.start()
    world.device.record_and_seal(state("b"))
    world.clean()
    assert {said.device for said in world.statements()} == {world.device.id}


def test_the_real_sealer_without_any_capability(world):
    """As the daemon starts it: no capability, no new privileges, not dumpable."""
    spool = world.device.spool()
    spool.open()
    spool.append(state("a"))
    spool.rotate(10_000_000, force=True)
    spool.close()
    words = [sys.executable, "-IS", str(TREE / "packaging/bin/edgeguard-seal"), "--settings", world.file]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={})
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(world.device.segments()) == 1
    world.clean()


# --- one that does not -------------------------------------------------------------------------------------------


def waiting(world, words):
    """The seal fails with these words, and nothing is lost by it."""
    with pytest.raises(IdentityUnusable, match=words):
        world.device.record_and_seal(state("waits"))
    assert world.device.segments() == {}


def comes_later(world):
    world.device.seal()
    segment, *_ = [world.device.opened(data) for data in world.device.segments().values()]
    assert [record.fields[1] for record in segment.records] == ["waits"]
    world.clean()


def test_without_a_tpm_records_wait(world, watch):
    world.soft.stop()
    waiting(world, "there is no TPM")
    world.soft.start()
    comes_later(world)


def test_a_tpm_that_hangs_costs_its_time_once(world, watch, monkeypatch):
    impatient(world, monkeypatch)
    world.soft.freeze()
    waiting(world, "has not answered for 0.5 s")
    world.soft.thaw()
    comes_later(world)


def test_a_tpm_that_failed_is_not_asked_twice_by_one_run(world, watch, monkeypatch):
    """One that hangs would cost its time at the beginning of the run and at its end."""
    world.device.record_and_seal(state("a"))
    asked = []
    real = Tpm.sign
    monkeypatch.setattr(Tpm, "sign", lambda *words: (asked.append(1), real(*words))[1])
    world.soft.stop()
    watch.mono += HOUR
    spool = world.device.spool()
    spool.open()
    spool.append(state("b"))
    spool.rotate(10_000_000, force=True)
    spool.close()
    answer = world.device.seal(started=True)
    assert (len(answer["sealed"]), len(asked)) == (1, 1)


def test_the_epoch_at_hand_goes_on_where_the_tpm_went_away(world, watch):
    """In the middle: records are sealed, and it is said; the next epoch begins when the TPM is there again."""
    world.device.record_and_seal(state("a"))
    world.soft.stop()
    watch.mono += HOUR
    answer = world.device.record_and_seal(state("b"))
    assert (len(answer["sealed"]), len(world.statements())) == (1, 1)
    assert "there is no TPM" in answer["identity"]
    assert answer["key"] == answer["identity"]
    again = world.device.seal(started=True)
    assert (again["identity"], len(world.statements())) == (answer["identity"], 1)
    world.soft.start()
    assert world.device.seal()["identity"] == ""
    assert [said.number for said in world.statements()] == [1, 2]
    world.clean()


def test_nothing_is_let_go_without_a_signed_word(tmp_path, soft, watch):
    """The word about what goes is the TPM's: without it, what is sealed stays, and what is not waits."""
    world = World(tmp_path, soft, spool_bytes=8 * 4096)
    world.create()
    world.device.record_and_seal(state("a"))
    world.soft.stop()
    noise = (compose.text(f"noise {turn}", moment()) for turn in range(12))
    with pytest.raises(IdentityUnusable):
        list(map(world.device.record_and_seal, noise))
    here = set(world.device.segments())
    with pytest.raises(IdentityUnusable):
        world.device.seal()
    assert here <= set(world.device.segments())
    world.clean()
    world.soft.start()
    world.device.seal()
    word = losses.read(world.device.spool_directory, [world.device.public], world.device.id)
    assert word.drops
    world.clean()


def test_another_tpm_is_noticed(world, watch):
    """Cleared: nothing is at the handle. With a key made anew: it is another key, and its word is not used."""
    world.soft.exchange()
    waiting(world, "no key is at that handle")
    Tpm(world.soft.tcti, f"{world.soft.directory}/lock").create(HANDLE)
    waiting(world, "another key than this device's")
    assert world.device.statements() == {}


def test_a_handle_of_something_else(world, watch):
    world.soft.tool("tpm2_createprimary", *OWNED, "-G", "rsa2048", "-c", "primary")
    world.soft.tool("tpm2_evictcontrol", "-C", "o", "-c", "primary", "0x81024548")
    wrong = world.device.settings.identity._replace(handle="0x81024548")
    world.device.settings = world.device.settings._replace(identity=wrong)
    waiting(world, "TPM")
    right = wrong._replace(handle="0x81024549")
    world.device.settings = world.device.settings._replace(identity=right)
    waiting(world, "no key is at that handle")


def locked_key(soft, handle):
    """A key with a password, as another tool may make it."""
    kind = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    soft.tool("tpm2_createprimary", *OWNED, "-G", "ecc256", "-c", "primary")
    made = ("-u", "public", "-r", "private", "-p", "secret")
    soft.tool("tpm2_create", "-C", "primary", "-g", "sha256", "-G", "ecc256:ecdsa-sha256", "-a", kind, *made)
    soft.tool("tpm2_load", "-C", "primary", "-u", "public", "-r", "private", "-c", "key")
    soft.tool("tpm2_evictcontrol", "-C", "o", "-c", "key", handle)


def test_a_tpm_that_is_locked_out(world, watch):
    """Wrong passwords lock keys that count them. Ours does not count, and goes on in a TPM that is locked out."""
    soft, settings = world.soft, world.device.settings
    soft.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=3600")
    locked_key(soft, "0x81024548")
    public = tpm.public(Tpm(soft.tcti, f"{soft.directory}/lock").public("0x81024548")).key
    mine = Path(identity.published(settings.paths.state))
    was = mine.read_text()
    mine.write_text(public.hex())
    world.device.settings = settings._replace(identity=settings.identity._replace(handle="0x81024548"))
    waiting(world, "wants a password")
    waiting(world, "locked out")
    mine.write_text(was)
    world.device.settings = settings
    comes_later(world)


def test_a_key_that_does_not_sign_is_not_taken(tmp_path, soft, capsys):
    locked_key(soft, HANDLE)
    world = World(tmp_path, soft)
    assert world.create("--adopt") == 1
    assert "wants a password" in capsys.readouterr().err
    assert not os.path.exists(identity.published(world.device.settings.paths.state))


def test_creating_leaves_no_room_taken(soft):
    """Where no resource manager tidies up, a TPM has room for three objects, and every key would leave two."""
    tpm_ = Tpm(soft.tcti, f"{soft.directory}/lock")
    for number in range(3):
        tpm_.create(f"0x8102000{number}")
    assert len({tpm_.public(f"0x8102000{number}") for number in range(3)}) == 3


def test_a_command_that_hangs_is_not_joined_by_another(world, monkeypatch):
    """What cannot be killed keeps the lock: the next one says so, and starts nothing."""
    held = os.open(f"{world.device.settings.paths.state}/keys/tpm.lock", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    impatient(world, monkeypatch, 0.2)
    started = []
    monkeypatch.setattr(tpm2.subprocess, "Popen", lambda *words, **more: started.append(words))
    with pytest.raises(IdentityUnusable, match="still busy"):
        identity.load(world.device.settings).sign1(b"", cose.PROBE_AAD)
    assert started == []
    os.close(held)


def script(tmp_path, text):
    for tool in ("tpm2_sign", "tpm2_readpublic"):
        path = tmp_path / tool
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return Tpm("device:/dev/null", str(tmp_path / "lock"), 5.0, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 3", "ended with exit code 3"),
        ("kill -9 $$", "ended with signal 9"),
        ("echo 'ERROR: Esys_Sign(0x922) - tpm:warn(2.0): retry' >&2; exit 1", "is busy"),
        ("echo 'ERROR: Esys_Sign(0x98E) - x' >&2; exit 1", "password"),
        ("echo 'ERROR: something else' >&2; exit 1", "tpm2_sign: something else"),
        ("head -c 10000000 /dev/zero >&2; exit 1", "ended with"),
        ("printf '\\377\\033[31m(0xFFFFFFFFF)' >&2; exit 1", "ended with exit code 1"),
    ],
)
def test_what_tools_say_is_put_in_words(tmp_path, text, words):
    with pytest.raises(Unavailable, match=words):
        script(tmp_path, text).sign(HANDLE, bytes(32))


def test_a_tool_that_writes_without_end_is_stopped(tmp_path):
    with pytest.raises(Unavailable, match="ended with"):
        script(tmp_path, 'for last; do :; done; exec cat /dev/zero > "$last"').sign(HANDLE, bytes(32))


def test_a_tool_that_answers_nonsense_or_is_not_there(tmp_path):
    said = script(tmp_path, 'for last; do :; done; echo nonsense > "$last"').sign(HANDLE, bytes(32))
    with pytest.raises(DecodeError):
        tpm.signature(said)
    with pytest.raises(Unavailable, match="apt install tpm2-tools"):
        Tpm("device:/dev/null", str(tmp_path / "lock"), 5.0, "/nonexistent").sign(HANDLE, bytes(32))


# --- who this device is ------------------------------------------------------------------------------------------


def test_a_key_that_is_there_is_taken_on_request_only(tmp_path, soft, capsys):
    world = World(tmp_path, soft)
    Tpm(soft.tcti, f"{soft.directory}/lock").create(HANDLE)
    assert world.create() == 1
    assert "--adopt" in capsys.readouterr().err
    assert not os.path.exists(identity.published(world.device.settings.paths.state))
    assert world.create("--adopt") == 0
    was = world.device.public
    assert world.create() == 0  # once more changes nothing
    assert world.device.public == was


def test_a_key_that_could_be_copied_is_not_taken(tmp_path, soft, capsys):
    soft.tool("tpm2_createprimary", *OWNED, "-G", "ecc256", "-c", "primary")
    kind = "sensitivedataorigin|userwithauth|sign"
    words = ("-C", "primary", "-g", "sha256", "-G", "ecc256:ecdsa-sha256", "-a", kind)
    soft.tool("tpm2_create", *words, "-u", "public", "-r", "private")
    soft.tool("tpm2_load", "-C", "primary", "-u", "public", "-r", "private", "-c", "key")
    soft.tool("tpm2_evictcontrol", "-C", "o", "-c", "key", HANDLE)
    assert World(tmp_path, soft).create("--adopt") == 1
    assert "could be moved to another TPM" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["device.pub", "device.key"])
def test_a_device_with_a_file_does_not_become_another(tmp_path, soft, capsys, kind):
    world = World(tmp_path, soft)
    path = Path(world.device.settings.paths.state, "keys", kind)
    path.write_bytes(world.device.seed if kind == "device.key" else world.device.public.hex().encode())
    assert world.create() == 1
    assert "this device has an identity" in capsys.readouterr().err
    with pytest.raises(IdentityUnusable, match=r"no key was made|is that of a key in a file"):
        identity.load(world.device.settings)


def test_a_line_of_the_settings_that_went_makes_no_new_device(world):
    """The other way round: the key is in the TPM, and the settings say file."""
    without = world.device.settings._replace(identity=Identity())
    with pytest.raises(IdentityUnusable, match="names a key in the TPM"):
        keys.own(without)
    with pytest.raises(FileNotFoundError):
        identity.load(without)
    assert keys.device_public(world.device.settings.paths.state) == world.device.public


def test_before_a_key_is_made_it_is_said_what_to_do(tmp_path, soft, capsys):
    world = World(tmp_path, soft)
    code, said = world.show(capsys)
    assert code == 1
    assert "edgeguard identity create" in said["error"]
    with pytest.raises(IdentityUnusable, match="no key was made"):
        keys.own(world.device.settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
@pytest.mark.parametrize("kind", ["file", "credential", "tpm2"])
def test_who_may_not_read_is_told_that(tmp_path, capsys, kind):
    (tmp_path / "agent.toml").write_text(f'[paths]\nstate = "{tmp_path}"\n[identity]\nkind = "{kind}"\n')
    words = [sys.executable, "-IS", str(TREE / "packaging/bin/edgeguard"), "--settings", str(tmp_path / "agent.toml")]
    (tmp_path / "keys").mkdir(mode=0o700)
    for name in ("device.key", "device.pub", "edgeguard-identity"):
        (tmp_path / "keys" / name).write_bytes(b"x")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "keys")}
    done = subprocess.run(
        [*words, "identity"], user=65534, capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, "permission denied" in done.stderr) == (77, True), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
def test_root_makes_the_key_for_the_daemons_user_and_is_led_nowhere(tmp_path, soft):
    """The state directory is somebody else's, and so is what `create` leaves there; behind a symlink, nothing."""
    world = World(tmp_path, soft)
    state_directory = Path(world.device.settings.paths.state)
    for path in (state_directory, *state_directory.rglob("*")):
        os.chown(path, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    os.rename(state_directory / "keys", state_directory / "keys.away")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", state_directory / "keys")
    assert world.create() == 77
    assert list((tmp_path / "elsewhere").iterdir()) == []
    os.unlink(state_directory / "keys")
    os.rename(state_directory / "keys.away", state_directory / "keys")
    assert world.create() == 0
    owners = {path.name: path.stat().st_uid for path in (state_directory / "keys").iterdir()}
    assert owners == {"device.pub": 65534, "tpm.lock": 65534}


def test_create_is_for_a_tpm(tmp_path, capsys):
    (tmp_path / "agent.toml").write_text(f'[paths]\nstate = "{tmp_path}"\n')
    assert command(["--settings", str(tmp_path / "agent.toml"), "identity", "create"]) == 64
    assert "tpm2" in capsys.readouterr().err


# --- a credential ------------------------------------------------------------------------------------------------


@pytest.fixture
def handed(device, tmp_path, monkeypatch):
    """The key is a credential, and nowhere else."""
    device.settings = device.settings._replace(identity=Identity("credential"))
    directory = tmp_path / "credentials"
    directory.mkdir()
    os.rename(f"{device.settings.paths.state}/keys/device.key", directory / identity.CREDENTIAL)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    return directory / identity.CREDENTIAL


def test_a_credential_is_the_same_device(device, handed):
    device.record_and_seal(state("a"))
    paths = device.settings.paths
    assert evidence.own(evidence.Device(paths.state, paths.exchange, device.public, None)).defects == []
    assert keys.own(device.settings).public == device.public == keys.device_public(paths.state)


@pytest.mark.parametrize("beside", [False, True])
def test_a_credential_that_is_missing_makes_no_new_device(device, handed, beside):
    """Not even where a file lies beside it, which may be anybody's."""
    handed.unlink()
    key = Path(device.settings.paths.state, "keys/device.key")
    if beside:
        key.write_bytes(b"\x05" * 32)
    for attempt in (keys.own, identity.load, lambda _settings: device.record_and_seal(state("a"))):
        with pytest.raises(IdentityUnusable, match=r"the credential edgeguard-identity is not there"):
            attempt(device.settings)
    assert key.exists() == beside
    assert not os.path.exists(identity.published(device.settings.paths.state))


def test_a_credential_that_is_no_key_is_said(device, handed):
    handed.write_bytes(b"no key")
    with pytest.raises(DecodeError, match="not a key of 32 raw bytes"):
        keys.own(device.settings)


def test_a_credential_counts_before_the_file(device, handed):
    """Where the settings still say file: between `systemd-creds encrypt` and the line in agent.toml."""
    Path(device.settings.paths.state, "keys/device.key").write_bytes(b"\x05" * 32)
    assert keys.own(device.settings._replace(identity=Identity())).public == device.public


def test_root_finds_the_credential_of_the_unit(device, handed, monkeypatch):
    """`edgeguard enroll` is not started by systemd."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.setattr(identity, "UNIT_CREDENTIALS", str(handed.parent))
    assert identity.load(device.settings).public == device.public


def test_a_statement_of_another_p256_key_is_forged(world, watch):
    """Named as one of another Ed25519 key is."""
    world.device.record_and_seal(state("a"))
    thief = cose.Elsewhere(p256.public(), p256.sign)
    core = cose.parse1(statement(thief, 2)).payload.replace(cose.device_id(thief.public), world.device.id)
    Path(world.device.outbox, outbox.epoch_file(2)).write_bytes(cose.sign1(core, thief, cose.EPOCH_AAD))
    report = verify(world.device.outbox, keys=[world.device.public])
    assert [defect.name.word for defect in report.defects] == ["forged epoch"]
