"""The manifest: round trip, lookup without reading it all, and any bytes give a value or DecodeError."""

import contextlib
import io
import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import TYPES, Entry, Reader, Writer, digest, order, split
from edgeguard.errors import DecodeError

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in {b".", b".."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
ENTRIES = st.builds(
    Entry,
    st.builds(lambda kind, mode: kind << 12 | mode, st.sampled_from(sorted(TYPES)), st.integers(0, 0o7777)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from(["program", "config", "Schlüssel"]),
    st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
    st.binary(max_size=40),
    st.binary(max_size=24),
    st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
)


def grouped(files):
    tree = {}
    for path, entry in files.items():
        directory, name = split(path)
        tree.setdefault(directory, []).append((name, entry))
    return [(directory, sorted(tree[directory])) for directory in sorted(tree, key=order)]


def encoded(files):
    out = io.BytesIO()
    writer = Writer(out)
    for directory, members in grouped(files):
        writer.add(directory, [name for name, _ in members], [entry for _, entry in members])
    writer.close()
    return out.getvalue()


class Stored:
    """Bytes as an open file."""

    def __init__(self, data):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._file.write(data)
        self._file.flush()
        self.fd = self._file.fileno()

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        self._file.close()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(PATHS, ENTRIES, max_size=12))
def test_what_goes_in_comes_out(files):
    with Stored(encoded(files)) as fd:
        reader = Reader(fd)
        assert reader.count == len(files)
        reader.verify()
        for path, entry in files.items():
            assert reader.lookup(path) == entry
            assert reader.lookup(path + b"x") == files.get(path + b"x")
            expected = {other for other in files if other.startswith(path + b"/")}
            assert {found for found, _ in reader.below(path)} == expected
        assert [block.directory for block in reader.blocks()] == list(reader.directories())
        assert dict(reader.below(b"")) == files


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(PATHS, ENTRIES, min_size=1, max_size=5), st.data())
def test_damage_gives_a_value_or_a_decode_error(files, data):
    raw = bytearray(encoded(files))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    with Stored(raw) as fd:
        try:
            reader = Reader(fd)
            for path in files:
                reader.lookup(path)
            list(reader.below(b""))
            reader.verify()
        except DecodeError:
            pass


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_between_magic_and_trailer(middle):
    whole = encoded({b"/a": Entry(0o100644, 0, 0, 0, "x")})
    with Stored(whole[:8] + middle + whole[-32:]) as fd, contextlib.suppress(DecodeError):
        Reader(fd).verify()


def test_truncation_is_always_seen():
    raw = encoded(
        {b"/etc/a": Entry(0o100644, 0, 0, 3, "x", b"d" * 32), b"/b": Entry(0o120777, 0, 0, 0, "x", b"", b"t")}
    )
    for length in range(len(raw)):
        with Stored(raw[:length]) as fd, pytest.raises(DecodeError):
            Reader(fd).verify()


def test_walk_order_keeps_a_directory_and_what_is_below_together():
    files = {path: Entry(0o100644, 0, 0, 0, "x") for path in (b"/a/x", b"/a-b/x", b"/a/b/x", b"/a.c", b"/a/b-/y")}
    with Stored(encoded(files)) as fd:
        reader = Reader(fd)
        assert [found for found, _ in reader.below(b"/a")] == [b"/a/x", b"/a/b/x", b"/a/b-/y"]
        assert reader.has_directory(b"/a/b")
        assert not reader.has_directory(b"/a/c")


def test_directories_out_of_order_are_refused():
    writer = Writer(io.BytesIO())
    entry = Entry(0o100644, 0, 0, 0, "x")
    writer.add(b"/b", [b"x"], [entry])
    with pytest.raises(ValueError, match="walk order"):
        writer.add(b"/a", [b"x"], [entry])


def test_columns_speak_plainly():
    entry = Entry(0o104755, 0, 0, 9, "program", b"d" * 32, b"", bytes.fromhex("01000002"), b"")
    assert entry.columns(Algorithm.SHA256) == {
        "type": "file",
        "sha256": b"d" * 32,
        "size": 9,
        "mode": 0o4755,
        "uid": 0,
        "gid": 0,
        "target": "",
        "caps": "01000002",
        "xattrs": b"",
    }
    assert entry.setid
    assert Entry(0o100755, 0, 0, 0, "x", caps=b"c").setid
    assert not Entry(0o042755, 0, 0, 0, "x").setid


def test_digest_is_sha256_of_the_file():
    with Stored(b"abc") as fd:
        os.lseek(fd, 2, os.SEEK_SET)
        assert digest(fd).hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
