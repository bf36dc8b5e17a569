"""Netlink framing: what we pack we can take apart, and any other bytes are values or one error."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import DecodeError
from edgeguard.linux import netlink


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=40)), max_size=5))
@settings(max_examples=80, deadline=None)
def test_messages_come_back(items):
    data = b"".join(netlink.pack(kind, 0, 7, body) + bytes(-len(body) % 4) for kind, body in items)
    assert [(one.type, one.payload) for one in netlink.messages(data)] == items


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_values_or_one_error(data):
    for take in (lambda: list(netlink.messages(data)), lambda: netlink.attributes(data)):
        with contextlib.suppress(DecodeError):
            take()


def test_a_length_beyond_the_end_is_refused():
    good = netlink.pack(20, 0, 1, b"abcd")
    for length in (0, 15, len(good) + 1, 0xFFFFFFFF):
        with pytest.raises(DecodeError):
            list(netlink.messages(struct.pack("=I", length) + good[4:]))


def test_attributes_ignore_flag_bits():
    assert netlink.attributes(struct.pack("=HHI", 8, 0x8000 | 11, 5)) == {11: struct.pack("=I", 5)}


def test_error_numbers():
    def error(code):
        return netlink.Message(netlink.NLMSG_ERROR, 0, 0, 0, struct.pack("=i", code) + bytes(16))

    assert netlink.error_of(error(-2)) == 2
    assert netlink.error_of(error(0)) == 0
    for bad in (5, -100000):
        with pytest.raises(DecodeError):
            netlink.error_of(error(bad))
