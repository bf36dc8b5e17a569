"""What is said about program files: gone, replaced, from memory, in a place where anybody writes."""

import os
import shutil
import subprocess
import sys

import pytest

from edgeguard.linux import mounts
from edgeguard.linux.procfs import Process
from edgeguard.sensors.programs import Programs

UID = os.getuid()
LOADER = "/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"
HIDDEN = """import os, sys
mount = lambda *words: os.spawnvp(os.P_WAIT, "mount", ["mount", *words]) == 0 or sys.exit(3)
mount("-t", "tmpfs", "none", sys.argv[1])
import shutil; shutil.copy(sys.argv[2], sys.argv[1] + "/x")
print("ready", flush=True)
os.execv(sys.argv[1] + "/x", ["x", "600"])
"""


@pytest.fixture
def programs():
    one = Programs("/", lambda path: path.startswith("/usr/"))
    yield one
    one.close()


@pytest.fixture
def sleeper(tmp_path):
    """Start a copy of sleep under a name of choice; all are killed at the end."""
    running = []

    def start(name, directory=tmp_path):
        path = os.path.join(directory, name)
        shutil.copy(shutil.which("sleep"), path)
        running.append(subprocess.Popen([path, "600"]))
        return running[-1].pid, path

    yield start
    for one in running:
        one.kill()
        one.wait()


def judge(programs, pid):
    return programs.judge(pid, os.readlink(f"/proc/{pid}/exe"), UID)


def test_deleted_and_replaced(programs, sleeper):
    pid, path = sleeper("x\n\x1b[31m")
    assert judge(programs, pid).exe_state == "ok"
    os.unlink(path)
    assert judge(programs, pid)[:3] == (path, path, "deleted")
    shutil.copy("/bin/true", path)
    assert judge(programs, pid)[:3] == (path, path, "replaced")
    assert not judge(programs, pid).exe_known


def test_a_deleted_program_that_the_baseline_names(sleeper):
    pid, path = sleeper("x")
    os.unlink(path)
    for known in (True, False):
        programs = Programs("/", lambda _path, known=known: known)
        assert judge(programs, pid).exe_state == "deleted"
        assert judge(programs, pid).exe_known is known


def test_a_name_that_only_looks_deleted(programs, sleeper):
    pid, path = sleeper("x (deleted)")
    assert judge(programs, pid)[:3] == (path, path, "ok")
    os.unlink(path)
    assert judge(programs, pid)[:3] == (path, path, "deleted")


def test_from_memory(programs):
    fd = os.memfd_create("ev\nil")
    with open(shutil.which("sleep"), "rb") as file:
        os.write(fd, file.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(f"/proc/self/fd/{fd}", ["x", "600"], {})
        finally:
            os._exit(1)
    try:
        while "python" in os.readlink(f"/proc/{pid}/exe"):
            pass
        assert judge(programs, pid)[:3] == ("memfd:ev\nil", "memfd:ev\nil", "memfd")
        assert judge(programs, pid).suspicious
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(fd)


def hidden(tmp_path, *options):
    """A program on a file system that only it has mounted; None where this user may make no such thing."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    words = ["unshare", "-m", *options, sys.executable, "-c", HIDDEN, str(tmp_path), shutil.which("sleep")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if process.stdout.readline() != "ready\n":
        process.wait()
        pytest.skip("no mount namespace of one's own here")
    while not os.readlink(f"/proc/{process.pid}/exe").endswith("/x"):
        pass
    return process


def test_behind_a_mount_of_its_own(programs, tmp_path):
    """A service's PrivateTmp= looks like this; a container has another root, too."""
    process = hidden(tmp_path, *(() if UID == 0 else ("-Ur",)))
    try:
        seen = judge(programs, process.pid)
        assert seen[:3] == (f"{tmp_path}/x", f"{tmp_path}/x", "private")
        assert seen.writable_dir is str(tmp_path).startswith("/tmp/")
        assert not seen.exe_known
        assert seen.suspicious
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("change", ["another root", "a device of another namespace"])
def test_a_container_and_who_comes_from_outside_are_left_alone(programs, tmp_path, monkeypatch, change):
    process = hidden(tmp_path, *(() if UID == 0 else ("-Ur",)))
    theirs = mounts.read(pid=process.pid)

    def read(proc="/proc", pid="self", most=0):
        point = "/" if change == "another root" else str(tmp_path)
        return [mount._replace(device="0:0") if mount.point == point else mount for mount in theirs]

    try:
        monkeypatch.setattr(mounts, "read", read)
        assert judge(programs, process.pid).exe_state == "foreign"
        monkeypatch.setattr(mounts, "read", lambda proc="/proc", pid="self", most=0: theirs)
        assert judge(programs, process.pid).exe_state == "private"
    finally:
        process.kill()
        process.wait()


def test_ordinary_program(programs):
    program = judge(programs, os.getpid())
    assert program.exe == os.path.realpath(sys.executable)
    assert program.exe_state == "ok"


def test_process_that_is_gone(programs):
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    assert programs.judge(child.pid, "/usr/bin/true", UID).exe_state == "ok"
    assert programs.judge(child.pid, "/nowhere/x (deleted)", UID).exe_state == "deleted"


@pytest.mark.parametrize(
    ("mode", "owner", "runner", "path", "writable"),
    [
        (0o755, 0, 1000, "/opt/app/bin/x", False),
        (0o777, 0, 1000, "/opt/app/bin/x", True),
        (0o1777, 0, 0, "/opt/app/bin/x", True),
        (0o755, 0, 0, "/tmp/x", True),
        (0o755, 0, 0, "/dev/shm/a/b/x", True),
        (0o755, 0, 0, "/run/user/1000/x", True),
        (0o755, 0, 0, "/tmpfiles/x", False),
        (0o755, 0, 1000, "/home/alice/bin/x", False),
        (0o777, 0, 1000, "/home/alice/bin/x", True),
    ],
)
def test_places(tmp_path, mode, owner, runner, path, writable):
    directory = str(tmp_path) + os.path.dirname(path)
    os.makedirs(directory)
    os.chmod(directory, mode)
    if os.getuid() != 0:
        pytest.skip("directories of this test belong to root")
    for above, _, _ in os.walk(tmp_path):
        os.chown(above, owner, owner)
    assert Programs(str(tmp_path), lambda _: True).writable(path, runner) is writable


def test_directories_of_other_users(tmp_path):
    os.makedirs(tmp_path / "srv/app")
    one = Programs(str(tmp_path), lambda _: True)
    owner = os.stat(tmp_path).st_uid
    if owner == 0:
        os.chown(tmp_path / "srv", 0, 0)
        os.chown(tmp_path / "srv/app", 1234, 1234)
        assert one.writable("/srv/app/x", 0)
        assert not one.writable("/srv/app/x", 1234)
    else:
        assert one.writable("/srv/app/x", 0)
        assert not one.writable("/srv/app/x", owner)


@pytest.mark.parametrize(
    ("link", "argv", "script"),
    [
        ("/usr/bin/python3.11", ("python3", "-I", "/tmp/x.py", "a"), "/tmp/x.py"),
        ("/usr/bin/python3.11", ("python3", "-c", "print()"), ""),
        ("/usr/bin/python3.11", ("python3", "-m", "http.server"), ""),
        ("/usr/bin/bash", ("sh", "run.sh"), "/work/run.sh"),
        ("/usr/bin/python3.11", ("python3", "-ISOO", "-X", "pycache_prefix=/x", "/tmp/d"), "/tmp/d"),
        ("/usr/bin/python3.11", ("python3", "-Ic", "print(1)"), ""),
        ("/usr/bin/bash", ("bash",), ""),
        ("/usr/bin/bash", ("bash", "-e", "/tmp/x"), "/tmp/x"),
        ("/usr/bin/bash", ("bash", "-o", "pipefail", "/tmp/x"), "/tmp/x"),
        ("/usr/bin/dash", ("sh", "-xc", "ls /tmp"), ""),
        ("/usr/bin/perl", ("perl", "-we", "1"), ""),
        ("/usr/bin/cat", ("cat", "/etc/passwd"), ""),
        (LOADER, ("ld.so", "/tmp/x"), "/tmp/x"),
        (LOADER, ("ld.so", "--argv0", "cron", "--library-path", "/a:/b", "/tmp/x"), "/tmp/x"),
        (LOADER, ("ld.so", "--inhibit-cache", "--preload", "/a.so", "/tmp/x"), "/tmp/x"),
        (LOADER, ("ld.so", "--verify", "/tmp/x"), "/tmp/x"),
    ],
)
def test_scripts(programs, link, argv, script):
    process = Process(1, 1, 0, link, argv, 0, None, "", "", "")
    assert programs.script_of(process, "/work") == script
