"""The grammar by somebody else's CDDL parser, and the golden segments through a reader that is not Python."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cbor2 import dumps, loads
from test_vectors import DECODED, KEYS, SEGMENTS, VECTORS

from edgeguard.codec import cose
from edgeguard.collector import events
from edgeguard.records import dictionaries, epoch, registry, wire
from edgeguard.records.wire import Record

SEED = b"\x05" * 32
GRAMMAR = (Path(__file__).parents[3] / "docs/segment.cddl").read_text()


@pytest.mark.parametrize("start", ["segment", "receipt", "statement", "body", "packed-body", "row"])
def test_the_grammar_is_one(start):
    """Parsed as a whole by cddl-rs, which is for parsing only: it takes `[int, int, * any]` for three elements and so
    refuses [1, 2], where RFC 8610, 3.2 lets each entry of a group occur as often as its own indicator says."""
    pycddl = pytest.importorskip("pycddl", reason="cddl-rs for Python: pip install pycddl")
    assert pycddl.Schema(f"start = {start}\n{GRAMMAR}")
    with pytest.raises(pycddl.ValidationError, match="length 3"):
        pycddl.Schema("a = [int, int, * any]").validate_cbor(dumps([1, 2]))


def fits(root, data):
    """Does somebody else's validator find that these bytes are what docs/segment.cddl calls `root`?"""
    verifier = pytest.importorskip("cddl_verifier", reason="a validator of CBOR by CDDL: pip install cddl-verifier")
    return verifier.validate(GRAMMAR, data, root_type=root).valid


def body_of(name):
    header, codec, body = wire._opened(cose.parse1((VECTORS / name).read_bytes()).payload)
    return "packed-body" if codec >= wire.CODEC_PACKED else "body", wire._inflate(codec, body, header.dictionary)


WHOLE = {".egs": "segment", ".egr": "receipt", ".ege": "statement"}


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.eg?")), ids=lambda path: path.name)
def test_golden_files_are_what_the_grammar_says(path):
    data = path.read_bytes()
    assert fits(WHOLE[path.suffix], data)
    parts = loads(data)
    parts.value[2] = dumps([2, bytes(16), 0])  # neither a payload, nor a receipt, nor a statement
    assert not fits(WHOLE[path.suffix], dumps(parts))
    assert not fits(WHOLE[path.suffix], data.replace(b"\xa0", b"\xa1\x01\x01", 1))  # an unprotected header


@pytest.mark.parametrize("name", SEGMENTS)
def test_bodies_are_what_the_grammar_says_and_broken_ones_are_not(name):
    root, body = body_of(name)
    assert fits(root, body)
    content = loads(body)
    row, *rest = content[1]
    for field in range(len(row)):
        wrong = [*row[:field], "text" if field < 2 else {"no": [["kind"]]}, *row[field + 1 :]]
        assert not fits(root, dumps([content[0], [wrong, *rest], *content[2:]])), (row, field)
    assert not fits(root, dumps([[7], *content[1:]]))
    assert not fits(root, dumps([content[0], [], *content[2:]]))


def test_every_type_fits_the_grammar_packed_and_not():
    for dictionary in (0, 1):
        for batch in batches():
            payload = wire.encode_segment(blank(dictionary), batch, None, (), None)
            header, codec, body = wire._opened(payload)
            assert fits("payload", payload)
            root = "packed-body" if dictionary else "body"
            assert fits(root, wire._inflate(codec, body, header.dictionary))


def blank(dictionary):
    return wire.Header(bytes(16), 1, 7, 1, 3, 100, 0, bytes(32), 0, None, 0, bytes(8), dictionary)


def batches():
    from test_wire import SAMPLE

    made = [Record(kind, 1, 5, None, 2, 0, False, ()) for kind in (*registry.TYPES, 14, 77)]
    return [made, SAMPLE]


def ruby(*files, key=KEYS["epoch"], identity=KEYS["device"]):
    if not shutil.which("ruby"):
        pytest.skip("no ruby: apt-get install ruby ruby-cbor")
    if subprocess.run(["ruby", "-e", "require 'cbor'"], capture_output=True, check=False).returncode:
        pytest.skip("no ruby-cbor: apt-get install ruby-cbor")
    command = [
        "ruby",
        str(VECTORS / "read.rb"),
        identity.hex(),
        key.hex(),
        dictionaries.DIRECTORY,
        *map(str, files),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ruby_verifies_and_decodes_the_golden_segments():
    done = ruby(*(VECTORS / name for name in SEGMENTS))
    assert done.stderr == ""
    for name, line in zip(SEGMENTS, done.stdout.splitlines(), strict=True):
        read = json.loads(line)
        segment = wire.decode_segment(cose.parse1((VECTORS / name).read_bytes()).payload)
        header = segment.header
        assert read["verified"] is True
        assert (read["stream"], read["seq"], read["dictionary"]) == (header.stream, header.sequence, header.dictionary)
        assert read["records"] == DECODED[name]


def test_ruby_undoes_differences_and_digests(tmp_path):
    """What the golden segments do not have: digests named again and as the baseline's, starts, parents, columns."""
    paths, other, now = ["/usr/bin/x", "/etc/y"], b"\x55" * 32, 1_795_000_000_000
    digests = [bytes([n]) * 32 for n in range(len(paths))]
    actor = (2100, paths[0], ("x", "-a"), 0, None, None, None, None, None, None, ((2098, "/bin/sh"), (1, "/sbin/init")))
    rows = [
        (1, (paths[0], ("x", paths[1]), 2100, 2098, 0, *[None] * 9, now - 30, None, None, other)),
        (2, (0, paths[0], {"sha256": digests[0], "size": 2**40})),
        (
            2,
            (0, paths[1], {"sha256": other, "xattrs": b"\0\1", "pid": 2101, "start": now + 5, "ppid": -3}, None, actor),
        ),
        (2, (0, "/tmp/\udcff", {"target": "a\udcfe"})),
        (7, (5, 100, 7, None, 90)),
        (7, (9, 40, 2, None, 9000)),
        (13, ("p", None, None, None, 1, digests[1], 40, None, 3)),
        (3, (0, 6, "::", 22, 0, 2090)),
    ]
    records = [Record(kind, 1, 50 + n, now + n, 2, 3, n == 1, fields) for n, (kind, fields) in enumerate(rows)]
    for dictionary in (0, 1):
        header = blank(dictionary)._replace(device=cose.device_id(cose.public_of(SEED)))
        reference = {path: n for n, path in enumerate(paths)}.get
        payload = wire.encode_segment(header, records, reference, (), digests.__getitem__)
        file = tmp_path / f"{dictionary}.egs"
        file.write_bytes(cose.sign1(payload, SEED, cose.SEGMENT_AAD))
        done = ruby(file, identity=cose.public_of(SEED), key=cose.public_of(SEED))
        assert done.stderr == ""
        ours = [
            {"stream": record.stream, "mono": record.mono, "wall": record.wall, **events.body(record)}
            for record in wire.decode_segment(payload).records
        ]
        assert json.loads(done.stdout)["records"] == ours


def test_ruby_refuses_a_changed_segment_and_another_key(tmp_path):
    data = bytearray((VECTORS / "segment-packed.egs").read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed.egs").write_bytes(data)
    assert '"verified":false' in ruby(tmp_path / "changed.egs").stdout
    assert ruby(VECTORS / "segment-0-1.egs", key=bytes(31) + b"\x01").returncode != 0


@pytest.mark.parametrize(("owner", "names"), [("device", ["epoch-1.ege", "epoch-2.ege"]), ("tpm", ["tpm-epoch-1.ege"])])
def test_ruby_verifies_the_golden_statements(owner, names, tmp_path):
    """Of an identity key in a file, and of one in a TPM."""
    done = ruby(*(VECTORS / name for name in names), identity=KEYS[owner])
    assert done.stderr == ""
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        said = epoch.unverified((VECTORS / name).read_bytes())
        assert json.loads(line) == {"verified": True, "number": said.number, "key": said.public.hex()}
        changed = bytearray((VECTORS / name).read_bytes())
        changed[-1] ^= 1
        (tmp_path / name).write_bytes(changed)
        assert '"verified":false' in ruby(tmp_path / name, identity=KEYS[owner]).stdout
