"""Learning and sweeping a tree: what changed is told once, and nothing else is."""

import errno
import hashlib
import io
import os
import resource
import socket
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from files_world import ABSENT, PRESENT, UNREADABLE, World, statuses

from edgeguard.errors import DecodeError
from edgeguard.model import Origin, Watch
from edgeguard.sensors import observed, revisit, sweep, walk
from edgeguard.sensors.sweep import Plan, count, identity


@pytest.fixture
def world(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    made = World(root)
    made.write("/etc/passwd", b"root:x:0:0\n")
    made.write("/etc/ssh/sshd_config", b"PermitRootLogin no\n", 0o600)
    made.write("/etc/ssh/deep/er/file")
    made.write("/var/log/syslog")
    os.symlink("ssh/sshd_config", root / "etc/link")
    return made


def test_learn_keeps_what_matters(world):
    summary = world.learn()
    entry = world.manifest.lookup(b"/etc/passwd")
    assert entry.digest == hashlib.sha256(b"root:x:0:0\n").digest()
    assert (entry.size, entry.type, entry.category) == (11, "file", "config")
    assert world.manifest.lookup(b"/etc/link").target == b"ssh/sshd_config"
    assert world.manifest.lookup(b"/etc/ssh").type == "directory"
    assert world.manifest.lookup(b"/etc").st_mode & 0o170000 == 0o040000
    assert world.manifest.lookup(b"/var/log/syslog") is None
    assert summary.subjects == world.manifest.count == 8
    assert not summary.notes


def test_unchanged_is_silent_and_writes_nothing(world):
    world.learn()
    assert world.sweep() == {}
    assert not world.summary.written
    assert world.summary.files == 8
    assert world.summary.bytes_read == 0


def test_content_with_mtime_put_back(world):
    world.learn()
    before = os.stat(world.path("/etc/passwd"))
    world.write("/etc/passwd", b"root::0:0::")
    os.utime(world.path("/etc/passwd"), ns=(before.st_atime_ns, before.st_mtime_ns))
    seen = world.sweep()
    assert list(seen) == ["/etc/passwd"]
    assert seen["/etc/passwd"].columns["sha256"] == hashlib.sha256(b"root::0:0::").digest()
    assert seen["/etc/passwd"].origin is Origin.SWEEP
    assert world.sweep() == {}


def test_mode_rename_new_gone(world):
    world.learn()
    os.chmod(world.path("/etc/passwd"), 0o666)
    os.rename(world.path("/etc/ssh/sshd_config"), world.path("/etc/ssh/sshd_config.bak"))
    world.write("/etc/cron.d/new")
    seen = world.sweep()
    assert statuses(seen) == {
        "/etc/passwd": PRESENT,
        "/etc/ssh/sshd_config": ABSENT,
        "/etc/ssh/sshd_config.bak": PRESENT,
        "/etc/cron.d": PRESENT,
        "/etc/cron.d/new": PRESENT,
    }
    assert seen["/etc/passwd"].columns["world_writable"] is True
    assert world.sweep() == {}
    assert not world.summary.written


def test_a_tree_that_is_gone_and_comes_back(world):
    world.learn()
    os.rename(world.path("/etc/ssh"), world.path("/var/ssh"))
    seen = world.sweep()
    gone = {"/etc/ssh", "/etc/ssh/sshd_config", "/etc/ssh/deep", "/etc/ssh/deep/er", "/etc/ssh/deep/er/file"}
    assert statuses(seen) == dict.fromkeys(gone, ABSENT)
    os.rename(world.path("/var/ssh"), world.path("/etc/ssh"))
    assert statuses(world.sweep()) == dict.fromkeys(gone, PRESENT)


def test_a_touched_file_that_is_the_same_is_no_change(world):
    world.learn()
    os.utime(world.path("/etc/passwd"))
    os.link(world.path("/etc/passwd"), world.path("/var/hardlink"))
    assert world.sweep() == {}
    assert world.summary.written  # its ctime is remembered


def test_type_change_and_symlink_swap(world):
    world.learn()
    os.unlink(world.path("/etc/passwd"))
    os.symlink("/tmp/passwd", world.path("/etc/passwd"))
    os.unlink(world.path("/etc/link"))
    os.symlink("/tmp/evil", world.path("/etc/link"))
    seen = world.sweep()
    assert seen["/etc/passwd"].columns["type"] == "symlink"
    assert seen["/etc/link"].columns["target"] == "/tmp/evil"
    assert len(seen) == 2


def test_full_reads_again_and_compares_with_the_manifest(world):
    world.learn()
    world.write("/etc/passwd", b"changed")
    assert list(world.sweep()) == ["/etc/passwd"]
    assert world.sweep() == {}
    assert list(world.sweep(full=True)) == ["/etc/passwd"]
    assert world.summary.bytes_read > 0
    assert list(world.sweep(compare=True)) == ["/etc/passwd"]
    assert world.summary.bytes_read == 0


def test_forged_observed_db_does_not_deceive_a_full_sweep(world):
    world.learn()
    world.write("/etc/passwd", b"changed")
    os.unlink(world.path("/etc/link"))
    world.sweep()  # what an attacker with our rights would do: make the cache agree
    assert statuses(world.sweep(full=True)) == {"/etc/passwd": PRESENT, "/etc/link": ABSENT}


def test_without_observed_db_only_differences_from_the_manifest_are_told(world):
    world.learn()
    world.observed = None
    assert world.sweep() == {}
    world.observed = None
    world.write("/etc/new")
    os.rename(world.path("/etc/ssh"), world.path("/var/ssh"))
    seen = statuses(world.sweep())
    assert seen.pop("/etc/new") is PRESENT
    assert set(seen.values()) == {ABSENT}
    assert len(seen) == 5
    assert world.sweep() == {}


@pytest.mark.parametrize("damage", [b"", b"EGOBSRV1", b"x" * 100])
def test_damaged_observed_db_is_read_anew(world, damage):
    world.learn()
    world.observed = damage or world.observed[:-20]
    world.write("/etc/passwd", b"changed")
    assert list(world.sweep()) == ["/etc/passwd"]
    assert world.summary.damaged
    assert world.sweep() == {}


def test_racy_file_is_read_again(world):
    world.clock = lambda: 0  # every ctime is in the future: nothing is certain
    world.learn()
    assert world.sweep() == {}
    assert world.summary.bytes_read > 0


def test_exclusions_and_deeper_watches(tmp_path):
    root = tmp_path / "root"
    watches = [
        Watch("/", "other", exclude=("/home/**", "/proc"), only="setid"),
        Watch("/home/*/.ssh", "key"),
        Watch("/etc", "config", exclude=("/etc/*.cache", "/etc/skip", "/etc/**/*.pyc")),
        Watch("/etc/cron.d", "cron"),
        Watch("/etc/ld.so.preload", "preload", recurse=False),
        Watch("/srv/attributes", "other", content=False),
    ]
    world = World(root, watches)
    for path in (
        "/home/joe/.ssh/authorized_keys",
        "/home/joe/plain",
        "/home/ann/.ssh/id",
        "/etc/a.cache",
        "/etc/skip/x",
        "/etc/d/e/f.pyc",
        "/etc/d/e/f.py",
        "/etc/cron.d/job",
        "/etc/ld.so.preload",
        "/usr/plain",
        "/srv/attributes/log",
    ):
        world.write(path)
    world.write("/usr/bin/su", mode=0o4755)
    world.write("/home/joe/su", mode=0o4755)
    world.learn()
    found = {path: entry.category for path, entry in world.manifest.below(b"")}
    assert found == {
        b"/home/joe/.ssh": "key",
        b"/home/joe/.ssh/authorized_keys": "key",
        b"/home/ann/.ssh": "key",
        b"/home/ann/.ssh/id": "key",
        b"/etc": "config",
        b"/etc/d": "config",
        b"/etc/d/e": "config",
        b"/etc/d/e/f.py": "config",
        b"/etc/cron.d": "cron",
        b"/etc/cron.d/job": "cron",
        b"/etc/ld.so.preload": "preload",
        b"/srv/attributes": "other",
        b"/srv/attributes/log": "other",
        b"/usr/bin/su": "other",
    }
    assert world.manifest.lookup(b"/srv/attributes/log").digest == b""
    assert world.sweep() == {}
    assert not world.summary.written
    world.write("/usr/plain", b"other content")
    world.write("/tmp/rootkit", mode=0o6755)
    os.chmod(world.path("/usr/bin/su"), 0o755)
    seen = world.sweep()
    assert statuses(seen) == {"/tmp/rootkit": PRESENT, "/usr/bin/su": PRESENT}
    assert seen["/tmp/rootkit"].columns["setid"] is True
    assert seen["/usr/bin/su"].columns["setid"] is False
    os.unlink(world.path("/tmp/rootkit"))
    assert statuses(world.sweep()) == {"/tmp/rootkit": ABSENT}


def test_other_watches_reread_only_what_was_not_read(world):
    world.learn()
    world.watches = [*world.watches, Watch("/var", "log")]
    seen = world.sweep()
    assert set(seen) == {"/var", "/var/log", "/var/log/syslog"}
    assert world.summary.bytes_read == len(b"content")


def test_hostile_names_and_kinds(tmp_path):
    root = tmp_path / "root"
    world = World(root)
    names = [
        b"new\nline",
        b"\x1b[31mred",
        b"\xff\xfe invalid",
        b"x" * 255,
        b"a" * 251 + b"\xc3\xa4.",
        b" ",
        b"-rf",
        b"*",
    ]
    for name in names:
        world.write(b"/etc/" + name)
    os.mkfifo(world.path("/etc/fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(world.path("/etc"))
        listener.bind("socket")
        os.chdir(here)
    with open(world.path("/etc/sparse"), "wb") as file:
        file.truncate(1 << 40)
    summary = world.learn()
    assert all(world.manifest.lookup(b"/etc/" + name).digest for name in names)
    assert world.manifest.lookup(b"/etc/fifo").type == "fifo"
    assert world.manifest.lookup(b"/etc/socket").type == "socket"
    assert world.manifest.lookup(b"/etc/sparse").size == 1 << 40
    assert [note for note in summary.notes if "/etc/sparse" in note] == summary.notes
    assert len(summary.notes) == 1
    assert world.sweep() == {}
    for name in names:
        os.unlink(world.path(b"/etc/" + name))
    assert set(world.sweep()) == {os.fsdecode(b"/etc/" + name) for name in names}


def test_two_thousand_levels(tmp_path):
    root = tmp_path / "root"
    world = World(root)
    world.write("/etc/before")
    world.write("/etc/zz-after")
    fd = os.open(world.path("/etc"), os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        summary = world.learn()
        assert len([note for note in summary.notes if "longer than" in note]) == 1
        assert world.manifest.lookup(b"/etc/zz-after") is not None
        assert [o.status for o in world.sweep().values()] == [UNREADABLE]
    finally:
        unlink_deep(world.path("/etc"))


def unlink_deep(top):
    """shutil.rmtree recurses; this does not."""
    while os.path.isdir(top + b"/deep"):
        inner = os.open(top + b"/deep", os.O_RDONLY)
        if "deep" in os.listdir(inner):
            os.rename("deep", top + b"/next", src_dir_fd=inner)
        os.close(inner)
        os.rmdir(top + b"/deep")
        if os.path.isdir(top + b"/next"):
            os.rename(top + b"/next", top + b"/deep")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_said_once(world):
    os.chmod(world.path("/etc/passwd"), 0)
    world.learn()
    assert world.summary.unreadable == 1
    assert world.sweep() == {}
    os.chmod(world.path("/etc/passwd"), 0o644)
    assert statuses(world.sweep()) == {"/etc/passwd": PRESENT}


@pytest.mark.parametrize("ctime", [(1 << 62) * 10**9, -(1 << 62) * 10**9])
def test_a_change_time_that_no_clock_shows(world, monkeypatch, ctime):
    """A file system on a stick says so of its top directory, which lies where it is mounted."""
    world.learn()
    lstat = os.lstat

    def strange(path, **options):
        at = lstat(path, **options)
        return os.stat_result(tuple(at), {"st_ctime_ns": ctime}) if str(path).endswith("passwd") else at

    monkeypatch.setattr(os, "lstat", strange)
    assert world.sweep() == {}
    world.write("/etc/passwd", b"eve:x:0:0\n")
    world.write("/etc/new")
    assert statuses(world.sweep()) == {"/etc/passwd": PRESENT, "/etc/new": PRESENT}
    world.learn()
    assert world.sweep() == {}


def test_a_directory_whose_names_no_record_holds(world, monkeypatch):
    """Its record would be damage to the next sweep, which would read everything anew, each time."""
    world.learn()
    monkeypatch.setattr(walk, "NAMES_BYTES_MAX", 1000)
    for number in range(10):
        world.write(f"/etc/ssh/{number}{'x' * 200}")
    seen = world.sweep()
    assert seen["/etc/ssh"].status is UNREADABLE
    assert "too long for so many" in seen["/etc/ssh"].note
    assert "/etc/ssh/sshd_config" not in seen, "nothing is said of what is in it"
    world.write("/etc/other")
    assert "/etc/other" in world.sweep()
    assert not world.summary.damaged


def test_vanishing_directory_is_no_trouble(world):
    world.learn()
    walker = sweep.Walker(Plan(world.watches), str(world.root))
    for visit in walker:
        if visit.path == "/etc":
            os.unlink(world.path("/etc/ssh/sshd_config"))
            os.rename(world.path("/etc/ssh"), world.path("/var/ssh"))
    assert walker.troubles == []


def test_swapped_directory_is_not_followed(world):
    walker = sweep.Walker(Plan(world.watches), str(world.root))
    visited = []
    for visit in walker:
        visited.append(visit.path)
        if visit.path == "/etc":
            os.rename(world.path("/etc/ssh"), world.path("/var/ssh"))
            os.symlink(world.path("/var"), world.path("/etc/ssh"))
    assert "/etc/ssh" not in visited


def test_vault_keeps_what_is_protected(world, tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    world.watches = [Watch("/etc", "config"), Watch("/etc/ssh", "config", protect=True)]
    world.write("/etc/ssh/large", b"L" * 5000)
    world.learn(vault=str(vault), vault_max=4000)
    copy = vault / hashlib.sha256(b"PermitRootLogin no\n").hexdigest()
    assert copy.read_bytes() == b"PermitRootLogin no\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not (vault / hashlib.sha256(b"root:x:0:0\n").hexdigest()).exists()
    assert len(os.listdir(vault)) == 2
    assert any("vault is full" in note for note in world.summary.notes)
    assert world.manifest.lookup(b"/etc/ssh/large").digest == hashlib.sha256(b"L" * 5000).digest()


@pytest.mark.parametrize("size", [5000, 300_000])
def test_a_disk_that_takes_no_copy_does_not_keep_the_file_from_being_learned(world, tmp_path, size):
    """It would be learned without its content, or nothing at all would be."""
    vault = tmp_path / "vault"
    world.watches = [Watch("/etc", "config", protect=True)]
    world.write("/etc/large", b"L" * size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        world.learn(vault=str(vault))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert world.manifest.lookup(b"/etc/large").digest == hashlib.sha256(b"L" * size).digest()
    assert world.summary.unreadable == 0
    assert f"/etc/large: no protected copy, {os.strerror(errno.EFBIG)}" in world.summary.notes
    names = {hashlib.sha256(content).hexdigest() for content in (b"root:x:0:0\n", b"PermitRootLogin no\n", b"content")}
    assert set(os.listdir(vault)) == names, "the others have one, and nothing is left of half a copy"
    assert world.sweep() == {}


def test_accepted_files_are_protected_too(world, tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    world.watches = [Watch("/etc/ssh", "config", protect=True), Watch("/etc", "config")]
    world.write("/etc/ssh/sshd_config", b"accepted")
    paths = ["/etc/ssh/sshd_config", "/etc/passwd", "/etc/ssh/none", "/etc/ssh/deep"]
    digest = hashlib.sha256(b"accepted").digest()
    assert revisit.protect(world.watches, str(world.root), paths, str(vault)) == [digest]
    assert os.listdir(vault) == [digest.hex()]


def test_progress_ends_at_the_total(world):
    told = []
    world.learn(progress=told.append)
    assert told[-1].files == told[-1].total_files == 8
    assert count(Plan(world.watches), str(world.root)) == (8, sum((11, 19, 7)))


def test_learn_can_emit(world):
    seen = []
    world.learn(emit=seen.append)
    assert {observation.origin for observation in seen} == {Origin.LEARN}
    assert len(seen) == 8


def test_revisit_tells_the_path_and_what_differs_below(world):
    world.learn()
    world.write("/etc/ssh/new")
    world.write("/etc/passwd", b"changed")
    seen = []
    targets = ["/etc/passwd", "/etc/ssh", "/etc/gone"]
    revisit.revisit(world.watches, str(world.root), world.manifest, targets, 1, Origin.LIVE, seen.append)
    assert {o.subject: o.status for o in seen} == {
        "/etc/passwd": PRESENT,
        "/etc/ssh": PRESENT,
        "/etc/ssh/new": PRESENT,
        "/etc/gone": ABSENT,
    }


def test_revisit_of_a_tree_that_only_matters_for_setid(world):
    world.watches = [Watch("/", "other", only="setid")]
    world.learn()
    world.write("/srv/new/su", mode=0o4755)
    world.write("/srv/new/plain")
    seen = []
    targets = ["/srv/new", "/srv/new/plain"]
    revisit.revisit(world.watches, str(world.root), world.manifest, targets, 1, Origin.LIVE, seen.append)
    assert [o.subject for o in seen] == ["/srv/new/su"]


def test_devices_are_not_entered_and_blocked_trees_keep_their_state(world, monkeypatch):
    world.learn()
    real = sweep.Walker._visit

    def broken(self, path, zone, fd, deeper, timely):
        if path == "/etc/ssh":
            self._trouble(path, "Input/output error")
            return None
        return real(self, path, zone, fd, deeper, timely)

    monkeypatch.setattr(sweep.Walker, "_visit", broken)
    world.write("/etc/passwd", b"changed")
    assert statuses(world.sweep()) == {"/etc/passwd": PRESENT, "/etc/ssh": UNREADABLE}
    assert statuses(world.sweep(full=True)) == {"/etc/passwd": PRESENT, "/etc/ssh": UNREADABLE}
    monkeypatch.setattr(sweep.Walker, "_visit", real)
    assert world.sweep() == {}  # its state was carried over
    assert set(world.sweep(full=True)) == {"/etc/passwd"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_observed_db_gives_records_or_a_decode_error(world, data):
    if world.observed is None:
        world.learn()
    raw = bytearray(world.observed)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        reader = observed.Reader(io.BytesIO(raw))
        while reader.current is not None:
            reader.key()
            reader.current.looks()
            reader.advance()
    except DecodeError:
        pass


def test_identity_depends_on_the_watches(world):
    assert identity(Plan(world.watches)) != identity(Plan([Watch("/etc", "other")]))
