"""Epoch keys: one follows another in time, the old one is gone, and whatever stops the sealer, the log stays honest."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import EPOCH_SEED, Device, moment, state, statement

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, SignatureError
from edgeguard.records import compose, epoch, evidence, keyring, outbox, wire
from edgeguard.records.defects import Name
from edgeguard.records.epoch import Before, Head, Statement
from edgeguard.records.outbox import Name as File

HOUR = 3_600_000
SEED = b"\x01" * 32
OTHER = b"\x02" * 32


class Watch:
    """The clock that nobody sets, in the hands of a test."""

    def __init__(self, monkeypatch):
        self.mono = 1_000_000
        monkeypatch.setattr(keyring, "_boot_ms", lambda: self.mono)


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def said(device):
    """All statements, verified."""
    return [epoch.opened(data, device.public) for data in device.statements().values()]


def key_file(device):
    return Path(device.settings.paths.runtime) / keyring.FILE


def verified(device, collector=None):
    return evidence.own(
        evidence.Device(device.settings.paths.state, device.settings.paths.exchange, device.public, collector)
    )


def clean(device, collector=None):
    report = verified(device, collector)
    assert report.clean, [tuple(defect) for defect in report.defects]
    return report


# --- one after the other -------------------------------------------------------------------------------------------


def test_the_first_segment_begins_the_first_epoch(device, watch):
    os.makedirs(device.spool_directory)
    device.seal()
    assert (said(device), key_file(device).exists()) == ([], False)  # nothing to seal: no key yet
    device.record_and_seal(state("a"))
    (first,) = said(device)
    assert (first.number, first.boot, first.heads, first.before, first.announced) == (1, 1, (), None, False)
    assert stat.S_IMODE(key_file(device).stat().st_mode) == 0o600
    assert cose.public_of(device.epoch_seed()) == first.public
    segment = device.opened(device.segments()[File(0, 1).file])
    assert segment.header.epoch == 1
    clean(device)


def test_after_an_hour_the_key_is_another_and_the_old_one_is_nowhere(device, watch):
    device.record_and_seal(state("a"))
    old = device.epoch_seed()
    watch.mono += HOUR // 2
    device.record_and_seal(state("b"))
    assert device.epoch_seed() == old
    watch.mono += HOUR // 2
    device.record_and_seal(state("c"))  # sealed with the old key, which is then replaced
    assert device.epoch_seed() != old
    one, two = said(device)
    assert (two.number, two.before, two.announced) == (2, Before(1, one.public), True)
    assert [(head.stream, head.sequence) for head in two.heads] == [(0, 3)]
    assert [device.opened(data).header.epoch for data in device.segments().values()] == [1, 1, 1]
    for root, _, files in os.walk(Path(device.outbox).parents[1]):
        for name in files:
            assert old not in Path(root, name).read_bytes(), name
    device.record_and_seal(state("d"))
    assert [device.opened(data).header.epoch for data in device.segments().values()] == [1, 1, 1, 2]
    clean(device)


def test_a_key_that_sealed_nothing_is_kept(device, watch):
    device.record_and_seal(state("a"))
    for _ in range(3):
        watch.mono += HOUR
        device.seal(started=True)
    assert [statement.number for statement in said(device)] == [1]
    device.record_and_seal(state("b"))
    assert [statement.number for statement in said(device)] == [1, 2, 3][: len(said(device))]
    clean(device)


def test_an_old_key_goes_also_where_there_is_nothing_to_seal(device, watch):
    device.record_and_seal(state("a"))
    old = device.epoch_seed()
    watch.mono += HOUR
    device.seal()
    assert device.epoch_seed() != old
    assert [statement.announced for statement in said(device)] == [False, True]


def at_another_start(device, name):
    """A record that waits for the sealer, of another start of the device."""
    spool = device.spool(b"another boot")
    spool.open()
    spool.append(state(name))
    spool.rotate(10**9, force=True)
    spool.close()


def test_each_start_of_the_daemon_and_of_the_device_begins_an_epoch(device, watch):
    device.record_and_seal(state("a"))
    old = device.epoch_seed()
    device.seal(started=True)
    assert device.epoch_seed() != old
    device.record_and_seal(state("b"))
    at_another_start(device, "c")
    device.seal()
    assert [(item.number, item.boot, item.announced) for item in said(device)] == [
        (1, 1, False),
        (2, 1, True),
        (3, 2, True),
    ]
    clean(device)


def test_a_device_that_went_off_begins_anew_and_that_is_shown(device, watch):
    device.record_and_seal(state("a"))
    key_file(device).unlink()
    at_another_start(device, "b")
    watch.mono = 5
    device.seal()
    one, two = said(device)
    assert (two.before, two.announced) == (Before(1, one.public), False)
    assert "when the device went off" in " ".join(clean(device).notes)
    key_file(device).unlink()
    at_another_start(device, "c")
    device.seal()
    assert "without a new start" in " ".join(clean(device).notes)


def test_the_clock_of_the_day_does_not_matter(device, watch, monkeypatch):
    device.record_and_seal(state("a"))
    monkeypatch.setattr(keyring.time, "time_ns", lambda: 5)
    device.record_and_seal(state("b"))
    monkeypatch.setattr(keyring.time, "time_ns", lambda: 2**62)
    device.record_and_seal(state("c"))
    assert len(said(device)) == 1
    watch.mono = 3  # but this one began later than it is now: another start of the device
    device.record_and_seal(state("d"))
    assert len(said(device)) == 2
    clean(device)


# --- what may be in the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_where_the_runtime_directory_takes_nothing_records_are_sealed_all_the_same(device, watch, monkeypatch, before):
    if before:
        device.record_and_seal(state("a"))
        watch.mono += HOUR
    real = os.open

    def full(path, flags, *rest, **more):
        if str(path).endswith(f"{keyring.FILE}.tmp") and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(keyring.os, "open", full)
        for word in "bc":
            done = device.record_and_seal(state(word))
            assert "No space left" in done["key"]
            assert len(done["sealed"]) == 1
    done = device.record_and_seal(state("d"))
    assert done["key"] == ""
    clean(device)


def test_after_a_start_an_old_key_seals_nothing_even_where_there_is_no_room_for_another(device, watch, monkeypatch):
    """A container's runtime directory may outlive its start, and be full."""
    device.record_and_seal(state("a"))
    monkeypatch.setattr(keyring.Keyring, "_store", _no_room)
    for word in "bc":
        spool = device.spool(b"another boot")
        spool.open()
        spool.append(state(word))
        spool.rotate(10**9, force=True)
        spool.close()
        assert "no room" in device.seal()["key"]
    assert {item.boot for item in said(device)} == {1, 2}
    assert [item.announced for item in said(device)][:2] == [False, True]
    clean(device)


def _no_room(self, following):
    raise OSError(errno.ENOSPC, "no room")


def test_without_any_journal_no_epoch_goes_back_to_an_earlier_start(device, watch):
    device.record_and_seal(state("a"))
    for name in ("journal.0", "journal.1"):
        Path(device.spool_directory, name).unlink()
    watch.mono += HOUR
    device.seal(started=True)
    device.record_and_seal(state("b"))
    assert {item.boot for item in said(device)} <= {1, 2}
    clean(device)


def test_a_key_that_could_not_be_overwritten_is_replaced_all_the_same(device, watch, monkeypatch):
    """It said so, and what follows is signed by the new one: two keys never seal side by side."""
    device.record_and_seal(state("a"))
    old = device.epoch_seed()
    watch.mono += HOUR
    real = os.pwrite

    def failing(fd, data, offset):
        if data == bytes(len(data)):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(keyring.os, "pwrite", failing)
        assert "overwritten" in device.seal()["key"]
    assert device.epoch_seed() != old
    device.record_and_seal(state("b"))
    assert [device.opened(data).header.epoch for data in device.segments().values()] == [1, 2]
    clean(device)


def test_a_disk_that_was_put_back_under_a_running_system(device, watch, tmp_path):
    """The key in memory is of another history than the disk's: it signs nothing more there."""
    device.record_and_seal(state("a"))
    twin = Device(str(tmp_path / "twin"))
    twin.record_and_seal(state("b"))
    key_file(device).write_bytes(key_file(twin).read_bytes())
    done = device.record_and_seal(state("c"))
    assert (done["quarantined"], [item.number for item in said(device)]) == ([], [1, 2])
    clean(device)


@pytest.mark.parametrize("what", ["a link", "readable", "garbage", "another device's", "a pipe", "another key's"])
def test_a_key_file_that_is_not_ours_is_not_used(device, watch, tmp_path, what):
    device.record_and_seal(state("a"))
    path, was = key_file(device), key_file(device).read_bytes()
    path.unlink()
    if what == "a link":
        (tmp_path / "elsewhere").write_bytes(was)
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        other = statement(OTHER) if what == "another device's" else statement()
        made = {
            "readable": was,
            "garbage": b"\xff" * 90,
            "another device's": cbor.encode([1, EPOCH_SEED, other]),
            "another key's": cbor.encode([1, OTHER, other]),
        }
        path.write_bytes(made[what])
        path.chmod(0o644 if what == "readable" else 0o600)
    done = device.record_and_seal(state("b"))
    assert (done["key"], len(done["sealed"])) == ("", 1)
    assert stat.S_ISREG(path.lstat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert device.epoch_seed() not in {EPOCH_SEED, OTHER}
    assert [item.announced for item in said(device)] == [False, False]
    if what == "a link":
        assert (tmp_path / "elsewhere").read_bytes() == was
    clean(device)


def test_a_damaged_statement_of_the_key_at_hand_is_written_anew(device, watch):
    device.record_and_seal(state("a"))
    path = Path(device.outbox) / outbox.epoch_file(1)
    was = path.read_bytes()
    path.write_bytes(was[:-1] + bytes([was[-1] ^ 1]))
    assert Name.ALTERED in verified(device).counts
    done = device.record_and_seal(state("b"))
    assert (done["quarantined"], path.read_bytes()) == ([], was)
    clean(device)


@pytest.mark.parametrize("damage", ["flipped", "gone", "a pipe"])
def test_a_lost_statement_of_an_old_epoch_is_named_by_the_next(device, watch, damage):
    for word in "abc":
        watch.mono += HOUR
        device.record_and_seal(state(word))
    assert [item.number for item in said(device)] == [1, 2, 3, 4][: len(said(device))]
    path = Path(device.outbox) / outbox.epoch_file(2)
    data = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "a pipe":
        os.mkfifo(path)
    done = device.seal(audit=True)
    assert done["quarantined"] == []
    clean(device)


def test_without_any_word_about_its_key_a_segment_is_set_aside_and_said(device, watch):
    device.record_and_seal(state("a"))
    key_file(device).unlink()
    (Path(device.outbox) / outbox.epoch_file(1)).unlink()
    done = device.record_and_seal(state("b"))
    assert "epoch 1" in done["quarantined"][0]["why"]
    assert [device.opened(data).header.epoch for data in device.segments().values()] == [1]
    assert clean(device).explained[0].reason.startswith("damaged")


def test_a_statement_does_not_vouch_for_what_is_damaged(device, watch):
    """The number is used up, and nothing good lies under it."""
    for word in "abc":
        device.record_and_seal(state(word))
    path = Path(device.outbox) / File(0, 3).file
    path.write_bytes(path.read_bytes()[:-1])
    device.seal(started=True)
    device.record_and_seal(state("d"))
    assert said(device)[-1].heads == (Head(0, 3, b""),)
    clean(device)


def test_a_number_is_never_used_twice(device, watch):
    """Also where the statement that had it is in quarantine, and its key is gone."""
    device.record_and_seal(state("a"))
    path = Path(device.outbox) / outbox.epoch_file(1)
    path.write_bytes(path.read_bytes()[:-3])
    key_file(device).unlink()
    device.record_and_seal(state("b"))
    assert [item.number for item in said(device)] == [2]


def test_statements_go_with_the_segments_that_need_them(device, watch):
    collector = b"\x09" * 32
    device.with_collector(cose.public_of(collector))
    for word in "abcd":
        watch.mono += HOUR
        device.record_and_seal(state(word))
    device.record_and_seal(compose.text("the anchor of another stream", moment()))
    from hashlib import sha256

    from edgeguard.records import receipts

    data = device.segments()[File(0, 3).file]
    receipt = receipts.Receipt(device.id, 1, (receipts.Head(0, 3, sha256(data).digest()),))
    Path(device.inbox, "receipt.egr").write_bytes(cose.sign1(receipts.encode(receipt), collector, cose.RECEIPT_AAD))
    device.seal()
    assert sorted(device.segments()) == [File(0, 4).file, File(3, 1).file]
    kept = {device.opened(data).header.epoch for data in device.segments().values()}
    numbers = [item.number for item in said(device)]
    assert kept <= set(numbers)
    assert min(numbers) == min(kept)
    clean(device, cose.public_of(collector))


# --- bytes -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_statement_or_an_error(data):
    for made in (data, cose.sign1(data, SEED, cose.EPOCH_AAD), statement()[:20] + data):
        epoch.is_statement(made)
        for read in (epoch.unverified, lambda made: epoch.opened(made, cose.public_of(SEED))):
            with contextlib.suppress(DecodeError, SignatureError):
                assert isinstance(read(made), Statement)


def test_a_bit_of_each_byte_of_a_statement():
    before = Before(3, cose.public_of(OTHER))
    data = statement(number=4, heads=(Head(0, 3, bytes(16)), Head(2, 9, b"")), before=before, announced_by=OTHER)
    public = cose.public_of(SEED)
    assert epoch.opened(data, public).announced
    assert len(data) <= 450
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        with pytest.raises((DecodeError, SignatureError)):
            epoch.opened(bytes(spoiled), public)


CORE = ["epoch", 1, cose.device_id(cose.public_of(SEED)), 2, bytes(32), 1, 1, None, 0, [], None]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "epochs"), (1, 2), (2, bytes(15)), (3, 0), (3, 2**62), (4, bytes(31)), (5, -1), (6, "x"), (7, 1.5 and "y"),
        (8, 4), (9, [[0, 0, b""]]), (9, [[4, 1, b""]]), (9, [[0, 1, bytes(15)]]), (9, [[0, 1, b""], [0, 2, b""]]),
        (9, [[0, 1, b""]] * 17), (10, [2, bytes(32)]), (10, [0, bytes(32)]), (10, [1, bytes(3)]), (10, 7),
    ],
)  # fmt: skip
def test_a_wrong_statement_is_refused(place, value):
    right = cose.sign1(cbor.encode(CORE), SEED, cose.EPOCH_AAD)
    assert epoch.opened(right, cose.public_of(SEED)).number == 2
    assert epoch.opened(cose.sign1(cbor.encode([*CORE, "tomorrow"]), SEED, cose.EPOCH_AAD), cose.public_of(SEED))
    parts = list(CORE)
    parts[place] = value
    with pytest.raises(DecodeError):
        epoch.opened(cose.sign1(cbor.encode(parts), SEED, cose.EPOCH_AAD), cose.public_of(SEED))


def test_what_is_signed_for_one_purpose_is_nothing_for_another():
    segment = cose.sign1(cbor.encode(CORE), SEED, cose.SEGMENT_AAD)
    with pytest.raises(SignatureError):
        epoch.opened(segment, cose.public_of(SEED))
    assert wire.split(statement() + segment) == [statement(), segment]


# --- any life --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Kill:
    """Ends the sealer before one of its calls that change a disk."""

    CALLS = ("pwrite", "fsync", "replace", "fdatasync", "unlink", "open")

    def __init__(self, monkeypatch, after):
        self.left = after
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name, real):
        def call(*arguments, **keywords):
            if name != "open" or arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self.left -= 1
                if self.left < 0:
                    raise Killed
            return real(*arguments, **keywords)

        return call


LIVES = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 3)),
        st.tuples(st.just("seal"), st.booleans()),
        st.tuples(st.just("kill"), st.integers(0, 45), st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 70)),
        st.tuples(st.just("step"), st.integers(-(10**10), 10**10)),
        st.tuples(st.just("boot")),
        st.tuples(st.just("runtime")),
        st.tuples(st.just("deliver"), st.integers(0, 2**32)),
    ),
    min_size=4,
    max_size=30,
)


class Life:
    """A device, its collector, and what happens to both."""

    def __init__(self, root, watch):
        from edgeguard.collector import store
        from edgeguard.collector.ingest import Ingest

        self.device = Device(str(root))
        self.device.with_collector(cose.public_of(b"\x09" * 32))
        self.watch, self.wall, self.boots, self.told = watch, 1_795_416_177_140, 1, 0
        self.db = store.connect(":memory:")
        self.ingest = Ingest(self.db, b"\x09" * 32, lambda: self.wall)
        self.known = self.ingest.add_device("d", self.device.public)
        self.spool = None
        self._open()

    def _open(self):
        self.spool = self.device.spool(f"boot {self.boots}".encode())
        self.spool.open()

    def moment(self):
        return compose.Moment(self.watch.mono, self.wall if self.boots % 2 else None, self.boots % 4)

    def record(self, stream):
        self.told += 1
        words = compose.text(f"{self.told}", self.moment())._replace(stream=stream)
        self.spool.append(words)
        self.spool.commit()

    def seal(self, started):
        self.spool.rotate(10**9, force=True)
        done = self.device.seal(started=started)
        self.spool.refresh()
        assert not done["quarantined"]
        if done["heads"]:
            heads = [(stream, sequence, digest) for stream, sequence, digest in done["heads"]]
            self.spool.append(compose.heartbeat(self.moment(), heads, 3600))
            self.spool.commit()

    def kill(self, after, started):
        self.spool.rotate(10**9, force=True)
        with pytest.MonkeyPatch.context() as patch:
            Kill(patch, after)
            with contextlib.suppress(Killed):
                self.device.seal(started=started)
        self.spool.refresh()

    def wait(self, minutes):
        self.watch.mono += minutes * 60_000
        self.wall += minutes * 60_000

    def step(self, ms):
        self.wall += ms

    def boot(self):
        """Without a word: the key is lost, what was durable is not."""
        self.boots += 1
        self.watch.mono = 1000
        self.runtime()
        self._open()

    def runtime(self):
        key_file(self.device).unlink(missing_ok=True)

    def deliver(self, dice):
        import random

        order = random.Random(dice)
        names = list(self.device.segments().values())
        order.shuffle(names)
        parts = [*self.device.statements().values(), *names[: order.randrange(len(names) + 1)]]
        if order.random() < 0.5:
            parts = [*names[:2], *parts]
        if not parts:
            return
        verdicts, receipt = self.ingest.take(b"".join(parts), self.known)
        assert {verdict.name for verdict in verdicts} <= {"stored", "duplicate"}, verdicts
        Path(self.device.inbox, "receipt.egr").write_bytes(receipt)

    def end(self):
        """Everything sealed, delivered, and looked at from all sides."""
        from edgeguard.collector import verify

        for _ in range(3):
            self.seal(False)
        clean(self.device, cose.public_of(b"\x09" * 32))
        parts = [*self.device.statements().values(), *self.device.segments().values()]
        self.ingest.take(b"".join(parts), self.known)
        self.wall += 10**10  # long after, the device is heard again: what it named must be here by now
        self.ingest.take(b"".join(parts), self.known)
        report = verify.database(self.db)
        assert report.clean, [tuple(defect) for defect in report.defects]
        texts = self.db.execute("SELECT count(*) FROM records WHERE type = 15").fetchone()[0]
        assert texts == self.told
        found = {name for (name,) in self.db.execute("SELECT name FROM incidents WHERE resolved IS NULL")}
        assert found <= {"unannounced epoch"}, found


@given(life=LIVES)
@settings(max_examples=int(os.environ.get("EDGEGUARD_LIVES", "60")), deadline=None)
def test_no_honest_life_has_a_defect(tmp_path_factory, life):
    """Kills between any two calls, power cuts, clock steps, starts, deliveries in any order: nothing is ever named."""
    with pytest.MonkeyPatch.context() as patch:
        one = Life(tmp_path_factory.mktemp("life"), Watch(patch))
        for what, *how in life:
            getattr(one, what)(*how)
        one.end()
        one.db.close()


def test_the_identity_key_may_be_a_credential(device, watch, tmp_path, monkeypatch):
    """The file is gone; the credential is the same device. One that is no key stops sealing; nothing is made anew."""
    key = Path(device.settings.paths.state) / "keys/device.key"
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/edgeguard-identity").write_bytes(key.read_bytes())
    key.unlink()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    device.record_and_seal(state("a"))
    assert said(device)[0].device == device.id
    clean(device)
    (tmp_path / "credentials/edgeguard-identity").write_bytes(b"no key")
    with pytest.raises(DecodeError, match="not a key"):
        device.record_and_seal(state("b"))
    assert not key.exists()


def test_two_sealers_leave_one_epoch(device, watch):
    """The second one finds the lock taken and does nothing, with the key, too."""
    import fcntl

    device.record_and_seal(state("a"))
    watch.mono += HOUR
    was = key_file(device).read_bytes()
    with open(f"{device.spool_directory}/seal.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert device.seal(started=True) == {"v": 1, "busy": True}
    assert key_file(device).read_bytes() == was


def test_the_sealer_leaves_no_core_and_lets_nobody_look(device, tmp_path):
    import subprocess
    import sys

    paths = device.settings.paths
    (tmp_path / "agent.toml").write_text(
        f'[paths]\nstate = "{paths.state}"\nexchange = "{paths.exchange}"\nruntime = "{paths.runtime}"\n'
    )
    code = (
        "import ctypes, sys; sys.path.insert(0, '.'); from edgeguard.records import seal; seal.main(sys.argv[1:]);"
        "sys.exit(ctypes.CDLL(None).prctl(3))"  # PR_GET_DUMPABLE
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--settings", str(tmp_path / "agent.toml")],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
