"""Listeners: own ones on loopback, shared ports, passing UDP ports, owners, scopes, and a tree of text files."""

import os
import socket
import subprocess
import sys

import pytest

from edgeguard.errors import Unavailable
from edgeguard.model import Origin, Status
from edgeguard.sensors import Context
from edgeguard.sensors import listeners as module
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.listeners import COLUMNS, EPHEMERAL_MS, Listeners, lasting_unit, scope
from edgeguard.sensors.snapshot import Snapshot

EXE = os.path.realpath(sys.executable)


@pytest.fixture(params=["sock_diag", "proc net"])
def sensor(request, monkeypatch):
    def nothing(*_):
        raise Unavailable("not in this test")

    monkeypatch.setattr(module, "PortBell", nothing)
    if request.param == "proc net":
        monkeypatch.setattr(module, "SockDiag", nothing)
    one = Listeners(Context(actor_of=Actors().actor_of, package_of=lambda _: "pkg", known_file=lambda _: True))
    rung = one.start()
    if rung.name != request.param:
        pytest.skip(f"{request.param}: {rung.tried}")
    assert rung.proven
    yield one
    one.close()


def listen(family, address):
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.bind((address, 0))
    except OSError:
        one.close()
        pytest.skip(f"no {address} here")
    one.listen()
    return one


def look(sensor, now=7):
    return {one.subject: one for one in sensor.observe(now)}


@pytest.mark.parametrize(
    ("family", "address", "shown"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")]
)
def test_own_listener(sensor, family, address, shown):
    with listen(family, address) as mine:
        port = mine.getsockname()[1]
        one = look(sensor)[f"tcp/{shown}:{port}"]
        columns = one.columns
        assert set(columns) == set(COLUMNS)
        assert (columns["exe"], columns["pid"], columns["uid"]) == (EXE, os.getpid(), os.getuid())
        assert (columns["protocol"], columns["address"], columns["port"]) == ("tcp", address, port)
        assert (columns["scope"], columns["package"], columns["exe_known"]) == ("loopback", "pkg", True)
        assert (columns["owner"], columns["ephemeral"]) == ("process", False)
        assert one.actor.pid == os.getpid()
    assert f"tcp/{shown}:{port}" not in look(sensor)


def test_a_passing_udp_port_is_told_when_it_was_there_for_a_while(sensor):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        subject = f"udp/127.0.0.1:{mine.getsockname()[1]}"
        assert subject not in look(sensor, 100_000)
        assert subject not in look(sensor, 100_000 + EPHEMERAL_MS - 1)
        assert look(sensor, 100_000 + EPHEMERAL_MS)[subject].columns["ephemeral"] is True
        assert subject in look(sensor, 1)  # once told it stays, whatever becomes of the clock


def test_a_clock_that_is_set_back_does_not_hide_a_port(sensor):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        subject = f"udp/127.0.0.1:{mine.getsockname()[1]}"
        assert subject not in look(sensor, 9_000_000)
        assert subject not in look(sensor, 5)
        assert subject in look(sensor, 5 + EPHEMERAL_MS)


class Bell:
    """Stands in for the kernel's."""

    deaf = ""

    def __init__(self, _ephemeral):
        self.pids = [11, 12]
        self.closed = False

    def fileno(self):
        return 99

    def rang(self):
        pids, self.pids = self.pids, []
        return pids

    def close(self):
        self.closed = True


def test_the_bell_says_when_and_nothing_else(monkeypatch):
    monkeypatch.setattr(module, "PortBell", Bell)
    one = Listeners(Context())
    rung = one.start()
    if "sock_diag" in dict(rung.tried):
        pytest.skip(str(rung.tried))
    assert (rung.name, rung.proven) == ("bpf", True)
    assert one.fileno() == 99
    assert list(one.ready(1)) == []
    assert tuple(one._recent) == (11, 12)
    bell = one._bell
    one.close()
    assert bell.closed
    assert one.fileno() is None


def test_deaf_for_udp_is_said(monkeypatch):
    monkeypatch.setattr(module, "PortBell", type("Half", (Bell,), {"deaf": "cgroup version 2 is not mounted"}))
    one = Listeners(Context())
    rung = one.start()
    one.close()
    if "sock_diag" in dict(rung.tried):
        pytest.skip(str(rung.tried))
    assert any("UDP" in line and "cgroup version 2 is not mounted" in line for line in rung.blind)


def test_no_bell_is_the_next_rung(monkeypatch):
    def nothing(_):
        raise Unavailable("loading a BPF program: not allowed")

    monkeypatch.setattr(module, "PortBell", nothing)
    one = Listeners(Context())
    rung = one.start()
    assert one.fileno() is None
    assert list(one.ready(1)) == []
    one.close()
    assert ("bpf", "loading a BPF program: not allowed") in rung.tried or "sock_diag" in dict(rung.tried)


def test_without_a_bell_the_delay_is_said(sensor):
    assert module.LATE.format(10) in sensor.rung.blind


def test_without_a_second_view_the_first_is_used_and_not_called_proven(monkeypatch):
    def hidden(_):
        raise FileNotFoundError(2, "No such file or directory")

    try:
        diag = module.SockDiag()
        diag.bound()
        diag.close()
    except (OSError, Unavailable) as error:
        pytest.skip(str(error))
    monkeypatch.setattr(module.procnet, "bound", hidden)
    one = Listeners(Context())
    rung = one.start()
    one.close()
    assert rung.name != "proc net"
    assert not rung.proven
    assert any("could not be checked" in line for line in rung.blind)


def test_only_what_the_bell_rang_for_is_called_live(monkeypatch):
    monkeypatch.setattr(module, "PortBell", Bell)
    one = Listeners(Context())
    if "sock_diag" in dict(one.start().tried):
        pytest.skip("no sock_diag")
    try:
        with listen(socket.AF_INET, "127.0.0.1") as mine:
            assert look(one)[f"tcp/127.0.0.1:{mine.getsockname()[1]}"].origin is Origin.SWEEP
            list(one.ready(1))
            with listen(socket.AF_INET, "127.0.0.1") as other:
                seen = look(one)
                assert seen[f"tcp/127.0.0.1:{other.getsockname()[1]}"].origin is Origin.LIVE
                assert seen[f"tcp/127.0.0.1:{mine.getsockname()[1]}"].origin is Origin.SWEEP
    finally:
        one.close()


def test_a_shared_port_names_all_programs(sensor):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        subject = f"tcp/127.0.0.1:{port}"
        assert look(sensor)[subject].columns["sharers"] == ()
        code = (
            "import socket,os; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1);"
            f"s.bind(('127.0.0.1',{port})); s.listen(); s.set_inheritable(True); print(flush=True);"
            "os.execv('/bin/sleep', ['sleep', '600'])"
        )
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            other.stdout.readline()
            while os.readlink(f"/proc/{other.pid}/exe") == EXE:
                pass
            columns = look(sensor)[subject].columns
            sleep = os.readlink(f"/proc/{other.pid}/exe")
            assert columns["pid"] == other.pid  # the newest speaks
            assert columns["sharers"] == tuple(sorted((EXE, sleep)))
        finally:
            other.kill()
            other.wait()
            other.stdout.close()


def test_a_socket_that_changed_hands_is_looked_up_again(sensor):
    """exec keeps an inherited socket: the port is the same, the program is not."""
    code = (
        "import socket,os,sys; s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(); s.set_inheritable(True);"
        "print(s.getsockname()[1], flush=True); sys.stdin.readline(); os.execv('/bin/sleep', ['sleep', '600'])"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        subject = f"tcp/127.0.0.1:{int(child.stdout.readline())}"
        snapshot = Snapshot(sensor.volatile)
        first = {one.subject: one for one in snapshot.update(sensor.observe(1), 1)}
        assert first[subject].columns["exe"] == EXE
        child.stdin.write(b"\n")
        child.stdin.flush()
        while os.readlink(f"/proc/{child.pid}/exe") == EXE:
            pass
        second = {one.subject: one for one in snapshot.update(sensor.observe(2), 2)}
        assert second[subject].columns["exe"] == os.readlink(f"/proc/{child.pid}/exe")
        child.kill()
        child.wait()
        gone = {one.subject: one.status for one in snapshot.update(sensor.observe(3), 3)}
        assert gone[subject] is Status.ABSENT
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_another_baseline_is_asked(sensor):
    with listen(socket.AF_INET, "127.0.0.1") as mine:
        subject = f"tcp/127.0.0.1:{mine.getsockname()[1]}"
        sensor._context = sensor._context._replace(known_file=lambda _: False)
        assert look(sensor)[subject].columns["exe_known"] is False
        sensor._context = sensor._context._replace(known_file=lambda _: True)
        assert look(sensor)[subject].columns["exe_known"] is True
        sensor._context = sensor._context._replace(known_file=lambda _: False)
        sensor.renew()
        assert look(sensor)[subject].columns["exe_known"] is False


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("0.0.0.0", "any"),
        ("127.0.0.53", "loopback"),
        ("169.254.1.1", "link"),
        ("192.168.1.2", "address"),
        ("::", "any"),
        ("::1", "loopback"),
        ("fe80::1", "link"),
        ("febf::1", "link"),
        ("fec0::1", "address"),
        ("2001:db8::1", "address"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:0.0.0.0", "any"),
    ],
)
def test_scopes(address, wanted):
    assert scope(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)) == wanted


@pytest.mark.parametrize(
    ("unit", "lasting"),
    [
        ("ssh.service", "ssh.service"),
        ("session-7.scope", "session-*.scope"),
        ("run-u12.service", "run-*.service"),
        ("docker-0f3a.scope", "docker-*.scope"),
        ("user@1000.service", "user@1000.service"),
        ("run-parts.timer.service", "run-*.service"),
        ("", ""),
    ],
)
def test_units(unit, lasting):
    assert lasting_unit(unit) == lasting


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  {}        0 {} 1 0 100 0 0 10 0\n"


def test_a_tree_of_text_files(tmp_path):
    """The same code looks at a mounted image or a test tree."""
    any_, local = "00000000", socket.inet_aton("127.0.0.1")
    local = f"{int.from_bytes(local, sys.byteorder):08X}"
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/tcp").write_text(HEAD + LINE.format(any_, 22, "0A", 0, 71) + LINE.format(any_, 9, "01", 0, 5))
    (tmp_path / "proc/net/udp").write_text(HEAD + LINE.format(local, 53, "07", 102, 72))
    (tmp_path / "proc/50/fd").mkdir(parents=True)
    (tmp_path / "proc/50/fd/3").symlink_to("socket:[71]")
    (tmp_path / "proc/50/exe").symlink_to("/usr/sbin/sshd")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/\nresolve:x:102:102::/:/\n")
    sensor = Listeners(Context(root=str(tmp_path)))
    assert sensor.start().name == "proc net"
    seen = look(sensor)
    assert set(seen) == {"tcp/0.0.0.0:22", "udp/127.0.0.1:53"}
    assert seen["tcp/0.0.0.0:22"].columns["exe"] == "/usr/sbin/sshd"
    assert seen["udp/127.0.0.1:53"].columns["user"] == "resolve"
    (tmp_path / "proc/net/udp").write_text(HEAD + "rubbish\n")
    (broken,) = sensor.observe(8)
    assert (broken.subject, broken.status) == ("*", Status.UNREADABLE)
