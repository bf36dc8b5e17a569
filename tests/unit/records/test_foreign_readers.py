"""The golden segments against the grammar, by somebody else's CDDL tool, and through a reader that is not Python."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cbor2 import dumps
from test_vectors import KEYS, SEGMENTS, VECTORS, inside

from edgeguard.codec import cbor, cose
from edgeguard.records import dictionaries, registry, wire

GRAMMAR = (Path(__file__).parents[3] / "docs/segment.cddl").read_text()


def schema(start):
    pycddl = pytest.importorskip("pycddl", reason="cddl-rs for Python: pip install pycddl")
    return pycddl.Schema(f"start = {start}\n{GRAMMAR}")


def fits(grammar, data):
    import pycddl

    try:
        grammar.validate_cbor(data)
    except pycddl.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", SEGMENTS)
def test_golden_segments_are_as_the_grammar_says(name):
    data = (VECTORS / name).read_bytes()
    assert fits(schema("segment"), data)
    payload = cose.parse1(data).payload
    assert fits(schema("payload"), payload)
    header, body = inside(data)
    assert fits(schema("packed-body" if header.dictionary else "body"), body)
    for row in cbor.decode(body, depth=wire.DEPTH)[1]:
        assert fits(schema(f"{registry.TYPES[row[1] >> 4].name}-row"), dumps(row))


def test_the_golden_receipt_is_as_the_grammar_says():
    data = (VECTORS / "receipt.egr").read_bytes()
    assert fits(schema("receipt"), data)
    assert fits(schema("receipt-payload"), cose.parse1(data).payload)


@pytest.mark.parametrize(
    "row",
    [
        [0, 2 << 4, "seen"],  # an enum by its name
        [0, 2 << 4, 0, "/x", [1]],  # columns that are no map
        [0, 1 << 4, "/x", "y"],  # a list that is none
        [0, 2 << 4, 0, "/x", {"a": {3: b""}}],
        [-1, 2 << 4],
        ["x", 77 << 4],
    ],
)
def test_the_grammar_refuses_what_the_decoder_refuses(row):
    assert not fits(schema("row"), dumps(row))


def test_the_grammar_takes_types_and_fields_of_tomorrow():
    for row in ([0, 77 << 4, 0, ["x"]], [0, 15 << 4, "s", None, {"new": 1}]):
        assert fits(schema("row"), dumps(row))


def ruby(*files, key=KEYS["device"]):
    if not shutil.which("ruby"):
        pytest.skip("no ruby: apt-get install ruby ruby-cbor")
    if subprocess.run(["ruby", "-e", "require 'cbor'"], capture_output=True, check=False).returncode:
        pytest.skip("no ruby-cbor: apt-get install ruby-cbor")
    command = ["ruby", str(VECTORS / "read.rb"), key.hex(), dictionaries.DIRECTORY, *map(str, files)]
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
        assert [(kind, severity, mono) for kind, severity, mono, _ in read["rows"]] == [
            (record.type, record.severity, record.mono) for record in segment.records
        ]
        texts = json.dumps([read["strings"], read["rows"]])
        states = [record.fields for record in segment.records if record.type == registry.STATE.number]
        assert all(fields[1] in texts for fields in states if len(fields) > 1 and fields[1])


def test_ruby_refuses_a_changed_segment_and_another_key(tmp_path):
    data = bytearray((VECTORS / "segment-packed.egs").read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed.egs").write_bytes(data)
    assert '"verified":false' in ruby(tmp_path / "changed.egs").stdout
    assert ruby(VECTORS / "segment-0-1.egs", key=bytes(31) + b"\x01").returncode != 0
