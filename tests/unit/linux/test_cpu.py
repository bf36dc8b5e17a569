"""What /proc/cpuinfo says of instructions for SHA-256; where it says nothing, nothing is claimed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeguard.codec.digests import Algorithm
from edgeguard.daemon import learning
from edgeguard.linux import cpu

PI4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n\nprocessor\t: 1\n"
PI5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp\n"
OLD_PC = "processor\t: 0\nmodel name\t: sha_ni is not a flag here\nflags\t\t: fpu sse2 avx2\nbugs\t\t: sha_ni\n"
NEW_PC = "processor\t: 0\nflags\t\t: fpu sse2 avx2 sha_ni\n"
RISCV = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\n"


@pytest.mark.parametrize(
    ("text", "found"), [(PI4, False), (PI5, True), (OLD_PC, False), (NEW_PC, True), (RISCV, None), ("", None)]
)
@pytest.mark.parametrize("bits", [64, 32])
def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool | None, bits: int) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert cpu.computes_sha256(str(path)) is found
    monkeypatch.setattr(cpu.computes_sha256, "__defaults__", (str(path),))
    monkeypatch.setattr(sys, "maxsize", (1 << bits - 1) - 1)
    quick = Algorithm.BLAKE2B if found is False and bits == 64 else Algorithm.SHA256
    assert learning.quickest() is quick


def test_nothing_tells(tmp_path: Path) -> None:
    assert cpu.computes_sha256(str(tmp_path / "none")) is None
    (tmp_path / "garbage").write_bytes(bytes(range(256)) * 1000)
    assert cpu.computes_sha256(str(tmp_path / "garbage")) is None
