"""A device whose identity key is of P-256, at the collector: known, taken in, verified; and what a forger gets for it.

The key is one on paper (`tests/vectors/p256.py`), so this needs no TPM. With one: tests/unit/records/test_identity.py.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from small_world import EPOCH_SEED, state, statement
from test_es256 import mirrored
from test_statements import SECOND, Fresh, short

from edgeguard.codec import cbor, certificates, cose
from edgeguard.collector import enrolment, store, verify
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import main as collector
from edgeguard.errors import DecodeError, SignatureError
from edgeguard.records import wire
from edgeguard.records.epoch import Before, Head
from edgeguard.records.wire import Header

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))
import p256

PUBLIC = p256.public()
SIGNER = cose.Elsewhere(PUBLIC, p256.sign)
DEVICE = cose.device_id(PUBLIC)
OTHER = cose.Elsewhere(p256.public(7), lambda digest: p256.sign(digest, 7))


def segment(sequence, previous, epoch=1, seed=EPOCH_SEED):
    header = Header(DEVICE, 0, sequence, epoch, 1, sequence, 1, previous, 1000, None, 0, wire.NO_BASELINE, 0)
    return cose.sign1(wire.encode_segment(header, [state(f"{sequence}")]), seed, cose.SEGMENT_AAD)


@pytest.fixture
def fresh():
    made = Fresh()
    made.device = made.ingest.add_device("tpm-1", PUBLIC)
    return made


def names(fresh, *parts):
    verdicts, _ = fresh.ingest.take(b"".join(parts), fresh.device)
    return [verdict.name for verdict in verdicts]


def incidents(fresh):
    return [row[0] for row in fresh.db.execute("SELECT name FROM incidents ORDER BY id")]


def test_statements_and_segments_are_taken_and_verified(fresh):
    one = segment(1, wire.NO_PREVIOUS)
    two = segment(2, sha256(one).digest(), 2, SECOND)
    before = Before(1, cose.public_of(EPOCH_SEED))
    heads = (Head(0, 1, short(one)),)
    second = statement(SIGNER, 2, SECOND, heads=heads, before=before, announced_by=EPOCH_SEED)
    assert names(fresh, one, statement(SIGNER), second, two) == ["stored"] * 4
    assert (incidents(fresh), fresh.verified()[0]) == ([], set())
    assert fresh.verified()[1].segments == 2


def test_a_statement_of_another_key_of_its_kind_is_forged(fresh):
    core = cose.parse1(statement(OTHER)).payload.replace(cose.device_id(OTHER.public), DEVICE)
    assert names(fresh, cose.sign1(core, OTHER, cose.EPOCH_AAD)) == ["forged epoch"]
    ed25519 = cose.sign1(core, b"\x02" * 32, cose.EPOCH_AAD)
    assert names(fresh, ed25519) == ["forged epoch"]
    assert set(incidents(fresh)) == {"forged epoch"}


def test_a_statement_written_in_a_second_way_is_nothing(fresh):
    """Before the real one, or after it: it brings no key in, and no equivocation out."""
    real, one = statement(SIGNER), segment(1, wire.NO_PREVIOUS)
    assert names(fresh, mirrored(real), one) == ["altered", "unknown epoch"]
    assert names(fresh, real, one) == ["stored", "stored"]
    assert names(fresh, mirrored(real)) == ["altered"]
    assert names(fresh, real) == ["duplicate"]
    assert "equivocation" not in incidents(fresh)
    assert fresh.db.execute("SELECT count(*) FROM epochs").fetchone() == (1,)


def test_an_identity_key_in_a_tpm_signs_no_segment(fresh):
    """Not even one whose header says ES256 and names that key."""
    one = segment(1, wire.NO_PREVIOUS)
    by_identity = SIGNER.sign1(cose.parse1(one).payload, cose.SEGMENT_AAD)
    assert names(fresh, statement(SIGNER), by_identity) == ["stored", "re-sealed"]


def test_files_are_verified_with_that_key(tmp_path, capsys):
    (tmp_path / "segment.egs").write_bytes(segment(1, wire.NO_PREVIOUS))
    (tmp_path / "epoch.ege").write_bytes(statement(SIGNER))
    assert collector(["verify", str(tmp_path), "--key", PUBLIC.hex(), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True
    assert collector(["verify", str(tmp_path), "--key", OTHER.public.hex(), "-o", "json"]) == 2


@pytest.mark.parametrize("key", ["04" + PUBLIC.hex()[2:], PUBLIC.hex()[:-4], PUBLIC.hex() + "00", "02" + "ff" * 32])
def test_what_is_no_key_is_not_registered(tmp_path, capsys, key):
    directory = str(tmp_path / "collector")
    assert collector(["init", directory, "--host", "localhost"]) == 0
    assert collector(["add-device", directory, "--name", "tpm-1", "--key", key]) != 0
    assert "public key" in capsys.readouterr().err
    assert collector(["add-device", directory, "--name", "tpm-1", "--key", PUBLIC.hex()]) == 0
    connection = store.connect(f"{directory}/collector.db")
    assert Ingest(connection, b"\x09" * 32, lambda: 1).device(DEVICE).public == PUBLIC
    connection.close()


def request(signer, public):
    payload = cbor.encode([1, public, "AAAA", certificates.request("x")[1]])
    return cose.sign1(payload, signer, cose.ENROL_AAD)


def test_it_enrols_with_its_own_key_only():
    assert enrolment.parse(request(SIGNER, PUBLIC)).public == PUBLIC
    with pytest.raises(SignatureError):
        enrolment.parse(request(OTHER, PUBLIC))
    with pytest.raises(SignatureError):
        enrolment.parse(mirrored(request(SIGNER, PUBLIC)))
    for public in (b"\x04" + PUBLIC[1:], PUBLIC[1:] + b"xx", b""):
        with pytest.raises(DecodeError, match="no public key"):
            enrolment.parse(request(SIGNER, public))


def test_a_row_with_a_key_of_another_size_is_no_device():
    fresh = Fresh()
    fresh.db.execute("UPDATE devices SET public = ?", (bytes(40),))
    assert verify.devices(fresh.db) == []
