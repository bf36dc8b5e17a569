"""Flags of files: by descriptor and by path alike, and as bytes that a digest can hold."""

import os

from edgeguard.linux import fileflags


def test_flags_as_bytes_tell_each_combination_apart():
    texts = {fileflags.text(flags) for flags in fileflags.COMBINATIONS}
    assert len(texts) == len(fileflags.COMBINATIONS)
    assert fileflags.text(0x80000) == b""


def test_what_has_none_has_none(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    os.symlink("file", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "link", "fifo", "gone", ""):
        assert fileflags.of_path(str(tmp_path / name)) == 0
