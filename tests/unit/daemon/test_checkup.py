"""What `edgeguard doctor` says of a device that lacks what its policy asks for."""

from types import SimpleNamespace

import pytest

from edgeguard.daemon import checkup
from edgeguard.linux import mounts, swap
from edgeguard.model import Mode


def guard(mode, rule_mode, remediation="block-port"):
    rules = (SimpleNamespace(mode=rule_mode, remediation=remediation),)
    in_force = SimpleNamespace(baseline=SimpleNamespace(policy=SimpleNamespace(rules=rules)))
    return SimpleNamespace(judging=SimpleNamespace(in_force=in_force, mode=mode))


def test_a_port_cannot_be_blocked_without_nft(monkeypatch):
    monkeypatch.setattr(checkup, "World", lambda: SimpleNamespace(nft="/nonexistent/nft"))
    (said,) = checkup._tools(guard(Mode.ENFORCE, Mode.ENFORCE))
    assert (said["level"], said["name"], said["fix"]) == ("WARN", "nft", "apt install nftables")


@pytest.mark.parametrize(
    ("mode", "rule_mode", "remediation"),
    [
        (Mode.AUDIT, Mode.ENFORCE, "block-port"),
        (Mode.ENFORCE, Mode.AUDIT, "block-port"),
        (Mode.ENFORCE, Mode.ENFORCE, "set-sysctl"),
    ],
)
def test_who_blocks_no_port_needs_none(monkeypatch, mode, rule_mode, remediation):
    monkeypatch.setattr(checkup, "World", lambda: SimpleNamespace(nft="/nonexistent/nft"))
    assert checkup._tools(guard(mode, rule_mode, remediation)) == []


def test_where_there_is_one_nothing_is_said(monkeypatch):
    monkeypatch.setattr(checkup, "World", lambda: SimpleNamespace(nft="/bin/sh"))
    assert checkup._tools(guard(Mode.ENFORCE, Mode.ENFORCE)) == []
    assert checkup._tools(SimpleNamespace(judging=SimpleNamespace(in_force=None, mode=Mode.AUDIT))) == []


@pytest.mark.parametrize(
    ("fstype", "swaps", "level", "word"),
    [
        ("tmpfs", "", "OK", "in memory only"),
        ("tmpfs", "/dev/zram0 partition 1 0 100\n", "OK", "in memory only"),
        ("tmpfs", "/var/swap file 1 0 -2\n", "WARN", "/var/swap"),
        ("ext4", "", "WARN", "on a disk (ext4)"),
    ],
)
def test_where_the_signing_key_could_outlive_its_hour(monkeypatch, tmp_path, fstype, swaps, level, word):
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n" + swaps)
    real = swap.places
    monkeypatch.setattr(swap, "places", lambda: real(str(tmp_path / "swaps")))
    line = b"30 1 0:26 / %s rw,nosuid shared:1 - %s tmpfs rw\n" % (bytes(tmp_path), fstype.encode())
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(line))
    said = checkup._key(str(tmp_path))
    assert (said["level"], word in said["text"]) == (level, True), said


def test_no_swap_is_no_place(tmp_path):
    assert swap.places(str(tmp_path / "none")) == ()
