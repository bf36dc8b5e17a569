"""Socket diagnostics and /proc/net: own sockets are found, with both mechanisms alike; strange bytes are one error."""

import os
import socket
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import procnet, sockdiag

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@pytest.fixture
def own():
    """Listening and bound sockets on loopback, by (family, protocol)."""
    with ExitStack() as stack:
        found = {}
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            for kind, protocol in ((socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)):
                try:
                    one = stack.enter_context(socket.socket(family, kind))
                    one.bind((address, 0))
                except OSError:
                    continue  # a machine without IPv6
                if protocol == TCP:
                    one.listen()
                found[family, protocol] = one
        yield found


@pytest.fixture
def diag():
    try:
        one = sockdiag.SockDiag()
        one.bound()
    except Unavailable as error:
        pytest.skip(str(error))
    yield one
    one.close()


def test_own_sockets_are_found(own, diag):
    found = {one.inode: one for one in diag.bound()}
    for (family, protocol), mine in own.items():
        one = found[os.fstat(mine.fileno()).st_ino]
        assert (one.family, one.protocol, one.uid) == (family, protocol, os.getuid())
        assert socket.inet_ntop(family, one.address) == mine.getsockname()[0]
        assert one.port == mine.getsockname()[1]


def test_a_connected_udp_socket_is_not_a_listener(diag):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", 9))
        assert os.fstat(one.fileno()).st_ino not in {found.inode for found in diag.bound()}


def test_v6only_is_told(diag):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    for wanted in (0, 1):
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, wanted)
            one.bind(("::", 0))  # a specific address is never shared with IPv4
            one.listen()
            inode = os.fstat(one.fileno()).st_ino
            assert [found.v6only for found in diag.bound() if found.inode == inode] == [bool(wanted)]


def test_proc_net_agrees(own):
    listed = {one.inode: one for one in procnet.bound("/proc")}
    for (family, protocol), mine in own.items():
        one = listed[os.fstat(mine.fileno()).st_ino]
        assert (one.family, one.protocol) == (family, protocol)
        assert (socket.inet_ntop(family, one.address), one.port) == mine.getsockname()[:2]


@given(st.binary(max_size=160))
@settings(max_examples=150, deadline=None)
def test_any_answer_is_a_value_or_one_error(data):
    with suppress(DecodeError):
        sockdiag.parse(TCP, data)


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_table_is_a_value_or_one_error(data):
    with suppress(DecodeError):
        procnet.parse(b"header\n" + data, socket.AF_INET, TCP, sockdiag.TCP_LISTEN)


@pytest.mark.parametrize(
    "row", [b"0100007F:0016 -0001007:0000", b"0100007F:0016 0x001007:0000", b"-100007F:0016 00000000:0000"]
)
def test_a_number_with_a_sign_is_no_address(row):
    with pytest.raises(DecodeError):
        procnet.parse(b"header\n 0: " + row + b" 0A 0:0 00:0 0 0 0 45 1\n", socket.AF_INET, TCP, sockdiag.TCP_LISTEN)
