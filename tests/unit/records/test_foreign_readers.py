"""The grammar by somebody else's CDDL parser, and the golden segments through a reader that is not Python."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_vectors import KEYS, SEGMENTS, VECTORS

from edgeguard.codec import cose
from edgeguard.records import dictionaries, epoch, registry, wire

GRAMMAR = (Path(__file__).parents[3] / "docs/segment.cddl").read_text()


def schema(start):
    pycddl = pytest.importorskip("pycddl", reason="cddl-rs for Python: pip install pycddl")
    return pycddl.Schema(f"start = {start}\n{GRAMMAR}")


@pytest.mark.parametrize("start", ["segment", "receipt", "body", "packed-body", "row"])
def test_the_grammar_is_one(start):
    """Parsed as a whole. pycddl 0.6.4 refuses our segments for the lengths of arrays; who is right is open."""
    assert schema(start)


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
