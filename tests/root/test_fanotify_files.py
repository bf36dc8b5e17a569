"""The files sensor on fanotify, on file systems of its own: a tmpfs and an ext4 image. Nothing else is marked."""

import os
import select
import shutil
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "unit", "files"))
from files_world import ABSENT, PRESENT, World, statuses

from edgeguard.linux import capabilities, fanotify
from edgeguard.model import Actor, Watch
from edgeguard.sensors import Context
from edgeguard.sensors.files import Files

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and fanotify marks")]

WATCHES = [
    Watch("/etc", "config", exclude=("/etc/*.skip",)),
    Watch("/usr/bin", "program"),
    Watch("/", "other", only="setid"),
]


@pytest.fixture(params=["tmpfs", "ext4"])
def mount(request, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    else:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("no mkfs.ext4")
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-qF", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, point], check=False).returncode:
            pytest.skip("no loop devices here")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


class Live:
    def __init__(self, mount):
        self.world = World(mount / "root", WATCHES)
        os.mkdir(mount / "root")
        os.mkdir(mount / "run")
        for path in ("/etc/passwd", "/etc/ssh/sshd_config", "/usr/bin/true", "/srv/plain"):
            self.world.write(path)
        self.world.beside = mount.parent  # an open file would keep the mount busy
        self.work, self.lost, self.execs = [], [], []
        self.mount = mount

    def start(self):
        self.world.learn()
        context = Context(str(self.world.root), actor_of=lambda pid: Actor(pid=pid))
        self.sensor = Files(
            context,
            WATCHES,
            self.world.manifest,
            str(self.mount / "run"),
            on_work=lambda rescan, targets: self.work.append((rescan, targets)),
            on_lost=self.lost.append,
            on_exec=lambda pid, path: self.execs.append((pid, path)),
        )
        self.rung = self.sensor.start()
        return self

    def seen(self, until, seconds=10.0):
        found = {}
        poll = select.poll()
        poll.register(self.sensor.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while not until(found):
            left = end - time.monotonic()
            assert left > 0, f"only saw {list(found)[:20]}"
            if poll.poll(left * 1000):
                found.update({observation.subject: observation for observation in self.sensor.ready(7)})
        return found

    def sh(self, script):
        """Another process does it: what this one does is its own and ignored."""
        return subprocess.run(["sh", "-ec", script], cwd=self.world.root, check=True)


@pytest.fixture
def live(mount):
    made = Live(mount).start()
    yield made
    made.sensor.close()


def test_it_proves_itself(live):
    assert live.rung == ("fanotify", True, (), ())
    live.sh("echo x > etc/passwd")
    assert live.sensor.proves_itself()
    live.seen(lambda found: "/etc/passwd" in found)


def test_handles_that_cannot_be_opened_are_no_rung(mount):
    """Without CAP_DAC_READ_SEARCH the kernel still makes the mark and tells every event, and no directory of one can
    be found: the rung would stand and see nothing."""
    made = Live(mount)

    def without():  # capabilities belong to a thread
        capabilities.give_up(capabilities.CAP_DAC_READ_SEARCH)
        made.start()

    thread = threading.Thread(target=without)
    thread.start()
    thread.join()
    try:
        assert made.rung.name == "inotify"
        assert made.rung.tried == (("fanotify", "open_by_handle_at: Operation not permitted"),)
        made.sh("echo x > etc/passwd")
        assert made.seen(lambda found: "/etc/passwd" in found)["/etc/passwd"].actor.pid is None
    finally:
        made.sensor.close()


def test_what_happens_is_seen_with_its_actor(live):
    before = os.stat(live.world.path("/etc/passwd")).st_mtime_ns
    live.sh("printf CONTENT > etc/passwd; touch -d @1 etc/passwd")
    seen = live.seen(lambda found: "/etc/passwd" in found)
    assert seen["/etc/passwd"].columns["size"] == 7
    assert seen["/etc/passwd"].actor.pid
    assert os.stat(live.world.path("/etc/passwd")).st_mtime_ns != before
    live.sh("echo new > etc/x; mv etc/x etc/ssh/sshd_config; chmod 4755 usr/bin/true; ln -s /tmp/evil etc/link")
    wanted = {"/etc/x", "/etc/ssh/sshd_config", "/usr/bin/true", "/etc/link"}
    seen = live.seen(lambda found: found.keys() >= wanted)
    assert seen["/etc/x"].status is ABSENT
    assert seen["/usr/bin/true"].columns["setid"] is True
    assert seen["/etc/link"].columns["target"] == "/tmp/evil"
    live.sh("rm etc/link; chown 12:34 etc/passwd; ln etc/passwd etc/hard")
    seen = live.seen(lambda found: {"/etc/link", "/etc/passwd", "/etc/hard"} <= found.keys())
    assert seen["/etc/link"].status is ABSENT
    assert (seen["/etc/passwd"].columns["uid"], seen["/etc/passwd"].columns["gid"]) == (12, 34)


def test_new_setid_program_anywhere_and_its_end(live):
    live.sh("mkdir -p tmp/a/b; cp /bin/true tmp/a/b/tool; cp /bin/true tmp/plain; chmod u+s tmp/a/b/tool")
    seen = live.seen(lambda found: "/tmp/a/b/tool" in found)
    assert statuses(seen) == {"/tmp/a/b/tool": PRESENT}
    assert seen["/tmp/a/b/tool"].columns["setid"] is True
    live.sh("mv tmp/a srv/a")  # a whole tree, renamed
    seen = live.seen(lambda found: {"/tmp/a/b/tool", "/srv/a/b/tool"} <= found.keys())
    assert statuses(seen) == {"/tmp/a/b/tool": ABSENT, "/srv/a/b/tool": PRESENT}
    live.sh("chmod u-s srv/a/b/tool")
    assert live.seen(lambda found: "/srv/a/b/tool" in found)["/srv/a/b/tool"].columns["setid"] is False
    live.sh("chmod u+s srv/a/b/tool; rm -r srv/a")
    assert live.seen(lambda found: "/srv/a/b/tool" in found)["/srv/a/b/tool"].status is ABSENT


def test_capabilities_and_attributes(live):
    program = live.world.path("/usr/bin/true").decode()
    os.chmod(program, 0o755)
    capability = "0100000200200000000000000000000000000000"  # cap_net_raw=ep
    code = f"import os; os.setxattr({program!r}, 'security.capability', bytes.fromhex({capability!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    seen = live.seen(lambda found: "/usr/bin/true" in found)
    assert seen["/usr/bin/true"].columns["setid"] is True
    assert seen["/usr/bin/true"].columns["caps"].startswith("01000002")


def test_a_directory_moved_away_and_back(live):
    live.sh("mv etc/ssh srv/ssh")
    wanted = {"/etc/ssh", "/etc/ssh/sshd_config"}
    assert set(statuses(live.seen(lambda found: found.keys() >= wanted)).values()) == {ABSENT}
    live.sh("echo evil > srv/ssh/sshd_config; mv srv/ssh etc/ssh")
    seen = live.seen(lambda found: found.keys() >= wanted)
    assert seen["/etc/ssh/sshd_config"].columns["size"] == 5
    live.sh("echo again-evil > etc/ssh/sshd_config")
    live.seen(lambda found: "/etc/ssh/sshd_config" in found)


def test_a_burst_of_5000_files_loses_none(live):
    live.sh("i=0; while [ $i -lt 5000 ]; do echo $i > etc/burst$i; i=$((i+1)); done")
    wanted = {f"/etc/burst{number}" for number in range(5000)}
    seen = live.seen(lambda found: found.keys() >= wanted, seconds=60)
    assert not live.lost
    assert all(seen[path].actor.pid for path in wanted)
    live.sh("rm etc/burst*")
    gone = live.seen(lambda found: found.keys() >= wanted, seconds=60)
    assert {gone[path].status for path in wanted} == {ABSENT}


def test_program_starts_are_told_where_asked_for(live):
    shutil.copy("/bin/true", live.world.path("/srv/tool"))
    child = subprocess.run([live.world.path("/srv/tool")], check=True)
    assert child.returncode == 0
    live.sensor.observe_path("/srv/tool", 1)
    deadline = time.monotonic() + 5
    while not live.execs and time.monotonic() < deadline:
        list(live.sensor.ready(1))
    assert [path for _, path in live.execs] == ["/srv/tool"]


def test_program_starts_in_memory_are_told_too(mount):
    """A program in /tmp, a file system of its own that no watch names; nothing else is told from there."""
    made = Live(mount)
    memory = made.world.path("/tmp").decode()
    os.makedirs(memory, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", memory], check=True)
    try:
        made.start()
        shutil.copy("/bin/true", f"{memory}/tool")
        made.sh("tmp/tool; echo x > tmp/quiet; echo x > etc/told")
        assert not any(path.startswith("/tmp") for path in made.seen(lambda found: "/etc/told" in found))
        assert "/tmp/tool" in [path for _, path in made.execs]
        assert made.sensor.proves_itself()
        made.execs.clear()
        made.sh("tmp/tool; echo x >> etc/told")
        made.seen(lambda found: "/etc/told" in found)
        assert "/tmp/tool" in [path for _, path in made.execs]
    finally:
        made.sensor.close()
        subprocess.run(["umount", "-l", memory], check=True)


def test_the_mount_can_be_unmounted_while_it_is_watched(live):
    live.sh("echo x > etc/passwd")
    live.seen(lambda found: "/etc/passwd" in found)
    point = str(live.mount)
    assert subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)  # for the fixture


def test_a_new_mount_is_watched_after_remark(live):
    etc = live.world.path("/etc").decode()
    subprocess.run(["mount", "-t", "tmpfs", "none", etc], check=True)
    try:
        live.sensor.remark()
        live.sh("echo x > etc/dropped")
        live.seen(lambda found: "/etc/dropped" in found)
    finally:
        subprocess.run(["umount", "-l", etc], check=True)


def test_marks_stay_when_the_right_to_make_them_is_gone(live):
    """The daemon gives up CAP_SYS_ADMIN after its start; a new baseline must not move it down the ladder."""
    blind = []

    def unprivileged():  # capabilities belong to a thread
        capabilities.give_up(capabilities.CAP_SYS_ADMIN)
        blind.append(live.sensor.remark())
        blind.append(live.sensor.renew(WATCHES, live.world.manifest))

    thread = threading.Thread(target=unprivileged)
    thread.start()
    thread.join()
    assert blind == [(), ()]
    live.sh("echo x > etc/dropped")
    assert live.seen(lambda found: "/etc/dropped" in found)["/etc/dropped"].actor.pid


def test_a_log_wakes_nobody_twice_also_when_the_right_to_mark_is_gone(live):
    """Each write of a file that stays open is told, so what nobody watches must be ignored from the first one on."""
    script = "exec 3>>srv/plain; echo one >&3; echo told; read go; echo two >&3; echo told; read go"
    words = {"cwd": live.world.root, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", script], **words) as writer:
        writer.stdout.readline()
        poll = select.poll()
        poll.register(live.sensor.fileno(), select.POLLIN)
        assert poll.poll(0)

        def unprivileged():  # capabilities belong to a thread
            capabilities.give_up(capabilities.CAP_SYS_ADMIN)
            assert list(live.sensor.ready(1)) == []

        thread = threading.Thread(target=unprivileged)
        thread.start()
        thread.join()
        assert not poll.poll(0)
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        writer.stdout.readline()
        assert not poll.poll(0)
        writer.stdin.write(b"\n")
        writer.stdin.close()
    live.sh("exec 3>>etc/passwd; echo x >&3; mv srv/plain etc/plain")
    live.seen(lambda found: {"/etc/passwd", "/etc/plain"} <= found.keys())


def test_a_file_that_stays_open_under_an_excluded_name_is_told_by_its_watched_one(live):
    live.sh("ln etc/passwd etc/x.skip; echo told > etc/ssh/told")
    live.seen(lambda found: "/etc/ssh/told" in found)
    script = "exec 3>>etc/x.skip; while echo x >&3; do read go || exit 0; done"
    with subprocess.Popen(["sh", "-c", script], cwd=live.world.root, stdin=subprocess.PIPE) as writer:
        live.seen(lambda _found: (False, ("/etc/x.skip",)) in live.work)
        live.sensor.found(live.sensor.observe_path("/etc/passwd", 1))  # as a helper answers
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert live.seen(lambda found: "/etc/passwd" in found)["/etc/passwd"].actor.pid == writer.pid
        writer.stdin.close()


def test_nobody_can_have_a_watched_directory_ignored_by_a_symlink_in_place_of_another(live):
    """What its directory was called when a file was written may lead elsewhere when that is to be ignored."""
    live.sh("mkdir srv/d; echo x > srv/d/f; echo told > etc/ssh/told")
    live.seen(lambda found: "/etc/ssh/told" in found)
    live.sensor._sources._fan._hear_all()
    swap = "exec 3>>srv/d/f; echo x >&3; rm -r srv/d; ln -s ../etc srv/d; echo more > etc/ssh/told; echo; read go"
    write = "exec 3>>etc/passwd; echo x >&3; read go"
    words = {"cwd": live.world.root, "stdin": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", swap], stdout=subprocess.PIPE, **words) as swapper:
        swapper.stdout.readline()
        live.seen(lambda found: "/etc/ssh/told" in found)
        with subprocess.Popen(["sh", "-c", write], **words) as writer:
            live.seen(lambda found: "/etc/passwd" in found, seconds=5)
            writer.stdin.close()
        swapper.stdin.close()


def test_any_event_bytes_parse_or_fail_cleanly(live):
    group = fanotify.Group()
    group.mark(str(live.mount), fanotify.FAN_CREATE | fanotify.FAN_ONDIR)
    live.sh("mkdir one two")
    raw = group.read()
    assert [event.name for event in fanotify.parse(raw)] == [b"one", b"two"]
    group.close()
    for position in range(len(raw)):
        for value in (0, 1, 255):
            damaged = raw[:position] + bytes((value,)) + raw[position + 1 :]
            for data in (damaged, damaged[:position]):
                try:
                    list(fanotify.parse(data))
                except fanotify.DecodeError:
                    continue
