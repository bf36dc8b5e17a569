"""The real-time sensor on its unprivileged rung (inotify), in a small tree."""

import os
import select
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from files_world import ABSENT, PRESENT, World, statuses

from edgeguard.codec.digests import Algorithm
from edgeguard.model import NOBODY, Origin, Watch
from edgeguard.sensors import Context, content
from edgeguard.sensors import files as module
from edgeguard.sensors.files import Files
from edgeguard.sensors.look import ONLY_DISK
from edgeguard.sensors.sources import BLIND_ACTOR, BLIND_SETID
from tests import lent

WATCHES = [
    Watch("/etc", "config", exclude=("/etc/skip",)),
    Watch("/home/*/.ssh", "key"),
    Watch("/", "other", only="setid"),
    Watch("/opt/one", "other", recurse=False),
]


class Live:
    """A sensor with its surroundings, waited for on its own descriptor."""

    def __init__(self, world, tmp_path, rungs=("inotify", "sweep"), **options):
        self.work = []
        self.lost = []
        proof = tmp_path / "run"
        proof.mkdir(exist_ok=True)
        context = options.pop("context", Context(str(world.root), package_of=lambda path: "pkg"))
        self.sensor = Files(
            context,
            world.watches,
            world.manifest,
            str(proof),
            on_work=lambda rescan, targets: self.work.append((rescan, targets)),
            on_lost=self.lost.append,
            rungs=rungs,
            **options,
        )
        self.rung = self.sensor.start()

    def seen(self, until, seconds=5.0):
        """All observations by subject, the newest each, until `until(seen)` holds."""
        found = {}
        poll = select.poll()
        poll.register(self.sensor.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while not until(found):
            left = end - time.monotonic()
            assert left > 0, f"only saw {found}"
            if poll.poll(left * 1000):
                found.update({observation.subject: observation for observation in self.sensor.ready(7)})
        return found


@pytest.fixture(params=Algorithm)
def world(tmp_path, request):
    root = tmp_path / "root"
    root.mkdir()
    made = World(root, WATCHES)
    made.algorithm = request.param
    made.write("/etc/passwd", b"root:x:0:0\n")
    made.write("/etc/ssh/sshd_config")
    made.write("/etc/ssh/keys/host")
    made.write("/etc/skip/cache")
    made.write("/opt/one")
    made.write("/opt/two")
    made.write("/home/joe/.ssh/authorized_keys")
    made.write("/bin/su", mode=0o4755)
    made.learn()
    return made


@pytest.fixture
def live(world, tmp_path):
    made = Live(world, tmp_path)
    yield made
    made.sensor.close()


def test_the_rung_proves_itself_and_says_what_is_blind(live):
    assert (live.rung.name, live.rung.proven) == ("inotify", True)
    assert BLIND_SETID in live.rung.blind


def test_the_self_test_can_be_repeated_and_loses_nothing(live, world):
    world.write("/etc/passwd", b"changed")
    assert live.sensor.proves_itself()
    live.seen(lambda found: "/etc/passwd" in found)
    next(iter(live.sensor._sources))._proof_watch = -1  # deaf
    assert not live.sensor.proves_itself()


def test_content_mode_new_and_gone(live, world):
    world.write("/etc/passwd", b"root::0:0\n")
    os.chmod(world.path("/etc/ssh/sshd_config"), 0o666)
    world.write("/etc/new")
    os.unlink(world.path("/home/joe/.ssh/authorized_keys"))
    world.write("/etc/skip/cache", b"other")
    world.write("/opt/two", b"other")
    world.write("/opt/one", b"other")
    expected = {
        "/etc/passwd": PRESENT,
        "/etc/ssh/sshd_config": PRESENT,
        "/etc/new": PRESENT,
        "/home/joe/.ssh/authorized_keys": ABSENT,
        "/opt/one": PRESENT,
    }
    seen = live.seen(lambda found: found.keys() >= expected.keys())
    seen.pop("/etc", None)  # its own attributes are looked at too
    assert statuses(seen) == expected
    assert seen["/etc/passwd"].columns["size"] == 10
    assert seen["/etc/passwd"].columns["package"] == "pkg"
    assert seen["/etc/ssh/sshd_config"].columns["world_writable"] is True
    assert seen["/etc/passwd"].origin is Origin.LIVE


def test_a_rewrite_that_takes_its_time_is_not_seen_half_done(live, world):
    live.seen(lambda _found: live.sensor.caught_up)
    with open(world.path("/etc/passwd"), "wb") as file:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert list(live.sensor.ready(1)) == []
            time.sleep(0.01)
        file.write(b"root:x:0:0\n")
    assert live.seen(lambda found: "/etc/passwd" in found)["/etc/passwd"].columns["size"] == 11
    assert "/etc/passwd" not in live.sensor._told


def test_rename_over_link_and_symlink_swap(live, world):
    world.write("/etc/passwd.new", b"evil")
    os.rename(world.path("/etc/passwd.new"), world.path("/etc/passwd"))
    os.link(world.path("/etc/ssh/sshd_config"), world.path("/etc/ssh/second"))
    os.unlink(world.path("/etc/ssh/keys/host"))
    os.symlink("/tmp/host", world.path("/etc/ssh/keys/host"))
    wanted = {"/etc/passwd", "/etc/passwd.new", "/etc/ssh/second", "/etc/ssh/keys/host"}
    seen = live.seen(lambda found: found.keys() >= wanted)
    assert seen["/etc/passwd"].columns["size"] == 4
    assert seen["/etc/passwd.new"].status is ABSENT
    assert seen["/etc/ssh/keys/host"].columns["target"] == "/tmp/host"


def test_a_new_tree_is_seen_whole(live, world):
    for number in range(30):
        world.write(f"/etc/fresh/{number % 5}/deeper/file{number}")
    wanted = {f"/etc/fresh/{number % 5}/deeper/file{number}" for number in range(30)}
    live.seen(lambda found: found.keys() >= wanted)
    world.write("/etc/fresh/0/deeper/file0", b"changed")
    seen = live.seen(lambda found: "/etc/fresh/0/deeper/file0" in found)
    assert seen["/etc/fresh/0/deeper/file0"].columns["size"] == 7


def test_a_tree_moved_out_and_in(live, world):
    os.rename(world.path("/etc/ssh"), world.path("/opt/ssh"))
    wanted = {"/etc/ssh", "/etc/ssh/sshd_config", "/etc/ssh/keys", "/etc/ssh/keys/host"}
    seen = live.seen(lambda found: found.keys() >= wanted)
    assert {statuses(seen)[path] for path in wanted} == {ABSENT}
    os.rename(world.path("/opt/ssh"), world.path("/etc/ssh"))
    seen = live.seen(lambda found: found.keys() >= wanted)
    assert {statuses(seen)[path] for path in wanted} == {PRESENT}
    world.write("/etc/ssh/keys/host", b"evil")
    live.seen(lambda found: "/etc/ssh/keys/host" in found)


def test_a_removed_new_file_is_told_so_that_its_finding_ends(live, world):
    world.write("/etc/new")
    live.seen(lambda found: "/etc/new" in found)
    os.unlink(world.path("/etc/new"))
    assert live.seen(lambda found: "/etc/new" in found)["/etc/new"].status is ABSENT


def test_a_difference_of_a_hard_link_ends_under_every_name(live, world):
    os.link(world.path("/etc/ssh/sshd_config"), world.path("/etc/ssh/second"))
    os.chmod(world.path("/etc/ssh/sshd_config"), 0o666)
    live.seen(lambda found: found.keys() >= {"/etc/ssh/sshd_config", "/etc/ssh/second"})
    os.chmod(world.path("/etc/ssh/sshd_config"), 0o600)
    seen = live.seen(lambda found: "/etc/ssh/second" in found)
    assert seen["/etc/ssh/second"].columns["mode"] == 0o600


def test_a_hard_link_that_a_sweep_found_different_is_looked_at_with_the_first_name(live, world):
    os.link(world.path("/bin/su"), world.path("/etc/ssh/second"))
    live.seen(lambda found: "/etc/ssh/second" in found)
    live.sensor._told.clear()
    assert live.sensor.found(live.sensor.observe_path("/etc/ssh/second", 1, origin=Origin.SWEEP)) is not None
    os.link(world.path("/etc/ssh/second"), world.path("/etc/third"))
    live.seen(lambda found: found.keys() >= {"/etc/third", "/etc/ssh/second"})


def test_what_is_written_under_an_excluded_name_is_searched_for_by_its_other_names(world, tmp_path):
    world.watches = [Watch("/etc", "config", exclude=("/etc/*.dpkg-new",))]
    os.link(world.path("/etc/passwd"), world.path("/etc/x.dpkg-new"))
    live = Live(world, tmp_path)
    world.write("/etc/x.dpkg-new", b"evil")
    live.seen(lambda _found: live.work)
    assert live.work == [(False, ("/etc/x.dpkg-new",))]
    live.sensor.found(live.sensor.observe_path("/etc/passwd", 1))
    world.write("/etc/x.dpkg-new", b"again")
    live.seen(lambda found: "/etc/passwd" in found)
    os.link(world.path("/etc/ssh/sshd_config"), world.path("/etc/y.dpkg-new"))
    os.unlink(world.path("/etc/y.dpkg-new"))
    world.write("/etc/ssh/keys/host", b"evil")
    live.seen(lambda found: "/etc/ssh/keys/host" in found)
    assert len(live.work) == 1, "a name that comes and goes changes no file"
    live.sensor.close()


def test_a_file_that_gets_a_watched_name_after_it_was_searched_for(live, world):
    os.link(world.path("/opt/two"), world.path("/opt/three"))
    assert list(live.sensor._links.touched("/opt/three", NOBODY)) == []
    os.rename(world.path("/opt/two"), world.path("/etc/ssh/sshd_config"))  # with the same content
    live.seen(lambda found: "/etc/ssh/sshd_config" in found)
    assert list(live.sensor._links.touched("/opt/three", NOBODY)) == ["/etc/ssh/sshd_config"]


def test_what_a_sweep_sees_of_an_act_that_the_kernel_told_of_is_left_to_the_live_look(live, world):
    world.write("/etc/passwd", b"evil")
    swept = live.sensor.observe_path("/etc/passwd", 1, origin=Origin.DOWN)
    assert live.sensor.found(swept) is None
    assert live.seen(lambda found: "/etc/passwd" in found)["/etc/passwd"].origin is Origin.LIVE
    quiet = live.sensor.observe_path("/etc/ssh/keys/host", 1, origin=Origin.DOWN)
    assert live.sensor.found(quiet) == quiet


def test_what_had_a_finding_before_a_restart_is_told_when_it_ends(world, tmp_path):
    world.write("/opt/x", mode=0o4755)
    made = Live(world, tmp_path)
    made.sensor.remember(["/opt/x"])
    assert made.sensor._may_be_setid("/opt/x")
    os.unlink(world.path("/opt/x"))
    assert made.sensor._may_be_setid("/opt/x")
    made.sensor.close()


def test_what_differs_on_the_disk_alone_is_not_ended_by_a_touch(live, world, monkeypatch):
    asked = []

    def on_disk(_disk, _fd, size, _new):
        asked.append(size)
        return content.OnDisk(b"e" * 32, size, False)

    monkeypatch.setattr(content.Disk, "digest", on_disk)
    live.sensor.remember(["/etc/passwd"])  # as a deep sweep told it
    os.utime(world.path("/etc/passwd"))
    os.utime(world.path("/etc/ssh/sshd_config"))
    seen = live.seen(lambda found: {"/etc/passwd", "/etc/ssh/sshd_config"} <= found.keys())
    assert (seen["/etc/passwd"].columns[world.algorithm.value], seen["/etc/passwd"].note) == (b"e" * 32, ONLY_DISK)
    assert asked == [11]


def test_a_touch_does_not_drop_what_the_caller_looks_at_anyway(live, world):
    deep = live.sensor.observe_path("/etc/passwd", 1, origin=Origin.SWEEP)
    os.utime(world.path("/etc/passwd"))
    assert live.sensor.found(deep) is None
    assert live.sensor.found(deep, always=True) == deep


def test_a_new_home_is_watched(live, world):
    world.write("/home/eve/.ssh/authorized_keys")
    live.seen(lambda found: "/home/eve/.ssh/authorized_keys" in found)


def test_large_files_and_trees_are_left_to_a_helper(live, world, monkeypatch):
    monkeypatch.setattr(module, "TREE_MAX", 10)
    for number in range(20):
        world.write(f"/opt/many/file{number}")
    os.rename(world.path("/opt/many"), world.path("/etc/many"))
    with open(world.path("/etc/large"), "wb") as file:
        file.truncate(module.INLINE_MAX + 1)
    live.seen(lambda found: {"/etc/many", "/etc/large"} <= {t for _, targets in live.work for t in targets})


def test_a_large_file_that_is_touched_all_the_time_is_told_and_not_read_all_the_time(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INLINE_MAX", 4)
    live = Live(world, tmp_path)
    world.write("/etc/large", b"large")
    live.seen(lambda found: live.work == [(False, ("/etc/large",))])
    answer = live.sensor.observe_path("/etc/large", 1)
    for number in range(20):
        world.write("/etc/large", b"large%d" % number)
        list(live.sensor.ready(1))
        assert live.sensor.found(answer) is not None, "whoever touches it must not keep it from being told"
        time.sleep(0.01)
    asked = len(live.work)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        world.write("/etc/large", b"again")
        list(live.sensor.ready(1))
        time.sleep(0.01)
    assert len(live.work) <= asked + 2
    live.sensor.close()


def test_observe_path(live, world):
    assert live.sensor.observe_path("/etc/passwd", 1).columns["size"] == 11
    assert live.sensor.observe_path("/etc/passwd", 1, origin=Origin.SWEEP).origin is Origin.SWEEP
    assert live.sensor.observe_path("/etc/none", 1).status is ABSENT
    assert live.sensor.observe_path("/opt/two", 1).columns["category"] == "other"
    assert live.sensor.observe_path("/etc", 1).columns["type"] == "directory"


def test_it_has_caught_up_when_all_that_happened_is_told(live, world):
    live.seen(lambda _found: live.sensor.caught_up)  # its own test at the start left events
    world.write("/etc/passwd", b"changed")
    assert not live.sensor.caught_up, "in the kernel's queue"
    list(live.sensor.ready(1))
    assert not live.sensor.caught_up, "waits for its look"
    live.seen(lambda found: "/etc/passwd" in found)
    assert live.sensor.caught_up


def test_hostile_names_arrive_whole(live, world):
    names = [b"new\nline", b"\x1b[2J", b"\xff\xfe", b"y" * 255]
    for name in names:
        world.write(b"/etc/" + name)
    os.mkfifo(world.path("/etc/fifo"))
    wanted = {os.fsdecode(b"/etc/" + name) for name in names} | {"/etc/fifo"}
    assert live.seen(lambda found: found.keys() >= wanted)["/etc/fifo"].columns["type"] == "fifo"


def test_a_burst_is_worked_off_in_slices_and_nothing_is_lost(live, world):
    for number in range(3000):
        world.write(f"/etc/burst{number}", b"x")
    wanted = {f"/etc/burst{number}" for number in range(3000)}
    live.seen(lambda found: found.keys() >= wanted, seconds=20)
    assert not live.lost


def test_an_overflow_is_counted_and_asks_for_a_sweep(live, world):
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        limit = int(file.read())
    if limit > 20_000:
        pytest.skip("the queue is too long to fill here")
    for _ in range(limit // 2 + 10):  # attribute events of two names in turn are not merged
        os.chmod(world.path("/etc/passwd"), 0o644)
        os.chmod(world.path("/etc/ssh/sshd_config"), 0o644)
    live.seen(lambda found: live.lost, seconds=20)
    assert (True, ()) in live.work


def test_renew_takes_other_watches(live, world):
    world.watches = [Watch("/opt", "program")]
    assert live.sensor.renew(world.watches, world.manifest) == (BLIND_ACTOR,)
    world.write("/etc/passwd", b"changed")
    world.write("/opt/two", b"changed")
    assert set(live.seen(lambda found: "/opt/two" in found)) == {"/opt/two"}


def test_last_rung_and_a_missing_proof_directory(world, tmp_path):
    made = Live(world, tmp_path, rungs=("sweep",))
    assert made.rung.name == "sweep"
    assert made.sensor.fileno() is None
    assert list(made.sensor.observe(1)) == []
    made.sensor.close()
    sensor = Files(Context(str(world.root)), world.watches, None, str(tmp_path / "none"), rungs=("inotify", "sweep"))
    rung = sensor.start()
    assert (rung.name, rung.proven) == ("sweep", False)
    assert rung.tried[0][0] == "inotify"
    sensor.close()


def test_a_damaged_manifest_asks_for_a_sweep(world, tmp_path):
    path = tmp_path / "damaged"
    good = os.pread(world.manifest._fd, 1 << 20, 0)
    path.write_bytes(good[:8] + bytes(len(good) - 200) + good[-192:])
    world.manifest = lent.manifest(path)
    made = Live(world, tmp_path)
    world.write("/etc/passwd", b"changed")
    made.seen(lambda found: "/etc/passwd" in found)
    made.seen(lambda found: made.work)
    assert made.work[0][0] is True
    made.sensor.close()
