"""The sensor on its rungs without privilege: polling, and hints from the files sensor. Own child processes only."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgeguard.errors import Unavailable
from edgeguard.model import Origin, Status
from edgeguard.sensors import Context
from edgeguard.sensors import processes as module
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.processes import COLUMNS, CROSS_CHECK_S, POLLING_S, Processes
from edgeguard.sensors.running import LINGER_S


def nothing():
    raise Unavailable("not in this test")


def known(path):
    return not path.startswith(("/tmp/", "/var/tmp/")) and "edgeguard-test" not in path


@pytest.fixture
def make(monkeypatch):
    """A sensor without the connector; closed at the end."""
    monkeypatch.setattr(module, "ProcConnector", nothing)
    made = []

    def start(**options):
        actors = Actors()
        made.append(Processes(Context(actor_of=actors.actor_of, known_file=known), actors, **options))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def sleeper(tmp_path):
    running = []

    def start(name="edgeguard-test-x"):
        path = str(tmp_path / name)
        shutil.copy(shutil.which("sleep"), path)
        running.append(subprocess.Popen([path, "600"]))
        return running[-1], path

    yield start
    for one in running:
        one.kill()
        one.wait()


def find(observations, subject):
    found = [one for one in observations if one.subject == subject]
    return found[-1] if found else None


def test_polling_rung_says_what_it_misses(make):
    sensor = make()
    assert sensor.rung.name == "polling"
    assert sensor.rung.proven
    assert [name for name, _ in sensor.rung.tried] == ["proc connector", "fanotify exec"]
    assert any("less than a second" in line for line in sensor.rung.blind)
    assert sensor.interval_s == POLLING_S


def test_everything_that_runs_is_listed_with_declared_columns(make):
    observations = list(make().observe(5))
    assert observations
    for one in observations:
        assert one.kind == "process"
        assert set(one.columns) <= set(COLUMNS)
        assert one.status is Status.PRESENT
    mine = find(observations, os.readlink("/proc/self/exe"))
    assert mine.columns["exe_state"] == "ok"
    assert len({one.subject for one in observations}) == len(observations)


def test_a_program_is_found_deleted_and_gone(make, sleeper):
    sensor = make()
    list(sensor.observe(1))
    child, path = sleeper()
    before = find(sensor.observe(2), path)
    assert before.columns["pid"] == child.pid
    assert before.columns["exe_known"] is False
    assert before.actor.pid == child.pid
    assert (os.getpid(), os.readlink("/proc/self/exe")) in before.actor.parents
    assert abs(before.columns["start"] - time.time() * 1000) < 60_000
    os.unlink(path)
    assert find(sensor.observe(3), path).columns["exe_state"] == "deleted"
    child.kill()
    child.wait()
    assert find(sensor.observe(4), path) is None


def test_exec_between_two_looks_is_found(make, tmp_path):
    """A process that was seen as one program runs another one at the next look."""
    sensor = make()
    path = str(tmp_path / "edgeguard-test-y")
    shutil.copy(shutil.which("sleep"), path)
    child = subprocess.Popen(["/bin/sh", "-c", f"read x; exec {path} 600"], stdin=subprocess.PIPE)
    try:
        list(sensor.observe(1))
        child.stdin.write(b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + 5
        while os.readlink(f"/proc/{child.pid}/exe") != path and time.monotonic() < deadline:
            pass
        assert find(sensor.observe(2), path).columns["pid"] == child.pid
    finally:
        child.kill()
        child.wait()


def test_hints_prove_their_rung(make, sleeper):
    sensor = make(hints=True)
    assert (sensor.rung.name, sensor.rung.proven, sensor.interval_s) == ("fanotify exec", False, POLLING_S)
    list(sensor.observe(1))
    child, path = sleeper()
    told = sensor.exec_hint(child.pid, path, 2)
    assert sensor.rung.proven
    assert sensor.interval_s == CROSS_CHECK_S
    assert find(told, path).origin is Origin.LIVE
    assert sensor.exec_hint(child.pid, "/lib64/ld-linux-x86-64.so.2", 2) == []  # the same exec: its loader


@pytest.fixture
def about_to(tmp_path):
    """A shell that becomes another program when it is told to; as it is when the kernel's event is read early."""
    running = []

    def start(path, *words):
        shutil.copy(shutil.which("sleep"), path)
        command = f"read x; exec {path} {' '.join(words)}"
        running.append(subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE))
        return running[-1]

    yield start
    for one in running:
        one.kill()
        one.communicate()


def follow(sensor, path):
    """What the sensor tells of `path` when its descriptor says so."""
    told, deadline = [], time.monotonic() + 5
    while time.monotonic() < deadline and find(told, path) is None:
        module.select.select([sensor.fileno()], [], [], 2)
        told += sensor.ready(3)
    return find(told, path)


def becomes(child, path):
    """Let it go on, and wait until it has become what was announced: on a busy machine that takes its time."""
    child.stdin.write(b"\n")
    child.stdin.flush()
    deadline = time.monotonic() + 30
    while path.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0"):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_hint_before_the_process_has_become_the_program(make, about_to, tmp_path):
    sensor = make(hints=True)
    path = str(tmp_path / "edgeguard-test-early")
    child = about_to(path, "600")
    list(sensor.observe(1))
    for opened in (path, "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        assert find(sensor.exec_hint(child.pid, opened, 2), path) is None
    becomes(child, path)
    assert follow(sensor, path).columns["pid"] == child.pid


def test_a_hint_of_a_program_that_ended_before_the_second_look(make, about_to):
    sensor = make(hints=True)
    path = f"/dev/shm/edgeguard-test-early-{os.getpid()}"
    try:
        child = about_to(path, "0")
        list(sensor.observe(1))
        assert find(sensor.exec_hint(child.pid, path, 2), path) is None
        child.communicate(b"\n")
        assert follow(sensor, path).columns["writable_dir"] is True
    finally:
        os.unlink(path)


def test_what_never_becomes_another_program_is_let_go(make, about_to, tmp_path):
    sensor = make(hints=True)
    child = about_to(str(tmp_path / "edgeguard-test-never"), "600")
    list(sensor.observe(1))
    sensor.exec_hint(child.pid, "/usr/bin/never", 2)
    deadline = time.monotonic() + 5
    while sensor._unsettled and time.monotonic() < deadline:
        module.select.select([sensor.fileno()], [], [], 2)
        assert find(sensor.ready(3), "/usr/bin/never") is None
    assert not sensor._unsettled


@pytest.fixture
def script():
    """A script in a directory that anybody can write, whatever else runs; it waits for a line."""
    path = f"/dev/shm/edgeguard-test-{os.getpid()}.sh"
    with open(path, "w", encoding="ascii") as file:
        file.write("read x\n")
    yield path
    os.unlink(path)


def test_a_script_that_anybody_could_have_written_is_a_subject_of_its_own(make, script):
    sensor = make(hints=True)
    list(sensor.observe(1))
    child = subprocess.Popen(["/bin/sh", script], stdin=subprocess.PIPE)
    try:
        while script.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            pass  # the kernel sets the program first, its arguments a moment later
        shell = os.readlink(f"/proc/{child.pid}/exe")
        seen = find(sensor.exec_hint(child.pid, shell, 2), script)
        assert (seen.columns["exe"], seen.columns["script"], seen.columns["script_writable"]) == (shell, script, True)
        assert find(sensor.observe(3), script).columns["pid"] == child.pid
        assert find(sensor.observe(4), script).columns["pid"] == child.pid
    finally:
        child.communicate(b"\n")
    deadline = time.monotonic() + LINGER_S + 5
    gone = None
    while gone is None and time.monotonic() < deadline:
        module.select.select([sensor.fileno()], [], [], 1)
        gone = find(sensor.ready(5), script)
    assert gone.status is Status.ABSENT


def test_a_shell_that_becomes_a_shell_with_a_script(make, script):
    """The kernel's event comes before the exec: the process still looks like the shell that forked it."""
    sensor = make(hints=True)
    child = subprocess.Popen(["/bin/sh", "-c", f"read x; exec /bin/sh {script}"], stdin=subprocess.PIPE)
    try:
        list(sensor.observe(1))
        assert find(sensor.exec_hint(child.pid, "/usr/lib/ld-linux.so.2", 2), script) is None
        becomes(child, script)
        assert follow(sensor, script).columns["pid"] == child.pid
    finally:
        child.communicate(b"\n")


def test_a_shell_that_is_looked_at_before_its_arguments_are_there(make, script):
    sensor = make(hints=True)
    list(sensor.observe(1))
    child = subprocess.Popen(["/bin/sh", script], stdin=subprocess.PIPE)
    try:
        while script.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            pass
        remember = sensor._actors.remember
        sensor._actors.remember = lambda pid: remember(pid)._replace(argv=())
        assert find(sensor.exec_hint(child.pid, os.readlink(f"/proc/{child.pid}/exe"), 2), script) is None
        sensor._actors.remember = remember
        assert follow(sensor, script).columns["pid"] == child.pid
    finally:
        child.communicate(b"\n")


def test_without_hints_the_rung_falls(make):
    sensor = make(hints=True)
    for now in range(1, module.HINT_LOOKS + 3):
        list(sensor.observe(now))
    assert sensor.rung.name == "polling"
    assert sensor.interval_s == POLLING_S


def test_nobody_waits_for_hints_that_cannot_come(make):
    sensor = make(hints=True)
    sensor.no_hints()
    assert (sensor.rung.name, sensor.rung.proven, sensor.interval_s) == ("polling", True, POLLING_S)
    assert ("fanotify exec", "the files sensor reports no executions") in sensor.rung.tried


def test_a_glimpsed_program_is_told_by_its_path(make, tmp_path):
    sensor = make(hints=True)
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    told = sensor.exec_hint(child.pid, "/tmp/edgeguard-test-glimpse", 2)
    assert [one.columns["exe_state"] for one in told] == ["unknown"]
    assert told[0].columns["writable_dir"] is True
    assert sensor.exec_hint(child.pid, "/usr/bin/true", 2) == []
    assert sensor.vanished == 2


def test_the_end_of_a_suspicious_one_wakes_the_loop(make, sleeper, monkeypatch):
    monkeypatch.setattr("edgeguard.sensors.running.LINGER_S", 0.0)
    sensor = make(hints=True)
    child, path = sleeper()
    sensor.exec_hint(child.pid, path, 2)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 5
    told = []
    while time.monotonic() < deadline and find(told, path) is None:
        assert module.select.select([sensor.fileno()], [], [], 5)[0]
        told += [one for one in sensor.ready(3) if one.status is Status.ABSENT]
    assert find(told, path).status is Status.ABSENT


def test_deletion_is_seen_within_a_second(make):
    """Only in places where anybody writes: there the sensor keeps an eye on the file."""
    sensor = make(hints=True)
    path = f"/dev/shm/edgeguard-test-{os.getpid()}"
    shutil.copy(shutil.which("sleep"), path)
    try:
        child = subprocess.Popen([path, "600"])
    except PermissionError:
        os.unlink(path)
        pytest.skip("/dev/shm is mounted noexec")
    try:
        assert find(sensor.exec_hint(child.pid, path, 2), path).columns["writable_dir"] is True
        os.unlink(path)
        began = time.monotonic()
        told = []
        while time.monotonic() < began + 5 and find(told, path) is None:
            module.select.select([sensor.fileno()], [], [], 2)
            told += sensor.ready(3)
        assert find(told, path).columns["exe_state"] == "deleted"
        assert time.monotonic() - began < 2
    finally:
        child.kill()
        child.wait()


def test_every_exec_is_offered_to_a_log(make, sleeper):
    sensor = make(hints=True)
    seen = []
    sensor.on_exec = seen.append
    child, path = sleeper()
    sensor.exec_hint(child.pid, path, 2)
    assert [(one.pid, one.link) for one in seen] == [(child.pid, path)]


def test_no_proc_is_a_rung_that_says_so(tmp_path):
    sensor = Processes(Context(root=str(tmp_path)))
    try:
        rung = sensor.start()
        assert not rung.proven
        assert "cannot be listed" in rung.blind[0]
    finally:
        sensor.close()
