"""Who did it: living processes, those that just ended, and those whose parents ended; names without NSS."""

import os
import subprocess

import pytest

from edgeguard.model import NOBODY
from edgeguard.sensors.actors import PARENTS_MAX, Actors
from edgeguard.sensors.users import Users, parse


@pytest.fixture
def tree(tmp_path):
    """A small /proc and /etc below tmp_path; call it to add a process."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")

    def process(
        pid, ppid=1, exe="/usr/bin/x", start=100, argv=("x",), uid=1000, cgroup="/system.slice/x.service", tty=0
    ):
        here = tmp_path / "proc" / str(pid)
        here.mkdir(parents=True, exist_ok=True)
        (here / "exe").unlink(missing_ok=True)
        (here / "exe").symlink_to(exe)
        (here / "cmdline").write_bytes(b"\0".join(os.fsencode(item) for item in argv) + b"\0")
        (here / "stat").write_text(f"{pid} (a) b) S {ppid} 1 1 {tty} 1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0\n")
        (here / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (here / "loginuid").write_text("1000" if uid == 1000 else "4294967295")
        (here / "cgroup").write_text(f"0::{cgroup}\n")
        return here

    def end(pid):
        here = tmp_path / "proc" / str(pid)
        for name in os.listdir(here):
            (here / name).unlink()
        here.rmdir()

    process.end = end
    process.root = str(tmp_path)
    return process


def test_a_living_process(tree):
    tree(1, 0, "/usr/lib/systemd/systemd", 1, uid=0)
    tree(50, 1, "/usr/sbin/sshd", 5, uid=0)
    tree(60, 50, "/usr/bin/vi", 9, ("vi", "--password=x"), tty=os.makedev(136, 2))
    actor = Actors(tree.root).actor_of(60)
    assert (actor.exe, actor.uid, actor.user) == ("/usr/bin/vi", 1000, "alice")
    assert (actor.login_uid, actor.login_user, actor.tty, actor.unit) == (1000, "alice", "pts/2", "x.service")
    assert actor.argv == ("vi", "--password=***")
    assert actor.parents == ((50, "/usr/sbin/sshd"), (1, "/usr/lib/systemd/systemd"))


def test_one_that_ended_with_parents_that_ended(tree):
    tree(1, 0, "/sbin/init", 1, uid=0)
    tree(50, 1, "/usr/bin/bash", 5)
    tree(60, 50, "/usr/bin/tee", 9, ("tee", "/etc/x"))
    actors = Actors(tree.root)
    assert actors.remember(60)
    tree.end(60)
    tree.end(50)
    actor = actors.actor_of(60)
    assert actor.exe == "/usr/bin/tee"
    assert actor.parents == ((50, "/usr/bin/bash"), (1, "/sbin/init"))


def test_a_number_that_was_given_away_is_not_the_old_process(tree):
    tree(60, 0, "/usr/bin/tee", 9)
    actors = Actors(tree.root)
    actors.remember(60)
    tree(60, 0, "/usr/bin/other", 500)
    assert actors.actor_of(60).exe == "/usr/bin/other"


def test_a_parents_number_that_was_given_away_is_not_the_parent(tree):
    tree(50, 0, "/usr/bin/bash", 5)
    tree(60, 50, "/usr/bin/tee", 9)
    actors = Actors(tree.root)
    actors.remember(60)
    tree(50, 0, "/usr/bin/evil", 700)
    actors.remember(50)
    assert actors.actor_of(60).parents in ((), ((50, "/usr/bin/evil"),))  # never bash under a number that is not its
    assert actors.actor_of(60).parents != ((50, "/usr/bin/bash"),)


def test_memory_and_chain_are_bounded(tree):
    for pid in range(100, 140):
        tree(pid, pid - 1, f"/usr/bin/p{pid}", pid)
    actors = Actors(tree.root, keep=16)
    for pid in range(100, 140):
        actors.remember(pid)
    assert len(actors._memory) <= 16
    assert len(actors.actor_of(139).parents) == PARENTS_MAX


def test_address_of_the_login(tree, tmp_path):
    sessions = tmp_path / "run/systemd/sessions"
    sessions.mkdir(parents=True)
    (sessions / "7").write_text("REMOTE_HOST=10.0.3.8\n")
    tree(60, 0, cgroup="/user.slice/user-1000.slice/session-7.scope")
    actors = Actors(tree.root)
    actors.remember(60)
    (sessions / "7").unlink()  # logged out
    assert actors.actor_of(60).address == "10.0.3.8"


def test_nobody():
    actors = Actors()
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    assert actors.actor_of(child.pid) == NOBODY._replace(pid=child.pid)
    assert actors.actor_of(0) == NOBODY


def test_own_process_is_found():
    actor = Actors().actor_of(os.getpid())
    assert actor.uid == os.getuid()
    assert actor.parents[0][0] == os.getppid()


def test_users(tmp_path):
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/passwd"
    users = Users(str(tmp_path))
    assert users.name(0) == ""
    path.write_bytes(b"root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbroken\n:x:5:5:\n+nis\nb\xffd:x:7:7::/:\n")
    assert users.name(0) == "root"
    assert os.fsencode(users.name(7)) == b"b\xffd"
    assert users.name(None) == users.name(5) == ""
    path.write_bytes(b"admin:x:0:0::/:/bin/sh\n")
    os.utime(path, ns=(1, 1))
    assert users.name(0) == "admin"
    assert parse(b"\0\xff:::\n") == {}


def test_a_program_of_which_only_the_path_was_seen(tree):
    actors = Actors(tree.root)
    actors.glimpse(77, "/usr/bin/chmod")
    actors.glimpse(77, "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    assert actors.actor_of(77) == NOBODY._replace(pid=77, exe="/usr/bin/chmod")


def test_a_process_read_before_it_became_the_program(tree):
    tree(78, exe="/usr/bin/dash", argv=("sh",))
    actors = Actors(tree.root)
    actors.remember(78)
    actors.glimpse(78, "/usr/bin/chmod")
    tree.end(78)
    actor = actors.actor_of(78)
    assert (actor.exe, actor.argv, actor.user) == ("/usr/bin/chmod", (), "alice")
