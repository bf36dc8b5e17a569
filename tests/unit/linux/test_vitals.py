"""Numbers out of /proc as the kernel writes them, out of nothing, and out of anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.linux import vitals
from edgeguard.records import registry

DEV = b"""Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame compr mult|bytes    packets errs drop fifo colls carrier compressed
    lo: 9999999     100    0    0    0     0     0    0  9999999     100    0    0    0     0       0          0
  eth0: 1000         10    0    0    0     0     0    0      200       2    0    0    0     0       0          0
wlan0:1: 5           10    0    0    0     0     0    0        7       2    0    0    0     0       0          0
"""
SNMP = b"Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm RtoMin CurrEstab InSegs\nTcp: 1 200 17 90\n"


def test_as_the_kernel_writes_them() -> None:
    assert vitals.load_permille(b"1.05 0.30 0.10 2/345 999\n") == 1050
    assert vitals.load_permille(b"0.5 0 0") == 500
    assert vitals.memory_available_kib(b"MemTotal:  100 kB\nMemAvailable:    901234 kB\n") == 901234
    assert vitals.network_bytes(DEV) == (1005, 207), "an interface's name may hold a colon; loopback does not count"
    assert vitals.established(SNMP) == 17
    assert vitals.temperature_mc(b"48312\n") == 48312
    assert vitals.temperature_mc(b"-5000\n") == -5000


def test_of_nothing_nothing_is_told(tmp_path: Path) -> None:
    assert set(vitals.look(str(tmp_path)).values()) == {None}
    assert vitals.disk_free_kib(f"{tmp_path}/no") is None


def test_of_this_machine() -> None:
    found = vitals.look("")
    assert set(found) < {field.name for field in registry.METRIC.fields}
    for name in ("processes", "established", "memory_free_kib", "load_permille", "received_bytes"):
        assert found[name] is not None, name
    assert (vitals.disk_free_kib("/") or 0) > 0


@pytest.mark.parametrize(
    "reader",
    [
        vitals.load_permille,
        vitals.memory_available_kib,
        vitals.network_bytes,
        vitals.established,
        vitals.temperature_mc,
    ],
)
@given(text=st.binary(max_size=300) | st.sampled_from([DEV, SNMP]))
def test_anything_is_a_number_or_none(reader, text: bytes) -> None:
    found = reader(text)
    for number in found if isinstance(found, tuple) else (found,):
        assert number is None or abs(number) < 1 << 72
