"""The proc connector for real: execs are told, floods overflow audibly, and the sensor tells what it sees at once."""

import os
import select
import shutil
import subprocess
import time

import pytest

from edgeguard.errors import Unavailable
from edgeguard.linux.procconn import ProcConnector
from edgeguard.model import Status
from edgeguard.sensors import Context
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.processes import CROSS_CHECK_S, Processes

pytestmark = pytest.mark.root


@pytest.fixture
def connector():
    try:
        one = ProcConnector(buffer=4096)
    except Unavailable as error:
        pytest.skip(str(error))
    yield one
    one.close()


@pytest.fixture
def sensor():
    actors = Actors()
    one = Processes(Context(actor_of=actors.actor_of, known_file=lambda path: path.startswith("/usr/")), actors)
    if one.start().name != "proc connector":
        one.close()
        pytest.skip(str(one.rung.tried))
    list(one.observe(1))
    yield one
    one.close()


def wait(sensor, subject, wanted, seconds=5.0):
    """The first observation of `subject` for which `wanted` holds, and how long it took."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        select.select([sensor.fileno()], [], [], left)
        for one in sensor.ready(2):
            if one.subject == subject and wanted(one):
                return one, time.monotonic() - began
    raise AssertionError(f"nothing about {subject}")


def test_execs_are_told(connector):
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    assert child.pid in list(connector.execs())


def test_an_overflow_is_counted(connector):
    for _ in range(100):
        subprocess.run(["/bin/true"], check=True)
    assert list(connector.execs())
    assert connector.lost >= 1
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    assert child.pid in list(connector.execs())


def test_the_rung_is_proven(sensor):
    assert sensor.rung.proven
    assert sensor.interval_s == CROSS_CHECK_S


def test_started_from_tmp_deleted_and_ended(sensor):
    path = f"/tmp/edgeguard-test-{os.getpid()}"
    shutil.copy(shutil.which("sleep"), path)
    child = subprocess.Popen([path, "600"])
    try:
        one, took = wait(sensor, path, lambda one: one.columns["writable_dir"])
        assert took < 1
        assert one.columns["pid"] == child.pid
        assert one.actor.parents[0][0] == os.getpid()
        os.unlink(path)
        _, took = wait(sensor, path, lambda one: one.columns.get("exe_state") == "deleted")
        assert took < 2
    finally:
        child.kill()
        child.wait()
    wait(sensor, path, lambda one: one.status is Status.ABSENT, 10)


def test_from_memory(sensor):
    fd = os.memfd_create("edgeguard-test")
    with open(shutil.which("sleep"), "rb") as file:
        os.write(fd, file.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(f"/proc/self/fd/{fd}", ["x", "600"], {})
        finally:
            os._exit(1)
    try:
        one, took = wait(sensor, "memfd:edgeguard-test", lambda one: one.columns["exe_state"] == "memfd")
        assert one.columns["pid"] == pid
        assert took < 1
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(fd)


def test_a_storm_of_known_programs_is_silent(sensor):
    for _ in range(30):
        subprocess.run(["/bin/true"], check=True)
    told = [one for one in sensor.ready(2) if one.subject.endswith("/true")]
    assert len(told) <= 1
