"""One manifest over another one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeguard.codec.layers import ABSENT, Layers
from edgeguard.codec.manifest import Entry, Reader, Writer, order

OLD = Entry(0o100644, 0, 0, 1, "program", b"o" * 32)
NEW = Entry(0o100755, 0, 0, 2, "program", b"n" * 32)


def manifest(path: Path, folders: Mapping[bytes, Mapping[bytes, Entry]]) -> Reader:
    with path.open("wb") as file:
        writer = Writer(file)
        for directory in sorted(folders, key=order):
            writer.add(directory, list(folders[directory]), list(folders[directory].values()))
        writer.close()
    return Reader(os.open(path, os.O_RDONLY))


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    base = {b"/usr/bin": {b"a": OLD, b"b": OLD, b"c": OLD}, b"/usr/bin/x": {b"q": OLD}, b"/usr/lib": {b"z": OLD}}
    top = {b"/etc": {b"new": NEW}, b"/usr/bin": {b"b": NEW, b"c": ABSENT, b"d": NEW}, b"/usr/lib": {b"z": ABSENT}}
    return Layers(manifest(tmp_path / "base", base), manifest(tmp_path / "top", top))


def test_the_upper_one_decides(layers: Layers) -> None:
    found = {name: layers.lookup(b"/usr/bin/" + name) for name in (b"a", b"b", b"c", b"d", b"e")}
    assert found == {b"a": OLD, b"b": NEW, b"c": None, b"d": NEW, b"e": None}
    assert layers.lookup(b"/etc/new") == NEW
    assert [layers.went(b"/usr/bin/" + name) for name in (b"a", b"b", b"c")] == [False, False, True]
    assert layers.decides(b"/usr/bin/c")
    assert not layers.decides(b"/usr/bin/a")


def test_both_are_walked_as_one(layers: Layers) -> None:
    blocks = [(block.directory, dict(zip(block.names, block.entries, strict=True))) for block in layers.blocks()]
    assert blocks == [
        (b"/etc", {b"new": NEW}),
        (b"/usr/bin", {b"a": OLD, b"b": NEW, b"d": NEW}),
        (b"/usr/bin/x", {b"q": OLD}),
    ]
    assert [block.directory for block in layers.tree(b"/usr")] == [b"/usr/bin", b"/usr/bin/x"]
    assert dict(layers.below(b"/usr/bin/x")) == {b"/usr/bin/x/q": OLD}


def test_one_directory_of_both(layers: Layers) -> None:
    for block in layers.blocks():
        assert layers.block(block.directory) == block
    assert layers.block(b"/usr/lib") is None, "all of it is gone"
    assert layers.block(b"/srv") is None


def test_nothing_below_is_fine(tmp_path: Path) -> None:
    layers = Layers(None, manifest(tmp_path / "top", {b"/etc": {b"new": NEW}}))
    assert layers.lookup(b"/etc/new") == NEW
    assert layers.lookup(b"/etc/old") is None
    assert [block.directory for block in layers.blocks()] == [b"/etc"]
