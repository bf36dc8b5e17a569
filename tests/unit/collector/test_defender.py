"""A Device Defender report is what the format's notes say: both forms, both names, true totals, no invented block."""

import json

import pytest
from cbor2 import loads
from hypothesis import given
from hypothesis import strategies as st
from test_ingest import Collector, segment

from edgeguard.collector import defender
from edgeguard.collector.main import main
from edgeguard.records import wire
from edgeguard.records.wire import Record

OPENED, CLOSED, SEEN = "opened", "closed", "seen"


def listener(port, address="0.0.0.0", protocol=6, action=OPENED):
    return {"type": "listener", "action": action, "protocol": protocol, "address": address, "port": port}


def connection(remote, port, local, action=OPENED, protocol=6):
    return {"type": "connection", "action": action, "protocol": protocol, "local_address": "10.0.0.2",
            "local_port": local, "remote_address": remote, "remote_port": port}  # fmt: skip


def metric(received, sent, **more):
    return {"type": "metric", "received_bytes": received, "sent_bytes": sent, **more}


def made(*bodies):
    report, cuts = defender.report(defender.gathered(bodies), 1_795_687_200)
    check(report)
    return report, cuts


def check(report):
    """The rules of the format, in its own words."""
    assert report["header"] == {"report_id": 1_795_687_200, "version": "1.0"}
    metrics = report["metrics"]
    assert metrics.keys() <= {"listening_tcp_ports", "listening_udp_ports", "tcp_connections", "network_stats"}
    for name in ("listening_tcp_ports", "listening_udp_ports"):
        assert metrics[name].keys() == {"ports", "total"}
        assert len(metrics[name]["ports"]) <= metrics[name]["total"]
        for port in metrics[name]["ports"]:
            assert port.keys() <= {"port", "interface"}
            assert 0 < port["port"] < 65536
    established = metrics["tcp_connections"]["established_connections"]
    assert established.keys() == {"connections", "total"}
    for known in established["connections"]:
        address, _, port = known["remote_addr"].rpartition(":")
        assert port.isdigit()
        assert (":" in address) == (address[:1] == "[")
    assert all(value >= 0 for value in metrics.get("network_stats", {}).values())
    for name, value in report.get("custom_metrics", {}).items():
        assert not name.startswith("aws:")
        assert len(value) == 1
        assert value[0].keys() == {"number"}


def test_what_is_open_now():
    report, cuts = made(
        listener(22, action=SEEN), listener(80), listener(80, action=CLOSED), listener(53, "127.0.0.1", 17),
        listener(443, "::"), connection("10.0.3.8", 443, 40_000), connection("fe80::1", 22, 40_001),
        connection("10.0.3.9", 1, 2), connection("10.0.3.9", 1, 2, CLOSED), connection("10.0.3.9", 53, 5, protocol=17),
    )  # fmt: skip
    metrics = report["metrics"]
    assert metrics["listening_tcp_ports"] == {
        "ports": [{"port": 22, "interface": "0.0.0.0"}, {"port": 443, "interface": "::"}], "total": 2,
    }  # fmt: skip
    assert metrics["listening_udp_ports"] == {"ports": [{"port": 53}], "total": 1}
    assert metrics["tcp_connections"]["established_connections"] == {
        "connections": [{"remote_addr": "10.0.3.8:443", "local_port": 40_000},
                        {"remote_addr": "[fe80::1]:22", "local_port": 40_001}],
        "total": 2,
    }  # fmt: skip
    assert "network_stats" not in metrics
    assert cuts == []


def test_network_stats_are_differences():
    assert "network_stats" not in made(metric(1000, 500))[0]["metrics"]
    report, _ = made(metric(1, 1), metric(1000, 500), metric(1700, 510, processes=80, temperature_mc=-4000))
    assert report["metrics"]["network_stats"] == {"bytes_in": 700, "bytes_out": 10}
    assert report["custom_metrics"] == {
        "edgeguard_processes": [{"number": 80}], "edgeguard_temperature_mc": [{"number": -4000}],
    }  # fmt: skip
    assert made(metric(1000, 500), metric(10, 600))[0]["metrics"]["network_stats"] == {"bytes_out": 100}


def test_totals_are_true_and_a_cut_is_told():
    report, cuts = made(*[listener(port) for port in range(1, 81)])
    assert report["metrics"]["listening_tcp_ports"]["total"] == 80
    assert len(report["metrics"]["listening_tcp_ports"]["ports"]) == 50
    assert cuts == [("listening_tcp_ports", 80)]


def test_short_names_are_short_everywhere():
    report, _ = made(listener(22), connection("::1", 5, 6), metric(1, 1), metric(3, 2, processes=4))
    assert defender.short(report) == {
        "hed": {"rid": 1_795_687_200, "v": "1.0"},
        "met": {
            "tp": {"pts": [{"pt": 22, "if": "0.0.0.0"}], "t": 1},
            "up": {"pts": [], "t": 0},
            "tc": {"ec": {"cs": [{"rad": "[::1]:5", "lp": 6}], "t": 1}},
            "ns": {"bi": 2, "bo": 1},
        },
        "cmet": {"edgeguard_processes": [{"number": 4}]},
    }
    assert len(set(defender.SHORT.values())) == len(defender.SHORT)


def test_both_forms_say_the_same():
    report, _ = made(listener(22), metric(1, 1), metric(2**40, 2))
    for shape in (report, defender.short(report)):
        assert json.loads(defender.encode(shape, "json")) == shape
        assert loads(defender.encode(shape, "cbor")) == shape
    assert len(defender.encode(defender.short(report), "cbor")) < len(defender.encode(report, "cbor"))


WILD = st.none() | st.integers(-5, 2**40) | st.text(max_size=5) | st.sampled_from(["10.0.0.1", "::", "seen", "closed"])
NAMES = ("action", "protocol", "address", "port", "remote_address", "remote_port", "local_port", "received_bytes")
BODY = st.fixed_dictionaries(
    {"type": st.sampled_from(["listener", "connection", "metric"])}, optional=dict.fromkeys(NAMES, WILD)
)


@given(st.lists(BODY | st.builds(listener, st.integers(0, 70_000)), max_size=20))
def test_whatever_a_device_says_the_report_is_one(bodies):
    report, _ = made(*bodies)
    assert loads(defender.encode(defender.short(report), "cbor")) == defender.short(report)


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_from_the_command(tmp_path, capfdbinary, form):
    world = Collector(str(tmp_path / "collector.db"))
    rows = [Record(3, 1, 1000, None, fields=(5, 6, "0.0.0.0", port)) for port in range(1, 56)]
    world.take(segment(1, wire.NO_PREVIOUS, stream=1, records=rows, first=1))
    assert main(["defender", str(tmp_path), "--device", "pump-07", "-o", form, "--short"]) == 0
    said = capfdbinary.readouterr()
    report = json.loads(said.out) if form == "json" else loads(said.out)
    assert report["met"]["tp"]["t"] == 55
    assert len(report["met"]["tp"]["pts"]) == 50
    assert b"listening_tcp_ports: 50 of 55" in said.err
    assert main(["defender", str(tmp_path), "--device", "nobody"]) == 64
