"""Remediations against a real kernel, in network namespaces of our own: a port that answers no more, a setting."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest

from edgeguard.linux import fileflags, nft
from edgeguard.remediations import Order, World, carry
from edgeguard.remediations.undo import UndoStore

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "nft"))), reason="needs iproute2 and nftables"),
]

CLONE_NEWNET = 0x40000000
NOW = 1_763_880_000_000

CONNECT = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
with socket.socket(family, kind) as peer:
    peer.settimeout(1)
    try:
        peer.connect((sys.argv[2], int(sys.argv[3])))
        peer.send(b"?")
        print(peer.recv(1).decode())
    except OSError as error:
        print("silent" if isinstance(error, TimeoutError) else type(error).__name__)
"""


@pytest.fixture
def spaces():
    """Two network namespaces with a cable between them: "device" 192.0.2.1 and "outside" 192.0.2.2."""
    device, outside = f"egd{os.getpid()}", f"ego{os.getpid()}"
    run = lambda *words: subprocess.run(words, check=True, capture_output=True)  # noqa: E731
    try:
        for name in (device, outside):
            run("ip", "netns", "add", name)
        run("ip", "-n", device, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", outside)
        for name, number in ((device, 1), (outside, 2)):
            run("ip", "-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "veth0")
            run("ip", "-n", name, "addr", "add", f"2001:db8::{number}/64", "dev", "veth0", "nodad")
            run("ip", "-n", name, "link", "set", "veth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield device, outside
    finally:
        for name in (device, outside):
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)


SERVER = """
import socket, select, sys
poll = select.poll()
peers = {}
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        made = socket.socket(family, kind)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, 4444))
        if kind == socket.SOCK_STREAM:
            made.listen()
        peers[made.fileno()] = made
        poll.register(made, select.POLLIN)
print("ready", flush=True)
held = []
while True:
    for number, _ in poll.poll():
        made = peers[number]
        if made.type == socket.SOCK_STREAM:
            peer, _ = made.accept()
            held.append(peer)
            peer.send(b"!")
        else:
            _, address = made.recvfrom(1)
            made.sendto(b"!", address)
"""


@pytest.fixture
def server(spaces):
    started = subprocess.Popen(
        ("ip", "netns", "exec", spaces[0], sys.executable, "-IS", "-c", SERVER), stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "ready\n"
    yield
    started.kill()
    started.wait()
    started.stdout.close()


def _connect(space, protocol, address, port=4444):
    words = ("ip", "netns", "exec", space, sys.executable, "-IS", "-c", CONNECT, protocol, address, str(port))
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def _inside(space):
    """This thread in a network namespace, through the C library: os.setns is newer than Debian 12's Python."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{space}", os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        assert libc.setns(here, CLONE_NEWNET) == 0
        os.close(here)
        os.close(there)


@pytest.fixture
def place(tmp_path):
    return World(undo=str(tmp_path / "undo"), quarantine=str(tmp_path / "quarantine"))


def _order(verb, kind, subject, reference=None):
    return Order(verb, "F-7K2M", "EG-PORT-001", kind, subject, {}, reference)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_a_blocked_port_answers_no_more_from_another_namespace(spaces, server, place, protocol, address):
    device, outside = spaces
    store = UndoStore(place.undo)
    assert _connect(outside, protocol, address) == "!"
    with _inside(device):
        subprocess.run(("nft", "add", "table", "inet", "theirs"), check=True)
        reply = carry.carry_out(_order("block-port", "listener", f"{protocol}/0.0.0.0:4444"), place, store, NOW)
    assert reply.ok, reply
    assert _connect(outside, protocol, address) == "silent"
    assert _connect(device, protocol, "127.0.0.1") == "!", "the loopback stays"
    with _inside(device):
        reply = carry.take_back("F-7K2M", place, store, NOW + 1)
        tables = subprocess.run(("nft", "list", "tables"), check=True, capture_output=True, text=True).stdout
    assert reply.ok, reply
    assert _connect(outside, protocol, address) == "!"
    assert tables.strip() == "table inet theirs", "ours is gone and theirs stands"


def test_a_session_that_stands_is_not_cut_and_other_ports_answer(spaces, server, place):
    device, outside = spaces
    with _inside(outside):
        session = socket.create_connection(("192.0.2.1", 4444), timeout=2)
    assert session.recv(1) == b"!"
    with _inside(device):
        nft.block("tcp", 4444)
        nft.block("tcp", 4444)  # again is no error
        nft.block("tcp", 4445)
        assert nft.blocked("tcp") == {4444, 4445}
        assert nft.blocked("udp") == set()
        rules = subprocess.run(("nft", "list", "table", "inet", "edgeguard"), check=True, capture_output=True)
    assert rules.stdout.count(b"dport @") == 2, "each rule stands once"
    session.send(b"still here")
    with _inside(device):
        nft.unblock("tcp", 4444)
        assert nft.blocked("tcp") == {4445}
        nft.unblock("tcp", 4444)
        nft.unblock("tcp", 4445)
        assert nft.blocked("tcp") == set()
    session.close()


def test_a_kernel_setting_goes_back_in_its_own_namespace(spaces, place):
    """/proc/sys/net is that of the reader's namespace."""
    store = UndoStore(place.undo)
    path = "/proc/sys/net/ipv4/conf/veth0/rp_filter"

    def value():
        with open(path, encoding="ascii") as file:
            return file.read().strip()

    with _inside(spaces[0]):
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
        order = _order("set-sysctl", "sysctl", "net.ipv4.conf.veth0.rp_filter", {"value": "2"})
        assert carry.carry_out(order, place, store, NOW).ok
        assert value() == "2"
        assert carry.take_back("F-7K2M", place, store, NOW + 1).ok
        assert value() == "0"


def test_ownership_and_capabilities_are_restored(tmp_path):
    """As root only: another owner, a set-user-ID bit and file capabilities."""
    import hashlib

    root, vault = tmp_path / "root", tmp_path / "vault"
    (root / "usr/bin").mkdir(parents=True)
    for directory in (root, root / "usr", root / "usr/bin"):
        directory.chmod(0o755)
    vault.mkdir()
    content = b"#!ping"
    digest = hashlib.sha256(content).digest()
    (vault / digest.hex()).write_bytes(content)
    target = root / "usr/bin/ping"
    target.write_bytes(b"trojan")
    os.chown(target, 65534, 65534)
    caps = "0100000200200000000000000000000000000000"
    entry = {"type": "file", "sha256": digest, "size": 6, "mode": 0o4750, "uid": 0, "gid": 65534, "caps": caps}
    world = World(
        root=str(root),
        vault=str(vault),
        undo=str(tmp_path / "undo"),
        quarantine=str(tmp_path / "quarantine"),
        lookup={b"/usr/bin/ping": entry | {"xattrs": b""}}.get,
    )
    store = UndoStore(world.undo)
    order = Order("restore-file", "F-7K2M", "EG-FILE-002", "file", "/usr/bin/ping", {}, None)
    reply = carry.carry_out(order, world, store, NOW)
    assert reply.ok, reply
    status = target.stat()
    assert (target.read_bytes(), status.st_mode & 0o7777, status.st_uid, status.st_gid) == (content, 0o4750, 0, 65534)
    assert os.getxattr(target, "security.capability").hex() == caps
    assert carry.take_back("F-7K2M", world, store, NOW + 1).ok
    status = target.stat()
    assert (target.read_bytes(), status.st_uid, os.listxattr(target)) == (b"trojan", 65534, [])


@pytest.mark.parametrize("verb", ["restore-file", "quarantine-file"])
@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_file_made_immutable_is_replaced_all_the_same(tmp_path, verb, flag):
    """What intruders do so that their key stays. Undo brings the flag back too."""
    import hashlib

    (tmp_path / "root").mkdir(mode=0o755)
    (tmp_path / "vault").mkdir()
    target = tmp_path / "root/authorized_keys"
    target.write_bytes(b"evil")
    if subprocess.run(("chattr", f"+{flag}", target), check=False, capture_output=True).returncode:
        pytest.skip("this file system has no such flags")
    digest = hashlib.sha256(b"good").digest()
    (tmp_path / "vault" / digest.hex()).write_bytes(b"good")
    entry = {"type": "file", "sha256": digest, "size": 4, "mode": 0o600, "uid": 0, "gid": 0, "caps": "", "xattrs": b""}
    world = World(
        root=str(tmp_path / "root"),
        vault=str(tmp_path / "vault"),
        undo=str(tmp_path / "undo"),
        quarantine=str(tmp_path / "quarantine"),
        lookup={b"/authorized_keys": entry}.get if verb == "restore-file" else lambda _path: None,
    )
    store = UndoStore(world.undo)
    order = Order(verb, "F-7K2M", "EG-ACCT-004", "file", "/authorized_keys", {}, None)
    try:
        reply = carry.carry_out(order, world, store, NOW)
        assert reply.ok, reply
        assert (target.read_bytes() if target.exists() else None) == (b"good" if verb == "restore-file" else None)
        assert carry.take_back("F-7K2M", world, store, NOW + 1).ok
        assert target.read_bytes() == b"evil"
        with pytest.raises(PermissionError):
            os.unlink(target)
    finally:
        subprocess.run(("chattr", "-ia", target), check=False, capture_output=True)


def test_a_kill_before_the_flags_are_back_is_taken_back(tmp_path, monkeypatch):
    """The flags of a restored file come last of all. Killed before that, it is what it should be but for them."""
    import hashlib

    (tmp_path / "root").mkdir(mode=0o755)
    (tmp_path / "vault").mkdir()
    target = tmp_path / "root/hosts"
    target.write_bytes(b"evil")
    if subprocess.run(("chattr", "+a", target), check=False, capture_output=True).returncode:
        pytest.skip("this file system has no such flags")
    digest = hashlib.sha256(b"good").digest()
    (tmp_path / "vault" / digest.hex()).write_bytes(b"good")
    held = hashlib.sha256(fileflags.text(fileflags.FS_IMMUTABLE_FL)).digest()
    entry = {"type": "file", "sha256": digest, "size": 4, "mode": 0o644, "uid": 0, "gid": 0, "caps": "", "xattrs": held}
    world = World(
        root=str(tmp_path / "root"),
        vault=str(tmp_path / "vault"),
        undo=str(tmp_path / "undo"),
        quarantine=str(tmp_path / "quarantine"),
        lookup={b"/hosts": entry}.get,
    )
    store = UndoStore(world.undo)
    order = Order("restore-file", "F-7K2M", "EG-FILE-002", "file", "/hosts", {}, None)
    hold = fileflags.hold

    def killed(fd, flags):
        if flags == fileflags.FS_IMMUTABLE_FL:
            raise SystemExit
        hold(fd, flags)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(fileflags, "hold", killed)
            with pytest.raises(SystemExit):
                carry.carry_out(order, world, store, NOW)
        assert target.read_bytes() == b"good"
        ((_record, reply),) = carry.recover(world, store, NOW + 1)
        assert "put back from quarantine" in reply.detail
        assert target.read_bytes() == b"evil"
        with pytest.raises(PermissionError):  # append-only, as it was
            os.unlink(target)
        again = carry.carry_out(order._replace(finding="F-8K2M"), world, store, NOW + 10**9)
        assert again.ok, again
        with pytest.raises(PermissionError):  # immutable, as it should be
            os.unlink(target)
    finally:
        subprocess.run(("chattr", "-ia", target), check=False, capture_output=True)
