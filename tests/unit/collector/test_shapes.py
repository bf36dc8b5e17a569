"""Every record type comes out as OCSF 1.8 that the published schema accepts and as ECS, with nothing left out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocsf_schema import problems
from small_world import finding, moment, state
from test_ingest import Collector, segment

from edgeguard.collector import ecs, events, ocsf, store
from edgeguard.collector.main import main
from edgeguard.records import compose, registry, wire
from edgeguard.records.registry import Kind
from edgeguard.records.wire import Record

COMMON = {
    "v": 1, "device": "34750f98bd59fcfc946da45aaabe933b", "name": "pump-07", "stream": 1, "seq": 7, "segment": 3,
    "time": "2026-11-26T10:00:00.123Z", "clock": "ntp", "boot": 2, "mono_ms": 5000,
    "received": "2026-11-26T10:00:02.000Z",
}  # fmt: skip
TIME = 1_795_687_200_123
TEXT = st.text(max_size=12) | st.sampled_from(["", "/", "/usr/sbin/sshd", "10.0.3.7", "::1", "a\udc80b", "\x1b[31m\n"])
NUMBER = st.integers(0, 2**63 - 1) | st.integers(0, 70_000)
JSONLIKE = st.none() | st.booleans() | NUMBER | TEXT | st.binary(max_size=32)
COLUMNS = st.dictionaries(st.sampled_from(registry.COLUMN_NAMES) | TEXT, JSONLIKE, max_size=5)
ACTOR = st.tuples(NUMBER, TEXT, st.lists(TEXT, max_size=3), st.integers(-1, 70_000), TEXT, st.integers(-1, 9), TEXT,
                  TEXT, TEXT, TEXT, st.lists(st.tuples(NUMBER, TEXT), max_size=2))  # fmt: skip
OF_KIND = {
    Kind.REF: TEXT, Kind.REFS: st.lists(TEXT, max_size=4), Kind.UINT: NUMBER, Kind.INT: st.integers(-(2**31), 2**40),
    Kind.BOOL: st.booleans(), Kind.DIGEST: st.binary(min_size=32, max_size=32) | st.binary(max_size=8),
    Kind.COLUMNS: COLUMNS, Kind.ACTOR: ACTOR, Kind.COUNTER: NUMBER, Kind.BYTES: st.binary(max_size=9),
}  # fmt: skip


def values(field):
    known = st.integers(0, len(field.names) + 2) if field.kind is Kind.ENUM else OF_KIND[field.kind]
    return st.none() | known


@st.composite
def records(draw, kind=None):
    kind = kind or draw(st.sampled_from(list(registry.TYPES.values())))
    fields = tuple(draw(values(field)) for field in kind.fields)
    severity, rule = draw(st.integers(0, 7)), draw(st.booleans())
    return Record(kind.number, 1, 5000, TIME, severity=severity, rule=rule, fields=fields)


def both(record, **changes):
    common, body = {**COMMON, **changes}, json.loads(json.dumps(events.body(record)))
    return ocsf.event(common, body), ecs.event(common, body), body


@pytest.mark.parametrize("kind", registry.TYPES.values(), ids=lambda kind: kind.name)
def test_every_type_has_its_place_in_both(kind):
    assert kind.name in ocsf.CLASSES
    assert kind.name in ecs.SETS
    empty = Record(kind.number, 0, 0, None)
    shaped, other, _ = both(empty)
    assert problems(shaped) == []
    assert other["event"]["dataset"] == f"edgeguard.{kind.name}"


def test_no_place_is_for_a_field_that_is_none():
    for name, known in ecs.SETS.items():
        kind = next(kind for kind in registry.TYPES.values() if kind.name == name)
        assert known.fields.keys() <= {field.name for field in kind.fields}
    for name, known in ocsf.CLASSES.items():
        kind = next(kind for kind in registry.TYPES.values() if kind.name == name)
        if isinstance(known, ocsf.Class):
            assert known.fields.keys() <= {field.name for field in kind.fields}


@given(records())
def test_whatever_a_device_says_is_valid(record):
    shaped, other, _ = both(record)
    assert problems(shaped) == []
    assert events.line(shaped)
    assert events.line(other).isprintable()


@given(records())
def test_nothing_is_left_out(record):
    """Each value that a device said stands somewhere: in its place, or below unmapped and edgeguard."""
    shaped, other, body = both(record)
    for name, value in body.items():
        if name in {"type", "severity", "rule_matched"} or value in ("", [], {}):
            continue
        if name in shaped["unmapped"] or name in _read_apart(body["type"]):
            continue
        assert name in _fields(ocsf.CLASSES[body["type"]], body), name
    rest = other["edgeguard"]
    for name in body.keys() - {"type", "severity", "rule_matched"}:
        assert name in rest or name in ecs.SETS[body["type"]].fields


def _read_apart(kind):
    return {"file": {"path"}}.get(kind, set())


def _fields(known, body):
    return known.fields if isinstance(known, ocsf.Class) else known(body).fields


KNOWN = [
        ("exec", {"exe": "/bin/ls", "argv": ["ls", "-l"], "pid": 5, "ppid": 4, "uid": 0, "action": "opened",
                  "sha256": "ab" * 32},
         1007, 100701, {"process.cmd_line": "ls -l", "process.file.name": "ls", "actor.process.pid": 4,
                        "process.user.uid": "0", "process.file.hashes.0.algorithm_id": 3}),
        ("file", {"action": "changed", "path": "/etc/passwd", "columns": {"type": "file", "size": 9}},
         1001, 100103, {"file.path": "/etc/passwd", "file.name": "passwd", "file.type_id": 1, "file.size": 9}),
        ("file", {"action": "changed", "path": "/etc/passwd", "columns": {"type": "file", "blake2b": "ab" * 32}},
         1001, 100103, {"file.hashes.0.algorithm_id": 99, "file.hashes.0.algorithm": "BLAKE2b-256",
                        "file.hashes.0.value": "ab" * 32}),
        ("listener", {"action": "opened", "protocol": 6, "address": "0.0.0.0", "port": 22, "pid": 1, "exe": "/x"},
         4001, 400107, {"dst_endpoint.ip": "0.0.0.0", "dst_endpoint.port": 22, "connection_info.protocol_num": 6,
                        "actor.process.pid": 1}),
        ("connection", {"action": "opened", "local_address": "10.0.0.1", "remote_address": "fe80::1",
                        "remote_port": 443},
         4001, 400101, {"src_endpoint.ip": "10.0.0.1", "dst_endpoint.ip": "fe80::1", "dst_endpoint.port": 443}),
        ("login", {"result": "failed", "service": "sshd", "user": "root", "address": "10.0.0.9"},
         3002, 300201, {"user.name": "root", "src_endpoint.ip": "10.0.0.9", "status_id": 2}),
        ("usb", {"action": "created", "vendor": 0x46D, "product": 0xC52B, "name": "Receiver"},
         1010, 101001, {"peripheral_device.uid": "046d:c52b", "peripheral_device.name": "Receiver"}),
        ("usb", {"action": "changed", "vendor": 1, "product": 2, "authorized": False},
         1010, 101004, {"peripheral_device.name": "0001:0002"}),
        ("finding", {"transition": "resolved", "code": "EG-FILE-002", "id": "F-1", "state": "resolved", "kind": "file",
                     "subject": "/bin/ls", "observed": {"sha256": "cd" * 32}},
         2004, 200403, {"finding_info.uid": "F-1", "status_id": 4, "evidences.0.file.path": "/bin/ls",
                        "finding_info.attacks.0.technique.uid": "T1554", "metadata.event_code": "EG-FILE-002"}),
        ("state", {"what": "start", "text": "hello"}, 6002, 600203, {"message": "hello", "app.name": "EdgeGuard"}),
        ("state", {"what": "remediation", "columns": {"verb": "restore"}, "finding": "F-1"},
         7001, 700103, {"command_uid": "F-1"}),
        ("upgrade", {"package": "openssl", "before": "1", "after": "2"}, 6002, 600208,
         {"app.name": "openssl", "app.version": "2"}),
        ("drop", {"stream": 2, "first": 1, "last": 3}, 1008, 100802, {"log_name": "stream 2"}),
        ("text", {"text": "words"}, 0, 99, {"message": "words"}),
        ("99", {"unknown_fields": [1, "a"]}, 0, 99, {"unmapped.unknown_fields.0": 1}),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "class_uid", "type_uid", "expected"), KNOWN)
def test_where_things_stand(kind, fields, class_uid, type_uid, expected):
    shaped = ocsf.event(COMMON, {"type": kind, "severity": "high", **fields})
    assert problems(shaped) == []
    assert (shaped["class_uid"], shaped["type_uid"], shaped["severity_id"]) == (class_uid, type_uid, 4)
    assert shaped["time"] == TIME
    for path, value in expected.items():
        assert _at(shaped, path) == value, path


def _at(value, path):
    for step in path.split("."):
        value = value[int(step)] if step.isdigit() else value[step]
    return value


def test_ecs_as_rules_look_for_it():
    body = {"type": "exec", "exe": "/bin/ls", "argv": ["ls", "-l"], "pid": 5, "ppid": 4, "uid": 0, "action": "opened"}
    shaped = ecs.event(COMMON, body)
    assert shaped["@timestamp"] == COMMON["time"]
    assert shaped["event"]["category"] == ["process"]
    assert shaped["event"]["type"] == ["start"]
    assert shaped["process"] == {
        "executable": "/bin/ls", "name": "ls", "args": ["ls", "-l"], "command_line": "ls -l", "pid": 5,
        "parent": {"pid": 4},
    }  # fmt: skip
    body = {"type": "finding", "code": "EG-FILE-002", "kind": "file", "subject": "/bin/ls", "severity": "critical",
            "observed": {"sha256": "cd" * 32, "mode": 0o4755}, "actor": {"pid": 9, "user": "anna"}}  # fmt: skip
    shaped = ecs.event(COMMON, body)
    assert (shaped["event"]["kind"], shaped["event"]["severity"]) == ("alert", 5)
    assert shaped["file"] == {
        "path": "/bin/ls", "name": "ls", "directory": "/bin", "hash": {"sha256": "cd" * 32}, "mode": "4755",
    }  # fmt: skip
    assert shaped["threat"]["technique"]["id"] == ["T1554", "T1565.001"]
    assert (shaped["process"]["pid"], shaped["user"]["name"]) == (9, "anna")


def test_what_does_not_fit_its_place_stands_elsewhere():
    body = {"type": "listener", "address": "not an address", "port": 70_000, "pid": 2**40, "action": "burst"}
    shaped = ocsf.event(COMMON, body)
    assert problems(shaped) == []
    assert shaped["dst_endpoint"] == {"name": "not an address"}
    assert (shaped["unmapped"]["port"], shaped["unmapped"]["pid"]) == (70_000, 2**40)
    assert (shaped["activity_id"], shaped["activity_name"]) == (99, "burst")


@pytest.mark.parametrize("time", [None, "99999999999999999 ms"])
def test_a_time_that_is_not_known_or_beyond_the_calendar(time):
    shaped, other, _ = both(Record(15, 0, 0, None, fields=("words",)), time=time)
    assert problems(shaped) == []
    assert shaped.get("unmapped", {}).get("time_unknown", False) is (time is None)
    assert other["@timestamp"] == COMMON["received"]


def test_the_validator_refuses():
    good = ocsf.event(COMMON, {"type": "listener", "address": "::1", "port": 22, "action": "opened"})
    assert problems(good) == []
    for path, value in (
        ("severity_id", 77), ("severity_id", "4"), ("class_uid", 4242), ("type_uid", 1), ("category_uid", 1),
        ("surprise", 1), ("device.type_id", None), ("dst_endpoint.ip", "300.1.1.1.1"), ("dst_endpoint.port", 65536),
        ("metadata.profiles", []), ("time", "now"),
    ):  # fmt: skip
        broken = json.loads(json.dumps(good))
        *way, last = path.split(".")
        place = _at(broken, ".".join(way)) if way else broken
        place[last] = value
        assert problems(broken), path
    for name in ("metadata", "time", "device", "severity_id"):
        broken = {key: value for key, value in good.items() if key != name}
        assert problems(broken) or name == "device", name
    broken = {key: value for key, value in good.items() if key != "dst_endpoint"}
    assert any("at_least_one" in problem for problem in problems(broken))


def test_events_in_every_shape(tmp_path, capsys):
    world = Collector(str(tmp_path / "collector.db"))
    usb = Record(6, 0, 1000, None, severity=2, fields=(4, 1, 2, None, None, "Stick"))
    drop = Record(10, 0, 1000, None, severity=2, fields=(2, 1, 3, 2, None, "x"))
    world.take(
        segment(1, wire.NO_PREVIOUS, records=[compose.finding(finding(), moment()), state("a"), usb, drop], first=1)
    )
    for shape in ("ocsf", "ecs", "jsonl"):
        assert main(["events", str(tmp_path), "-o", shape]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(lines) == 4
        if shape == "ocsf":
            assert [problems(line) for line in lines] == [[]] * 4
            assert {line["class_uid"] for line in lines} == {2004, 6002, 1010, 1008}
        elif shape == "ecs":
            assert {line["host"]["name"] for line in lines} == {"pump-07"}
        else:
            assert {line["name"] for line in lines} == {"pump-07"}  # also where a record has a name of its own
            assert {line.get("usb_name") for line in lines} == {None, "Stick"}
            assert {line["stream"] for line in lines} == {0}
    assert main(["events", str(tmp_path), "--device", "pump-07"]) == 0
    assert "0001:0002 Stick" in capsys.readouterr().out
    world.db.close()
    assert store.connect_readonly(str(tmp_path / "collector.db"))
