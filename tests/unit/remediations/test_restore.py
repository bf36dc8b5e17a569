"""Files: put back byte for byte, taken away with everything needed to put them back, and never led elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import stat

import pytest

from edgeguard.codec.digests import Algorithm, swift
from edgeguard.errors import RemediationRefused
from edgeguard.remediations import Order, World, carry, files, place, quarantine
from edgeguard.remediations.undo import DONE, FAILED, INTENDED, REVERTED, UndoStore

GOOD = b"\x7fELF the good one\n" * 100
NOW = 1_763_880_000_000


class House:
    """A root directory, a manifest and a vault in a temporary directory."""

    def __init__(self, base):
        self.root = base / "root"
        self.entries = {}
        for name in ("root/usr/sbin", "root/etc", "vault", "act"):
            (base / name).mkdir(parents=True)
            (base / name).chmod(0o755)
        self.root.chmod(0o755)
        self.world = World(
            root=str(self.root),
            vault=str(base / "vault"),
            quarantine=str(base / "act/quarantine"),
            undo=str(base / "act/undo"),
            trusted_uids=frozenset((0, os.geteuid())),
            lookup=self.entries.get,
        )
        self.store = UndoStore(self.world.undo)

    def known(self, path: bytes, content: bytes = GOOD, mode: int = 0o755, **columns):
        """Put a file there as the baseline knows it, with a protected copy."""
        real = os.fsencode(self.root) + path
        with open(real, "wb") as file:
            file.write(content)
        os.chmod(real, mode)
        digest = swift(self.algorithm).digest(content)
        with open(os.path.join(self.world.vault, digest.hex()), "wb") as file:
            file.write(content)
        self.entries[path] = {
            "type": "file",
            self.algorithm.value: digest,
            "size": len(content),
            "mode": mode,
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "caps": "",
            "xattrs": b"",
        } | columns
        return real

    def order(self, path: bytes, verb: str = "restore-file", finding: str = "F-7K2M") -> Order:
        return Order(verb, finding, "EG-FILE-002", "file", os.fsdecode(path), {}, None)

    def act(self, path: bytes, verb: str = "restore-file", now: int = NOW):
        return carry.carry_out(self.order(path, verb), self.world, self.store, now)

    def undo(self, now: int = NOW + 1):
        return carry.take_back("F-7K2M", self.world, self.store, now)


@pytest.fixture(params=Algorithm)
def house(tmp_path, request):
    """Whatever digests the baseline has; what is in quarantine has its SHA-256."""
    made = House(tmp_path)
    made.algorithm = request.param
    return made


def _read(path):
    with open(path, "rb") as file:
        return file.read()


NAMES = [b"/usr/sbin/sshd", b"/usr/sbin/line\nfeed", b"/usr/sbin/\x1b[2J\xff\xfe", b"/usr/sbin/" + b"n" * 255]


@pytest.mark.parametrize("path", NAMES)
def test_a_changed_file_is_back_byte_for_byte_and_undo_brings_the_change_again(house, path):
    real = house.known(path, mode=0o4755)
    evil = b"evil" * 1000
    with open(real, "wb") as file:
        file.write(evil)
    os.chmod(real, 0o777)

    reply = house.act(path)

    assert reply.ok, reply
    status = os.lstat(real)
    assert _read(real) == GOOD
    assert stat.S_IMODE(status.st_mode) == 0o4755
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    (kept,) = os.listdir(house.world.quarantine)
    manifest = json.loads(_read(os.path.join(house.world.quarantine, kept, "manifest.json")))
    assert bytes.fromhex(manifest["path_hex"]) == path
    assert manifest["mode"] == 0o777
    assert _read(os.path.join(house.world.quarantine, kept, "content")) == evil
    assert os.listdir(os.path.dirname(real)) == [os.path.basename(real)], "no temporary file stays"

    assert house.undo().ok
    assert _read(real) == evil
    assert stat.S_IMODE(os.lstat(real).st_mode) == 0o777
    assert house.store.all()[0].state == REVERTED


def test_after_an_undo_the_same_act_is_held_back(house):
    real = house.known(b"/usr/sbin/sshd")
    with open(real, "wb") as file:
        file.write(b"changed")
    assert house.act(b"/usr/sbin/sshd").ok
    assert house.undo().ok
    assert "undone by a person" in house.act(b"/usr/sbin/sshd", now=NOW + 2).detail
    assert house.act(b"/usr/sbin/sshd", now=NOW + 25 * 3_600_000).ok


def test_a_missing_file_is_made_again_and_undo_takes_it_away(house):
    real = house.known(b"/etc/passwd", b"root:x:0:0\n", 0o644)
    os.unlink(real)
    assert house.act(b"/etc/passwd").ok
    assert _read(real) == b"root:x:0:0\n"
    assert house.undo().ok
    assert not os.path.lexists(real)


def test_only_the_mode_differs_and_no_protected_copy_is_needed(house):
    real = house.known(b"/etc/shadow", b"root:*\n", 0o640)
    for name in os.listdir(house.world.vault):
        os.unlink(os.path.join(house.world.vault, name))
    os.chmod(real, 0o666)
    assert house.act(b"/etc/shadow").ok
    assert (stat.S_IMODE(os.lstat(real).st_mode), _read(real)) == (0o640, b"root:*\n")


@pytest.mark.parametrize("kept", ["in the file", "in the vault", "nowhere"])
def test_extended_attributes_are_put_back(house, kept):
    real = house.known(b"/usr/sbin/sshd")
    text = b"user.origin\0" + (3).to_bytes(4, "little") + b"pkg"
    house.entries[b"/usr/sbin/sshd"]["xattrs"] = hashlib.sha256(text).digest()
    with open(real, "wb") as file:
        file.write(b"trojan")
    try:
        os.setxattr(real, "user.origin", b"pkg" if kept == "in the file" else b"me")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    if kept == "in the vault":
        with open(os.path.join(house.world.vault, hashlib.sha256(text).hexdigest()), "wb") as file:
            file.write(text)
    reply = house.act(b"/usr/sbin/sshd")
    assert reply.ok == (kept != "nowhere"), reply
    if reply.ok:
        assert os.getxattr(real, "user.origin") == b"pkg"
        assert house.undo().ok
    assert os.getxattr(real, "user.origin") == (b"pkg" if kept == "in the file" else b"me")


def test_a_symlink_is_turned_back(house):
    link = os.path.join(house.root, "etc/localtime")
    os.symlink("/tmp/evil", link)
    house.entries[b"/etc/localtime"] = {
        "type": "symlink",
        "target": "/usr/share/zoneinfo/UTC",
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "mode": 0o777,
    }
    assert house.act(b"/etc/localtime").ok
    assert os.readlink(link) == "/usr/share/zoneinfo/UTC"
    assert house.undo().ok
    assert os.readlink(link) == "/tmp/evil"


def test_a_file_in_place_of_a_symlink_and_the_reverse(house):
    real = house.known(b"/usr/sbin/sshd")
    os.unlink(real)
    os.symlink("/tmp/evil", real)
    assert house.act(b"/usr/sbin/sshd").ok
    assert stat.S_ISREG(os.lstat(real).st_mode)
    assert house.undo().ok
    assert os.readlink(real) == b"/tmp/evil"


def test_a_forged_protected_copy_is_not_believed(house):
    real = house.known(b"/usr/sbin/sshd")
    digest = house.entries[b"/usr/sbin/sshd"][house.algorithm.value].hex()
    with open(os.path.join(house.world.vault, digest), "wb") as file:
        file.write(b"another trojan")
    with open(real, "wb") as file:
        file.write(b"trojan")
    reply = house.act(b"/usr/sbin/sshd")
    assert (reply.ok, reply.state) == (False, "failed")
    assert _read(real) == b"trojan", "what was there stays"
    assert os.listdir(os.path.dirname(real)) == [b"sshd"]
    assert house.store.all()[0].state == FAILED


def test_a_protected_copy_that_is_a_symlink_or_a_fifo_is_refused(house, tmp_path):
    real = house.known(b"/usr/sbin/sshd")
    copy = os.path.join(house.world.vault, house.entries[b"/usr/sbin/sshd"][house.algorithm.value].hex())
    with open(real, "wb") as file:
        file.write(b"trojan")
    os.unlink(copy)
    (tmp_path / "good").write_bytes(GOOD)
    os.symlink(tmp_path / "good", copy)
    assert house.act(b"/usr/sbin/sshd").state == "refused"
    os.unlink(copy)
    os.mkfifo(copy)
    assert house.act(b"/usr/sbin/sshd").state == "refused"


def test_a_symlinked_directory_leads_nowhere_unless_the_baseline_knows_it(house, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    house.known(b"/usr/sbin/sshd")
    os.rename(house.root / "usr/sbin", house.root / "usr/moved")
    os.symlink(tmp_path / "elsewhere", house.root / "usr/sbin")
    reply = house.act(b"/usr/sbin/sshd")
    assert reply.state == "refused"
    assert "symlink" in reply.detail
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_merged_usr_is_followed_because_the_baseline_knows_the_link(house):
    real = house.known(b"/usr/sbin/sshd")
    os.symlink("usr/sbin", house.root / "sbin")
    house.entries[b"/sbin"] = {"type": "symlink", "target": "usr/sbin"}
    house.entries[b"/sbin/sshd"] = house.entries[b"/usr/sbin/sshd"]
    with open(real, "wb") as file:
        file.write(b"trojan")
    assert house.act(b"/sbin/sshd").ok
    assert _read(real) == GOOD


def test_links_in_a_circle_end(house):
    os.symlink("/b", house.root / "a")
    os.symlink("/a", house.root / "b")
    house.entries[b"/a"] = {"type": "symlink", "target": "/b"}
    house.entries[b"/b"] = {"type": "symlink", "target": "/a"}
    with pytest.raises(RemediationRefused):
        place.reach(b"/a/x", house.world, trusted=True)


def test_a_directory_that_others_can_write_is_no_place_to_restore(house):
    house.known(b"/etc/passwd")
    os.unlink(house.root / "etc/passwd")
    (house.root / "etc").chmod(0o757)
    assert "written by others" in house.act(b"/etc/passwd").detail


@pytest.mark.parametrize(
    "path", [b"etc/passwd", b"/etc/../etc/passwd", b"/etc//passwd", b"/etc/./passwd", b"/", b"/etc/", b"/a\0b", b""]
)
def test_a_path_that_is_not_plain_is_refused(house, path):
    house.entries[path] = {"type": "file"}
    with pytest.raises(RemediationRefused):
        place.components(path)


def test_what_the_baseline_does_not_name_is_not_touched(house):
    assert "no reference value" in house.act(b"/etc/unknown").detail


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_fifo_or_directory_in_place_of_the_file_is_left_to_a_person(house, make):
    real = house.known(b"/usr/sbin/sshd")
    os.unlink(real)
    make(real)
    assert house.act(b"/usr/sbin/sshd").state == "refused"


def test_the_other_name_of_a_hard_linked_file_keeps_its_content(house):
    real = house.known(b"/usr/sbin/sshd")
    os.unlink(real)
    precious = house.root / "etc/precious"
    precious.write_bytes(b"precious")
    os.link(precious, real)
    assert house.act(b"/usr/sbin/sshd").ok
    assert (precious.read_bytes(), _read(real)) == (b"precious", GOOD)


def test_a_change_between_looking_and_acting_is_noticed(house):
    real = house.known(b"/usr/sbin/sshd")
    with open(real, "wb") as file:
        file.write(b"trojan 1")
    plan = files.RestoreFile().prepare(house.order(b"/usr/sbin/sshd"), house.world)
    os.unlink(real)
    with open(real, "wb") as file:
        file.write(b"trojan 2")
    with pytest.raises(RemediationRefused):
        files.RestoreFile().apply(plan, house.world)
    assert _read(real) == b"trojan 2"


def test_undo_does_not_overwrite_what_came_later(house):
    real = house.known(b"/usr/sbin/sshd")
    with open(real, "wb") as file:
        file.write(b"trojan")
    assert house.act(b"/usr/sbin/sshd").ok
    with open(real, "wb") as file:
        file.write(b"an upgrade")
    assert house.undo().state == "refused"
    assert _read(real) == b"an upgrade"
    assert house.store.all()[0].state == DONE, "it can still be undone later"


def test_a_new_file_goes_to_quarantine_and_comes_back(house):
    real = house.root / "usr/sbin/backdoor"
    real.write_bytes(b"#!/bin/sh\n")
    real.chmod(0o6755)
    reply = house.act(b"/usr/sbin/backdoor", "quarantine-file")
    assert reply.ok, reply
    assert not real.exists()
    (kept,) = os.listdir(house.world.quarantine)
    content = os.stat(os.path.join(house.world.quarantine, kept, "content"))
    assert stat.S_IMODE(content.st_mode) == 0o400
    assert stat.S_IMODE(os.stat(house.world.quarantine).st_mode) == 0o700
    assert house.undo().ok
    assert (real.read_bytes(), stat.S_IMODE(real.stat().st_mode)) == (b"#!/bin/sh\n", 0o6755)


def test_a_known_file_is_never_taken_away(house):
    real = house.known(b"/usr/sbin/sshd")
    assert house.act(b"/usr/sbin/sshd", "quarantine-file").state == "refused"
    assert os.path.exists(real)


def test_a_file_too_large_for_the_quarantine_stays(house, monkeypatch):
    monkeypatch.setattr(quarantine, "FILE_MAX", 10)
    real = house.root / "etc/big"
    with open(real, "wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "MiB" in house.act(b"/etc/big", "quarantine-file").detail
    assert real.exists()


def _killed(step, name, nth, after):
    """Do `step` in a child that dies, as by kill -9, at the n-th call of os.`name`. Did it come so far?"""
    child = os.fork()
    if not child:
        original = getattr(os, name)
        left = nth

        def deadly(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0 and not after:
                os._exit(9)
            value = original(*arguments, **keywords)
            if left == 0:
                os._exit(9)
            return value

        try:
            setattr(os, name, deadly)
            step()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["rename", "fsync", "open", "write", "fchown", "fchmod"])
@pytest.mark.parametrize("verb", ["restore-file", "undo"])
def test_a_crash_at_any_call_is_finished_or_taken_back(house, verb, name, after):
    """Killed at the n-th call, for every n that there is: what comes up is the old state or the new, whole."""
    real = house.known(b"/usr/sbin/sshd", mode=0o4755)
    for nth in range(1, 60):
        with open(real, "wb") as file:
            file.write(b"trojan")
        os.chmod(real, 0o777)
        for record in os.listdir(house.world.undo):
            os.unlink(os.path.join(house.world.undo, record))
        if verb == "undo":
            assert house.act(b"/usr/sbin/sshd").ok
        step = house.undo if verb == "undo" else lambda: house.act(b"/usr/sbin/sshd")
        if not _killed(step, name, nth, after):
            assert nth > 1
            return
        carry.recover(house.world, house.store, NOW + 5)
        state = (_read(real), stat.S_IMODE(os.lstat(real).st_mode))
        assert state in ((b"trojan", 0o777), (GOOD, 0o4755))
        records = house.store.all()
        assert all(record.state not in (INTENDED, "reverting") for record in records)
        if records:
            assert (records[0].state == DONE) == (state[0] == GOOD), records
        assert os.listdir(os.path.dirname(real)) == [b"sshd"], "no temporary file stays"
    pytest.fail("never ended without a crash")


def test_what_is_as_it_should_be_is_not_restored_again(house):
    """A late word of a change that was put right already must not become a second act (undo would take that back)."""
    path = b"/usr/sbin/sshd"
    house.known(path)
    reply = house.act(path)
    assert not reply.ok
    assert "already" in reply.detail
    assert os.listdir(house.world.quarantine) == []
