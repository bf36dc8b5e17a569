"""Journal entries: every field, no control byte, never waiting."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codes import message_id
from edgeguard.daemon import journal
from edgeguard.model import Actor, Change, Finding, Origin, Severity, State, Transition

HOSTILE = "/tmp/a\nPRIORITY=0\x1b[2J\udcff"


def _change(transition=Transition.OPENED, subject="/usr/sbin/sshd", actor=None):
    actor = actor or Actor(pid=7, exe="/usr/bin/bash", login_uid=1001, login_user="ann")
    state = State.RESOLVED if transition is Transition.RESOLVED else State.OPEN
    finding = Finding(
        "F-7K2M", "EG-FILE-002", "r", "file", subject, Severity.CRITICAL, state, "A file was changed",
        1, 1, 1, Origin.LIVE, {}, {}, actor,
    )  # fmt: skip
    return Change(transition, finding, None)


@pytest.fixture
def journald(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(2)
        yield path, listener


def _fields(data):
    """The native protocol as journald reads it."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if equals:
            found[key.decode()] = value
            data = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            found[key.decode()] = rest[8 : 8 + size]
            data = rest[8 + size + 1 :]
    return found


def test_all_that_a_filter_may_ask_for(journald):
    path, listener = journald
    sender = journal.Journal(path)
    sender.send(journal.entry(_change(), 48_131))
    fields = _fields(listener.recv(65536))
    assert fields == {
        "MESSAGE": b"F-7K2M EG-FILE-002 A file was changed: /usr/sbin/sshd (by /usr/bin/bash, ann)",
        "MESSAGE_ID": message_id("EG-FILE-002").encode(),
        "PRIORITY": b"2",
        "SYSLOG_IDENTIFIER": b"edgeguard",
        "EDGEGUARD_FINDING": b"F-7K2M",
        "EDGEGUARD_CODE": b"EG-FILE-002",
        "EDGEGUARD_SUBJECT": b"/usr/sbin/sshd",
        "EDGEGUARD_STATE": b"open",
        "EDGEGUARD_TRANSITION": b"opened",
        "EDGEGUARD_SEQ": b"48131",
        "EDGEGUARD_ACTOR_EXE": b"/usr/bin/bash",
        "EDGEGUARD_ACTOR_PID": b"7",
        "EDGEGUARD_LOGIN_UID": b"1001",
    }
    sender.close()


def test_a_resolved_finding_wakes_nobody():
    entry = journal.entry(_change(Transition.RESOLVED), 1)
    assert (entry["PRIORITY"], entry["EDGEGUARD_STATE"]) == ("5", "resolved")
    assert "resolved: " in entry["MESSAGE"]


@given(st.text(alphabet=st.characters(), max_size=80), st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_no_name_forges_a_field_or_a_control_byte(subject, exe):
    entry = journal.entry(_change(subject=subject, actor=Actor(exe=exe)), 1)
    data = journal.encode(entry)
    assert set(_fields(data)) == set(entry)
    assert not any(byte < 32 and byte != 10 for byte in data)
    assert data.count(b"\n") == len(entry)


def test_a_hostile_name_stays_one_field():
    fields = _fields(journal.encode(journal.entry(_change(subject=HOSTILE), 1)))
    assert fields["PRIORITY"] == b"2"
    assert fields["EDGEGUARD_SUBJECT"] == rb"/tmp/a\x0aPRIORITY=0\x1b[2J\xff"


def test_a_very_long_name_keeps_its_ends():
    fields = _fields(journal.encode(journal.entry(_change(subject="/a" + "é" * 4000 + "z"), 1)))
    subject = fields["EDGEGUARD_SUBJECT"]
    assert len(subject) <= journal.FIELD_MAX
    assert subject.startswith(b"/a")
    assert subject.endswith(b"z")
    subject.decode()


def test_without_a_journal_it_goes_to_standard_error(tmp_path):
    read, write = os.pipe()
    journal.Journal(str(tmp_path / "absent"), write).send(journal.entry(_change(subject=HOSTILE), 1))
    assert os.read(read, 4096).startswith(b"<2>F-7K2M EG-FILE-002 ")
    os.close(read)
    os.close(write)


def test_a_full_journal_and_a_full_pipe_never_make_us_wait(journald, tmp_path):
    path, _listener = journald
    sender = journal.Journal(path)
    entry = journal.entry(_change(), 1)
    for _ in range(2000):
        sender.send(entry)
    assert sender.lost > 0
    read, write = os.pipe()
    deaf = journal.Journal(str(tmp_path / "absent"), write)
    for _ in range(3000):
        deaf.send(entry)
    os.close(read)
    deaf.send(entry)
    os.close(write)
    deaf.send(entry)


def test_journald_may_be_restarted(journald, tmp_path):
    path, _listener = journald
    sender = journal.Journal(path)
    sender.send(journal.entry(_change(), 1))
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        again.settimeout(2)
        sender.send(journal.entry(_change(), 2))
        assert b"EDGEGUARD_SEQ=2\n" in again.recv(65536)


def test_whether_the_journal_hears_us_can_be_asked(journald, tmp_path):
    path, listener = journald
    assert journal.Journal(path).trouble() == ""
    assert journal.Journal(str(tmp_path / "absent")).trouble() == "No such file or directory"
    listener.close()
    assert journal.Journal(path).trouble() == "Connection refused"
