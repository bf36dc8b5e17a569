"""Screens, letter by letter where they are promised (80x24 and 40 columns), and never wider than the terminal."""

import re
from pathlib import Path

import pytest
from fakes import BAD, GOOD, LEARNING, NOW, PORT, SSHD, with_areas
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.cli import pages, render
from edgeguard.cli.text import width
from edgeguard.cli.words import age, ascii_only, phrase, port, safe, size

JOB = {
    **SSHD,
    "code": "EG-PERS-001",
    "title": "cron",
    "subject": "/etc/cron.d/pump",
    "details": {
        "type": "file",
        "changes": [
            "job added: */5 * * * * root /tmp/x --token ***",
            "job runs at other times: 5 4 * * * → 5 5 * * *: root /usr/bin/pump --with --many --words --in --it",
            "MAILTO: root → eve",
            "job removed: @daily root /usr/bin/tidy",
        ],
        "diff": [
            "@@ -1,4 +1,4 @@",
            "-MAILTO=root",
            "+MAILTO=eve",
            " # \\x1b[2J is no control here, and this is a line that is longer than any terminal of eighty columns",
            "-5 4 * * * root /usr/bin/pump",
            "-@daily root /usr/bin/tidy",
            "+5 5 * * * root /usr/bin/pump",
            "+*/5 * * * * root /tmp/x --token ***",
            " # the end",
        ],
    },
}
GOLDEN = Path(__file__).parent / "screens"
SCREENS = {
    "status-ok": lambda: render.status(GOOD),
    "status-crit": lambda: render.status(BAD),
    "status-crit-40": lambda: render.status(BAD, 40),
    "status-local": lambda: render.status(
        with_areas(
            {
                **GOOD,
                "fleet": "",
                "clock_synchronised": False,
                "policy": {"revision": 1, "trust": "local", "signer": "", "mode": "audit", "expires": None},
                "problems": ["a baseline with an older revision was refused: 3 is older than 5", "the disk is full"],
                "next": "edgeguard doctor",
            },
            clock={"state": "WARN", "synchronised": False},
            uplink={"state": "OFF", "waiting": 0, "last_sent": None, "error": ""},
        )
    ),
    "status-learning": lambda: render.status(LEARNING),
    "status-none": lambda: render.status({**GOOD, "verdict": "UNKNOWN", "policy": None, "checked": None}),
    "unknown": lambda: render.unknown(
        "the daemon does not answer (waited 2 s)",
        GOOD,
        "edgeguard.service: activating (auto-restart), 3 restarts",
        "cannot read /etc/edgeguard/policy.d/20-site.toml, line 14: expected a number after 'interval ='",
        NOW + 360_000,
    ),
    "unknown-40": lambda: render.unknown("the daemon is not running", None, "", "", NOW, 40),
    "findings": lambda: pages.findings([SSHD, PORT], {"open": 2, "suppressed": 1}, NOW, 80, False, False),
    "findings-40": lambda: pages.findings([SSHD, PORT], {"open": 2, "suppressed": 1}, NOW, 40, False, False),
    "explain": lambda: pages.explain(
        {"finding": SSHD, "near": [PORT], "rule": {"id": "file-content", "source": "10-default.toml:3"}},
        None,
        NOW,
        80,
        False,
    ),
    "explain-change": lambda: pages.explain({"finding": JOB, "near": [], "rule": None}, None, NOW, 80, False),
    "explain-change-40": lambda: pages.explain({"finding": JOB, "near": [], "rule": None}, None, NOW, 40, False),
    "why-change": lambda: pages.why(
        {"subject": JOB["subject"], "known": True, "status": "present", "observed": JOB["details"], "results": []},
        80,
        False,
    ),
    "findings-change": lambda: pages.findings([JOB, PORT], {"open": 2}, NOW, 80, False, False),
    "doctor": lambda: pages.doctor(
        [
            {"level": "OK", "name": "service", "text": "edgeguard 0.4.2, running, watchdog fed 12 s ago", "fix": ""},
            {
                "level": "FAIL",
                "name": "uplink",
                "text": "cannot resolve guard.northfield.example (no DNS server)",
                "fix": "check the network cable or modem",
            },
        ],
        80,
        False,
    ),
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen(name):
    shown = SCREENS[name]()
    columns = 40 if name.endswith("-40") else 80
    lines = shown.splitlines()
    assert max(map(width, lines)) <= columns
    if columns == 80:
        assert len(lines) <= 23  # and one for the prompt
    assert shown == (GOLDEN / f"{name}.txt").read_text()


def test_colour_changes_nothing_but_colour():
    for document in (GOOD, BAD, LEARNING):
        for columns in (80, 40):
            colored = render.status(document, columns, color=True)
            assert "\x1b[" in colored
            assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == render.status(document, columns)


@given(st.integers(20, 200), st.integers(10, 60), st.integers(0, 8), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_status_fits_any_terminal(columns, height, found, problems):
    document = {
        **BAD,
        "name": "a-rather-long-device-name-" * 3,
        "findings": [PORT] * found,
        "open": found * 10,
        "problems": ["something went wrong with a long explanation that needs more than a line " * 2] * problems,
    }
    lines = render.status(document, columns, height=height).splitlines()
    assert max(map(width, lines)) <= columns
    if columns >= render.NARROW and height >= 24 and problems <= 2:
        assert len(lines) < height


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**15) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, *SSHD]), inner, max_size=5),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(list(SSHD)), st.text(max_size=20), max_size=10), st.sampled_from([40, 80]))
@settings(max_examples=150, deadline=None)
def test_texts_in_findings_are_harmless(columns, terminal):
    finding = {**SSHD, **{key: value for key, value in columns.items() if isinstance(SSHD[key], str)}}
    finding = safe(finding)
    shown = pages.findings([finding], {}, NOW, terminal, False, False)
    shown += pages.explain({"finding": finding, "near": [], "rule": None}, None, NOW, terminal, False)
    assert all(character == "\n" or character.isprintable() for character in shown)


def test_hostile_status_is_harmless():
    shown = render.status({**GOOD, "name": "x\x1b[2J\ny", "problems": ["\x9b0m"]}, unicode=True)
    assert all(character == "\n" or character.isprintable() for character in shown)


def test_a_difference_in_colour_is_the_same_without_and_fits_any_terminal():
    for columns in (40, 80, 132):
        answer = {"finding": JOB, "near": [], "rule": None}
        plain = pages.explain(answer, None, NOW, columns, False)
        assert max(map(width, plain.splitlines())) <= columns
        colored = pages.explain(answer, None, NOW, columns, True)
        assert "\x1b[31m-MAILTO=root\x1b[0m" in colored
        assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def test_a_terminal_without_utf8_shows_arrows_of_its_own():
    assert ascii_only("no → yes, … é") == "no -> yes, .. \\xc3\\xa9"


def account(subject, expected, observed, code="EG-ACCT-002"):
    return {"code": code, "kind": "account", "subject": subject, "expected": expected, "observed": observed}


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (PORT, "port 4444/tcp opened by /tmp/.x (pid 2211)"),
        ({**SSHD, "outcome": "unknown"}, "cannot tell: /usr/sbin/sshd changed"),
        (
            {
                "code": "EG-FILE-003",
                "subject": "/a",
                "observed": {"mode": 511, "uid": 1},
                "expected": {"mode": 1, "uid": 0},
            },
            "/a: mode, owner changed",
        ),
        (
            {"code": "EG-HOST-001", "subject": "kernel.kptr", "observed": {"value": "0"}, "expected": {"value": "2"}},
            "kernel.kptr is 0, was 2",
        ),
        (
            {
                "code": "EG-FILE-002",
                "kind": "library_dir",
                "subject": "/srv/evil",
                "observed": {"library": "libz.so.1"},
                "expected": {"library": ""},
            },
            "programs look for libraries in /srv/evil (libz.so.1)",
        ),
        ({"code": "EG-PROC-002", "subject": "memfd:x", "details": {"pid": 7}}, "memfd:x runs from memory (pid 7)"),
        (
            {
                "code": "EG-ACCT-006",
                "kind": "account",
                "subject": "group sudo",
                "observed": {"members": ["a", "b"]},
                "expected": {"members": ["a"]},
            },
            "b joined group sudo",
        ),
        (account("group sudo", {"members": ["b", "a"]}, {"members": ["b"]}, "EG-ACCT-006"), "a left group sudo"),
        (
            account("group sudo", {"admins": "none"}, {"admins": ["eve"]}, "EG-ACCT-006"),
            "eve may add members to group sudo",
        ),
        (
            account("user eve", {}, {"uid": 0, "gid": 0, "home": "/", "shell": "/bin/sh", "password": "set"}),
            "user eve added, uid 0, shell /bin/sh, password set",
        ),
        (
            account("user pi", {"shell": "/bin/bash", "uid": 1000}, {"shell": "/bin/sh", "uid": 0}),
            "user pi: uid 1000 -> 0, shell /bin/bash -> /bin/sh",
        ),
        (account("user pi", {"password": "locked"}, {"password": "set"}), "user pi: password locked -> set"),
        ({**account("user pi", {}, {}), "details": {"status": "absent"}}, "user pi removed"),
        (account("group new", {}, {"gid": 7, "members": ["eve"]}), "group new added, members eve"),
        (
            {"code": "EG-PERS-002", "subject": "/etc/x.service", "expected": {}, "observed": {"size": 1}},
            "/etc/x.service appeared",
        ),
        ({"code": "EG-NEW-999", "subject": "x", "title": "Something"}, "x: Something"),
    ],
)
def test_phrases(finding, said):
    assert phrase(finding) == said


def test_small_words():
    assert [age(ms) for ms in (0, 42_000, 150_000, 3 * 3_600_000, 19 * 86_400_000)] == [
        "0 s",
        "42 s",
        "2 min",
        "3 h",
        "19 days",
    ]
    assert [size(n) for n in (0, 999, 18_000_000, 1_100_000_000)] == ["0 B", "999 B", "18 MB", "1.1 GB"]
    assert port("udp/[fe80::1%eth0]:546") == "546/udp"


def test_progress_is_one_line():
    line = pages.progress({"phase": "files", "done": 5470, "total": 12431, "bytes": 1_100_000_000, "eta_s": 120}, 80)
    assert line == "Files  [###########................]  44 %  5,470/12,431  1.1 GB  2 min left"
