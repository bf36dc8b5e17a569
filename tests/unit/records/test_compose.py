"""What becomes a record, in which stream, and what must not be in it."""

import pytest
from small_world import WALL, finding, moment

from edgeguard import redact
from edgeguard.model import Actor, Observation, Origin, Severity, State, Status, Transition
from edgeguard.records import compose, registry, wire
from edgeguard.records.compose import Moment


def named(record):
    return dict(zip(registry.field_names(record.type), record.fields, strict=False))


def through(record):
    """As the collector will see it."""
    return wire.decode_record(wire.encode_record(record))


def test_a_finding_carries_all_that_explain_shows():
    record = compose.finding(finding(first_seen=WALL - 500), moment(0))
    fields = named(record)
    assert (record.type, record.stream, record.severity, record.rule) == (8, 0, Severity.CRITICAL, True)
    assert registry.TRANSITIONS[fields["transition"]] == "opened"
    assert (fields["code"], fields["id"], fields["subject"]) == ("EG-FILE-002", "F-7K2M", "/usr/sbin/sshd")
    assert fields["age_ms"] == 500
    assert fields["expected"] == {"sha256": bytes(32)}
    assert fields["observed"] == {"sha256": b"\x77" * 32}
    assert fields["actor"][:2] == (2198, "/usr/bin/cp")
    assert fields["actor"][-1] == ((2100, "/usr/bin/bash"), (1990, "/usr/sbin/sshd"))
    assert fields["details"]["size"] == 1400000
    decoded = through(record)
    assert decoded.fields == record.fields[: len(decoded.fields)]


@pytest.mark.parametrize("transition", list(Transition))
@pytest.mark.parametrize("state", list(State))
def test_every_transition_and_state_has_a_number(transition, state):
    change = finding(state=state)._replace(transition=transition)
    fields = named(compose.finding(change, moment()))
    assert registry.TRANSITIONS[fields["transition"]] == transition
    assert registry.LIFE[fields["state"]] == state


@pytest.mark.parametrize(
    ("columns", "stream"),
    [
        ({"exe_known": True, "exe_state": "ok", "writable_dir": False}, 3),
        ({"exe_known": False, "exe_state": "ok"}, 1),
        ({"exe_known": True, "exe_state": "deleted"}, 1),
        ({"exe_known": True, "exe_state": "ok", "writable_dir": True}, 1),
        ({}, 1),
    ],
)
def test_ordinary_programs_are_verbose_all_else_is_security(columns, stream):
    seen = Observation("process", "/usr/bin/id", {"pid": 7, "argv": ("id",), **columns}, WALL)
    record = compose.observation(seen, moment(0))
    assert (record.type, record.stream) == (1, stream)
    assert named(through(record))["exe"] == "/usr/bin/id"


def test_what_the_baseline_says_already_is_left_out():
    seen = Observation("file", "/etc/x", {"mode": 0o644, "uid": 0, "size": 9, "target": "", "setid": False}, WALL)
    fields = named(compose.observation(seen, moment(0), {"mode": 0o644, "uid": 0, "size": 8}))
    assert fields["columns"] == {"size": 9}


def test_what_happened_earlier_is_dated_back():
    seen = Observation("file", "/x", {}, WALL + 900, origin=Origin.SWEEP)
    record = compose.observation(seen, Moment(5000, WALL + 1000, 2))
    assert (record.mono, record.wall) == (4900, WALL + 900)
    record = compose.observation(seen, Moment(50, WALL + 1000, 2))
    assert (record.mono, record.wall) == (0, WALL + 950)  # never before the boot
    assert compose.observation(seen, Moment(50, None, 0)).mono == 50


@pytest.mark.parametrize(
    ("kind", "subject", "columns", "expected"),
    [
        ("usb", "0781:5581/4C53", {"serial": "4C53", "interfaces": ("080650",)},
         {"vendor": 0x0781, "product": 0x5581, "serial": "4C53", "interfaces": ("080650",)}),
        ("usb", "gone:strange", {}, {}),
        ("listener", "tcp/[::]:22", {"protocol": "tcp", "address": "::", "port": 22, "scope": "any", "uid": 0},
         {"protocol": 6, "address": "::", "port": 22, "scope": 0, "uid": 0}),
        ("listener", "udp/0.0.0.0:53", {}, {"protocol": 17, "more": {"subject": "udp/0.0.0.0:53"}}),
        ("sysctl", "kernel.kptr_restrict", {"value": "0", "level": 0},
         {"kind": "sysctl", "subject": "kernel.kptr_restrict", "columns": {"value": "0", "level": 0}}),
        ("account", "user x\n\x1b", {"members": ("a", "b\udcff")}, {"subject": "user x\n\x1b"}),
    ],
)  # fmt: skip
def test_observations_of_every_kind(kind, subject, columns, expected):
    for status in Status:
        record = compose.observation(Observation(kind, subject, columns, WALL, status), moment(0))
        fields = named(through(record))
        assert {name: fields.get(name) for name in expected} == expected


def test_columns_of_the_wrong_type_are_no_error():
    columns = {"exe": 5, "pid": -3, "argv": "text", "uid": None, "parents": (), "exe_state": "new", "port": True}
    for kind in ("process", "listener", "usb", "file", "other"):
        through(compose.observation(Observation(kind, "s", columns, WALL), moment()))


def test_a_name_for_each_state_and_reason():
    for what in registry.STATES:
        assert registry.STATES[named(compose.state(what, moment()))["what"]] == what
    for reason in registry.REASONS:
        compose.drop(1, reason, moment(), first=1, last=2, name="x")
    with pytest.raises(ValueError, match="typo"):
        compose.metric({"typo": 1}, moment())


@pytest.mark.parametrize(
    ("argv", "safe"),
    [
        (("mysql", "-psecret", "db"), ("mysql", "-p***", "db")),
        (("x", "--password", "hunter2", "-v"), ("x", "--password", "***", "-v")),
        (("x", "--password=hunter2"), ("x", "--password=***")),
        (("env", "PGPASSWORD=abc", "psql"), ("env", "PGPASSWORD=***", "psql")),
        (("curl", "-u", "me:pw", "https://h/"), ("curl", "-u", "me:***", "https://h/")),
        (("git", "clone", "https://me:pw@host/x"), ("git", "clone", "https://me:***@host/x")),
        (("curl", "-H", "Authorization: Bearer abcdefgh"), ("curl", "-H", "Authorization: Bearer ***")),
        (("sh", "-c", "mosquitto_pub --api-key abc X_TOKEN=zzz run"),
         ("sh", "-c", "mosquitto_pub --api-key *** X_TOKEN=*** run")),
        (("x", "ghp_" + "a" * 30), ("x", "***")),
        (("sshpass", "-p", "pw", "ssh", "h"), ("sshpass", "-p", "***", "ssh", "h")),
        (("ls", "-p", "/etc/passwd"), ("ls", "-p", "/etc/passwd")),
        (("cp", "a", "/usr/sbin/sshd"), ("cp", "a", "/usr/sbin/sshd")),
        (("passwd", "root"), ("passwd", "root")),
        ((), ()),
    ],
)  # fmt: skip
def test_secrets_on_command_lines(argv, safe):
    assert redact.arguments(argv) == safe


def test_no_secret_enters_a_record():
    secret = "correct-horse"
    argv = ("mysql", f"-p{secret}", "--token", secret)
    actor = Actor(1, "/usr/bin/mysql", argv)
    records = [
        compose.finding(finding(actor=actor, details={"argv": argv}, note=f"password={secret}"), moment()),
        compose.observation(Observation("process", "/usr/bin/mysql", {"argv": argv}, WALL), moment()),
        compose.observation(Observation("file", "/x", {"argv": argv}, WALL, actor=actor), moment()),
        compose.state("remediation", moment(), f"TOKEN={secret}"),
        compose.text(f"https://u:{secret}@h/", moment()),
    ]
    for record in records:
        assert secret.encode() not in wire.encode_record(record)


def test_redacting_a_long_argument_takes_no_time():
    import time

    started = time.process_time()
    for hostile in ("-" * 1024, "a-" * 512, "pass" * 256, "://" * 340, "bearer " * 140, "secret=" * 140):
        redact.arguments(("x", hostile, hostile))
    assert time.process_time() - started < 1.0


def test_what_changed_is_in_the_record_of_the_finding_alone():
    details = {"type": "file", "diff": ("@@ -1 +1 @@", "-a", "+b"), "changes": ("it changed",)}
    fields = named(through(compose.finding(finding(details=details), moment())))
    assert fields["details"] == details
    seen = Observation("file", "/etc/x", details, WALL)
    assert named(through(compose.observation(seen, moment(0))))["columns"] == {"type": "file"}


def test_a_change_that_is_too_large_for_a_record_does_not_cost_the_finding():
    details = {"type": "file", "diff": ("+" + "x" * 80,) * 49, "changes": ("é" * 100,) * 10}
    assert named(compose.finding(finding(details=details), moment()))["details"] == details  # as large as they come
    details["target"] = "ü" * 1024
    actor = Actor(1, "/usr/bin/cp", ("y" * 1000,) * 12)
    record = compose.finding(finding(details=details, actor=actor), moment())
    assert record.type == registry.FINDING.number
    assert named(record)["details"]["diff"] == (compose.TOO_LARGE,)
