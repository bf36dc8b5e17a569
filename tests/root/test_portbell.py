"""The bell for real: a cgroup of our own, binds by children inside it. Never this machine's topmost cgroup."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sensing import Sensing
from edgeguard.errors import Unavailable
from edgeguard.linux import bpf, portbell
from edgeguard.linux.portbell import EVERY_PORT, PortBell
from edgeguard.model import Status
from edgeguard.sensors import Context
from edgeguard.sensors.listeners import Listeners

pytestmark = pytest.mark.root

PROG_QUERY = 16
INITIAL_PIDS = 0xEFFFFFFC  # the kernel's fixed inode of the initial pid namespace
HEAR_S = 5.0  # a bound for slow machines; the bell rings within the call that opens the port
UDP4 = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', {port}))"
UDP6 = "u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(('::1', {port}))"
JOIN = "import socket, sys, time; open({cgroup!r} + '/cgroup.procs', 'w').write('0')\n"


@pytest.fixture
def cgroup():
    try:
        path = f"{portbell.topmost_cgroup()}/edgeguard-test-{uuid.uuid4().hex[:8]}"
        os.mkdir(path)
    except (Unavailable, OSError) as error:
        pytest.skip(str(error))
    yield path
    for _ in range(100):  # those that ended leave it a moment later
        try:
            os.rmdir(path)
            return
        except OSError:
            time.sleep(0.02)
    os.rmdir(path)


@pytest.fixture
def bell(cgroup):
    try:
        one = PortBell((32768, 60999), cgroup)
    except Unavailable as error:
        pytest.skip(str(error))
    assert one.deaf == ""
    yield one
    one.close()


def inside(cgroup, code):
    """Runs the code in a child in that cgroup; its exit status and pid."""
    child = subprocess.Popen([sys.executable, "-c", JOIN.format(cgroup=cgroup) + code], stderr=subprocess.PIPE)
    _, errors = child.communicate(timeout=60)
    return child.returncode, child.pid, errors.decode()


def port_below_ephemeral():
    """One that is free for UDP now."""
    for port in range(20000, 32000):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            try:
                one.bind(("::", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def readable(bell, timeout=HEAR_S):
    return bool(select.select([bell.fileno()], [], [], timeout)[0])


def heard(bell, pid):
    """Did this process ring? Others on this machine may listen at the same time."""
    deadline = time.monotonic() + HEAR_S
    while time.monotonic() < deadline:
        if readable(bell, 0.1) and pid in bell.rang():
            return True
    return False


def attached(cgroup):
    """How many programs stand at the end of bind in this cgroup."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = 0
        for kind in (bpf.CGROUP_INET4_POST_BIND, bpf.CGROUP_INET6_POST_BIND):
            data = bytearray(struct.pack("=IIIIQII", directory, kind, 0, 0, 0, 0, 0))
            memory = (bpf.ctypes.c_char * len(data)).from_buffer(data)
            number = bpf._machine()[0]
            bpf._syscall(number, PROG_QUERY, bpf.ctypes.addressof(memory), len(data))  # ENOSPC: only the count
            del memory
            found += struct.unpack_from("=I", data, 24)[0]
        return found
    finally:
        os.close(directory)


@pytest.mark.parametrize("code", [UDP4, UDP6])
def test_a_udp_bind_rings(bell, cgroup, code):
    status, pid, errors = inside(cgroup, code.format(port=port_below_ephemeral()))
    assert status == 0, errors
    assert heard(bell, pid)


def test_an_ephemeral_udp_port_does_not_ring(bell, cgroup):
    status, pid, errors = inside(cgroup, UDP4.format(port=0))
    assert status == 0, errors
    assert pid not in bell.rang()


@pytest.mark.parametrize(
    "code",
    [
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
        "s = socket.socket(socket.AF_INET6); s.bind(('::1', 0)); s.listen()",
        "s = socket.socket(); s.listen()",  # without bind: the kernel picks a port
    ],
)
def test_a_tcp_listener_rings_wherever_it_is(bell, code):
    child = subprocess.Popen([sys.executable, "-c", f"import socket; {code}"])
    assert child.wait(60) == 0
    assert heard(bell, child.pid)


def test_a_tcp_client_does_not_ring(bell):
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); import os; pid = os.fork()\n"
        "if pid == 0: c = socket.create_connection(s.getsockname()); c.close(); os._exit(0)\n"
        "s.accept(); os.waitpid(pid, 0); print(pid)"
    )
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert int(child.stdout) not in bell.rang()


def test_everything_is_allowed_while_the_ring_is_full(bell, cgroup):
    """A page holds 256 values. Nobody reads; a thousand binds and listens succeed all the same, and do not wait."""
    port = port_below_ephemeral()
    code = (
        f"for _ in range(1000):\n {UDP4.format(port=port)}; u.close()\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\nprint('all')"
    )
    status, pid, errors = inside(cgroup, code)
    assert status == 0, errors
    assert readable(bell)
    values = bell.rang()
    assert bpf.mmap.PAGESIZE // 16 - 1 <= len(values) <= bpf.mmap.PAGESIZE // 16  # what rang first is kept
    assert bell.rang() == []
    status, pid, errors = inside(cgroup, UDP4.format(port=port))  # and it goes on
    assert status == 0, errors
    assert heard(bell, pid)


def test_a_refused_bind_stays_refused(bell, cgroup):
    """It changes nothing in the other direction either: who may not bind, may not."""
    code = "s = socket.socket()\ntry: s.bind(('192.0.2.1', 80))\nexcept OSError as e: sys.exit(e.errno)"
    status, _, _ = inside(cgroup, code)
    assert status == bpf.errno.EADDRNOTAVAIL


def test_close_detaches(bell, cgroup):
    assert attached(cgroup) == 2
    bell.close()
    assert attached(cgroup) == 0
    bell.__init__((32768, 60999), cgroup)
    assert attached(cgroup) == 2


def test_killed_and_gone(cgroup):
    """kill -9: what was attached goes with the process, and binds go on throughout."""
    code = (
        "import sys; from edgeguard.linux.portbell import PortBell\n"
        f"bell = PortBell((1, 0), {cgroup!r}); print(bell.deaf or 'hangs', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        line = child.stdout.readline().decode().strip()
        if line != "hangs":
            pytest.skip(line or "no bell here")
        assert attached(cgroup) == 2
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert inside(cgroup, UDP4.format(port=port_below_ephemeral()))[0] == 0
        deadline = time.monotonic() + HEAR_S
        while attached(cgroup) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert attached(cgroup) == 0
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_beside_another_program(cgroup):
    """Two bells on one cgroup, and one below: all ring."""
    below = f"{cgroup}/below"
    os.mkdir(below)
    bells = []
    try:
        bells += (PortBell(EVERY_PORT, place) for place in (cgroup, cgroup, below))
        assert [one.deaf for one in bells] == ["", "", ""]
        status, pid, errors = inside(below, UDP4.format(port=port_below_ephemeral()))
        assert status == 0, errors
        assert all(heard(one, pid) for one in bells)
    finally:
        for one in bells:
            one.close()
        os.rmdir(below)


def test_no_cgroup_leaves_tcp(tmp_path):
    if os.stat("/proc/self/ns/pid").st_ino != INITIAL_PIDS:
        pytest.skip("what rings is told by its id in the initial pid namespace, and this is another")
    try:
        one = PortBell(EVERY_PORT, str(tmp_path))
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        assert one.deaf
        with socket.socket() as mine:
            mine.listen()
            assert heard(one, os.getpid())
    finally:
        one.close()


def test_without_rights_it_is_one_sentence():
    code = (
        # first, because afterwards the tree may be out of reach, below /root
        "from edgeguard.linux.portbell import PortBell; from edgeguard.errors import Unavailable\n"
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: PortBell((1, 0), '/')\nexcept Unavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert b"not allowed" in done.stdout


@pytest.mark.parametrize(("kind", "protocol"), [("SOCK_STREAM", "tcp"), ("SOCK_DGRAM", "udp")])
def test_a_late_listener_is_told_in_time(cgroup, monkeypatch, kind, protocol):
    """The daemon's own loop: a process that runs for long opens a port; no clock ticks in between."""
    monkeypatch.setattr(portbell, "topmost_cgroup", lambda: cgroup)
    told = {}
    loop = Loop()
    sensing = Sensing(loop, lambda seen: told.setdefault(seen.subject, seen), lambda _: (), lambda *_: None)
    rung = sensing.add(Listeners(Context()), snapshot=True)
    if rung.name != "bpf":
        sensing.close()
        pytest.skip(str(rung.tried))
    sensing.run()
    port = port_below_ephemeral()
    code = f"s = socket.socket(socket.AF_INET, socket.{kind}); print(flush=True); sys.stdin.readline()\n"
    code += f"s.bind(('127.0.0.1', {port}))\nif s.type == socket.SOCK_STREAM: s.listen()\nsys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", JOIN.format(cgroup=cgroup) + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        told.clear()
        child.stdin.write(b"\n")
        child.stdin.flush()
        began = time.monotonic()
        subject = f"{protocol}/127.0.0.1:{port}"
        while subject not in told and time.monotonic() < began + 2.0:
            loop.turn(0.5)
        assert subject in told, "not within two seconds"
        assert told[subject].status is Status.PRESENT
        assert told[subject].columns["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
        sensing.close()
