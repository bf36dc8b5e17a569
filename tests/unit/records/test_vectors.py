"""Golden segments: read as they were written, by us and by other people's libraries."""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import pytest

from edgeguard.codec import cose
from edgeguard.records import dictionaries, epoch, receipts, wire

VECTORS = Path(__file__).parents[2] / "vectors"
KEYS = {name: bytes.fromhex(key) for name, key in json.loads((VECTORS / "keys.json").read_text()).items()}
DECODED = json.loads((VECTORS / "decoded.json").read_text())
SEGMENTS = sorted(path.name for path in VECTORS.glob("*.egs"))

sys.path.insert(0, str(VECTORS))
import make  # noqa: E402 - found by the line above


@pytest.mark.parametrize("name", SEGMENTS)
def test_golden_segments_read_as_they_always_did(name):
    assert make.decoded((VECTORS / name).read_bytes()) == DECODED[name]


def inside(data):
    """Header and inflated body: DEFLATE's output differs between releases of zlib, what it holds does not."""
    header, codec, body = wire._opened(cose.parse1(data).payload)
    return header._replace(previous=b""), wire._inflate(codec, body, header.dictionary)


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_writer_still_writes_them_so(name):
    assert inside(make.vectors()[name]) == inside((VECTORS / name).read_bytes())


def test_the_golden_receipt_reads():
    receipt = receipts.verified((VECTORS / "receipt.egr").read_bytes(), [KEYS["collector"]], make.DEVICE)
    assert receipt.heads[0].sequence == 3
    assert receipt.refused[0].reason == "altered"
    assert receipt.epochs == (2, 1)


@pytest.mark.parametrize("name", ["epoch-1.ege", "epoch-2.ege", "tpm-epoch-1.ege"])
def test_golden_statements_read_as_they_always_did(name):
    data = (VECTORS / name).read_bytes()
    assert make.stated(data) == DECODED[name]
    assert make.vectors()[name] == data
    assert epoch.is_statement(data)
    assert not any(epoch.is_statement((VECTORS / segment).read_bytes()) for segment in SEGMENTS)


def test_the_statement_of_the_next_epoch_is_signed_twice():
    """By hand: the identity key over the announcement, the key of the epoch before over the statement."""
    cbor = foreign_cbor()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = (VECTORS / "epoch-2.ege").read_bytes()
    for key, purpose in (("device", b"EGEPOC1"), ("epoch", b"EGNEXT1")):
        protected, unprotected, data, signature = cbor.loads(data).value
        assert (cbor.loads(protected)[4], unprotected) == (hashlib.sha256(KEYS[key]).digest()[:8], {})
        Ed25519PublicKey.from_public_bytes(KEYS[key]).verify(
            signature, cbor.dumps(["Signature1", protected, purpose, data])
        )
    parts = cbor.loads(data)
    assert parts[:4] == ["epoch", 1, make.DEVICE, 2]
    assert parts[10] == [1, KEYS["epoch"]]


def foreign_cbor():
    return pytest.importorskip("cbor", reason="the PyPI package cbor is a CBOR library that is not cbor2")


@pytest.mark.parametrize("name", SEGMENTS)
def test_pycose_verifies_our_segments(name):
    pytest.importorskip("pycose", reason="another COSE implementation: pip install pycose")
    from pycose.headers import KID
    from pycose.keys import OKPKey
    from pycose.keys.curves import Ed25519
    from pycose.messages import CoseMessage

    data = (VECTORS / name).read_bytes()
    message = CoseMessage.decode(data)
    assert message.phdr[KID] == cose.kid_of(KEYS["epoch"])
    message.key = OKPKey(crv=Ed25519, x=KEYS["epoch"])
    message.external_aad = b"EGSEG1"
    assert message.verify_signature()
    message.external_aad = b"EGRCPT1"
    assert not message.verify_signature()


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_signature_verifies_from_the_rfc_alone(name):
    """Sig_structure by hand and by a CBOR library that is not ours: RFC 9052, 4.4."""
    cbor = foreign_cbor()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    tag = cbor.loads((VECTORS / name).read_bytes())
    assert tag.tag == 18
    protected, unprotected, payload, signature = tag.value
    assert cbor.loads(protected) == {1: -8, 4: hashlib.sha256(KEYS["epoch"]).digest()[:8]}
    assert unprotected == {}
    signed = cbor.dumps(["Signature1", protected, b"EGSEG1", payload])
    Ed25519PublicKey.from_public_bytes(KEYS["epoch"]).verify(signature, signed)


@pytest.mark.parametrize("name", SEGMENTS)
def test_another_cbor_library_decodes_our_payload(name):
    cbor = foreign_cbor()
    parts = cbor.loads(cose.parse1((VECTORS / name).read_bytes()).payload)
    segment = wire.decode_segment(cose.parse1((VECTORS / name).read_bytes()).payload)
    assert len(parts) == 16
    assert (parts[1], parts[2], parts[3]) == (make.DEVICE, segment.header.stream, segment.header.sequence)
    body = parts[15]
    if parts[14] & 1:
        preset = (dictionaries.read(parts[13]),) if parts[13] else ()
        body = zlib.decompressobj(-15, *preset).decompress(body)
    strings, rows = cbor.loads(body)[:2]
    assert len(rows) == parts[7] == len(segment.records)
    for row, record in zip(rows, segment.records, strict=True):
        assert (row[1] >> 4, row[1] & 7) == (record.type, record.severity)
    text = repr([strings, rows])
    assert "hunter2" not in text


def test_python_cwt_verifies_our_segments():
    pytest.importorskip("cwt", reason="another COSE implementation: pip install cwt")
    from cwt import COSE, COSEKey

    data = (VECTORS / "segment-1-1.egs").read_bytes()
    key = COSEKey.new({1: 1, 3: -8, 2: cose.kid_of(KEYS["epoch"]), -1: 6, -2: KEYS["epoch"]})
    payload = COSE.new().decode(data, key, external_aad=b"EGSEG1")
    assert payload == cose.parse1(data).payload
