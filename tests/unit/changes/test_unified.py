"""A difference is right (it makes the new text of the old one), as small as it can be where it is small, and bounded in
size and work whatever the texts are.
"""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.sensors.changes import LINES_MAX, compare, sentences
from edgeguard.sensors.changes.secrets import Line
from edgeguard.sensors.changes.unified import BYTES_MAX, EDITS_MAX, SHOWN_MAX, WIDE_MAX, _script, unified

texts = st.lists(st.sampled_from("abcd"), max_size=30)


def diff(old: str, new: str) -> tuple[str, ...]:
    return compare("/etc/x", old.encode(), new.encode()).diff


def longest_common(old: list[str], new: list[str]) -> int:
    row = [0] * (len(new) + 1)
    for one in old:
        before = row[:]
        for at, other in enumerate(new):
            row[at + 1] = before[at] + 1 if one == other else max(before[at + 1], row[at])
    return row[-1]


@given(texts, texts)
@settings(deadline=None)
def test_it_makes_the_new_text_of_the_old_and_is_the_shortest_that_does(old: list[str], new: list[str]) -> None:
    script = _script(old, new)
    made, x, y = [], 0, 0
    for sign in script:
        if sign == " ":
            assert old[x] == new[y]
        if sign != "-":
            made.append(new[y])
        x += sign != "+"
        y += sign != "-"
    assert (x, made) == (len(old), new)
    edits = len(old) + len(new) - 2 * longest_common(old, new)
    if edits <= EDITS_MAX:
        assert len(script) - script.count(" ") == edits


def test_it_looks_as_people_know_it() -> None:
    old = "".join(f"line {number}\n" for number in range(1, 31))
    new = old.replace("line 3\n", "line three\n").replace("line 20\n", "").replace("line 29\n", "line 29\nmore\n")
    assert diff(old, new) == (
        "@@ -1,6 +1,6 @@", " line 1", " line 2", "-line 3", "+line three", " line 4", " line 5", " line 6",
        "@@ -17,7 +17,6 @@", " line 17", " line 18", " line 19", "-line 20", " line 21", " line 22", " line 23",
        "@@ -27,4 +26,5 @@", " line 27", " line 28", " line 29", "+more", " line 30",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("a\n", "a", ("@@ -1 +1 @@", "-a", "+a (no newline at the end)")),
        ("", "a\n", ("@@ -0,0 +1 @@", "+a")),
        ("a\n", "", ("@@ -1 +0,0 @@", "-a")),
        ("a\tb\n", "a b\n", ("@@ -1 +1 @@", "-a   b", "+a b")),
        ("same\n", "same\n", ()),
    ],
)
def test_edges(old: str, new: str, shown: tuple[str, ...]) -> None:
    assert diff(old, new) == shown


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"a\0b", b"a", "(not shown: what was there before is no text in UTF-8)"),
        (b"a", b"\xff\xfe", "(not shown: what is there now is no text in UTF-8)"),
        (b"a\n" * 4000, b"a\n", f"(not shown: more than {LINES_MAX} lines)"),
    ],
)
def test_what_is_not_shown_is_named(old: bytes, new: bytes, why: str) -> None:
    assert compare("/etc/x", old, new).diff == (why,)


@given(st.text(max_size=3000), st.text(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_it_is_bounded(old: str, new: str) -> None:
    shown = unified([Line(line) for line in old.split("e")], [Line(line) for line in new.split("a")])
    assert len(shown) <= SHOWN_MAX + 1
    assert all(len(line) <= WIDE_MAX + 1 for line in shown)
    assert sum(len(line.encode("utf-8", "surrogatepass")) for line in shown) <= BYTES_MAX + 200


def test_where_it_is_cut_is_said() -> None:
    old, new = "".join(f"a{at}\n" for at in range(400)), "".join(f"b{at}\n" for at in range(300))
    shown = diff(old, new)
    assert "-… (384 more lines)" in shown  # what was there leaves room for what came
    assert "+b0" in shown
    assert "+… (284 more lines)" in shown
    apart = "".join(f"x\n{'=' * 9}\n" * 3 + f"{at}\n" for at in range(40))
    shown = diff(apart, apart.replace("7\n", "seven\n").replace("1\n", "one\n").replace("3\n", "three\n"))
    assert shown[-1] == "… (there is more of this difference)"
    assert diff("a\n", "word " * 100 + "\n")[-1].endswith("…")


def hostile() -> list[tuple[str, str]]:
    """64 KiB each, made to cost much: nothing in common, little in common often, long runs of the same."""
    dice = random.Random(1)
    few = ["".join(dice.choice("ab") + "\n" for _ in range(2900)) for _ in range(2)]
    words = ["".join(f"{dice.choice('abc') * 20}\n" for _ in range(2900)) for _ in range(2)]
    runs = ["x\n" * 2900, "x\n" * 1450 + "y\n" * 40 + "x\n" * 1400]
    apart = ["".join(f"{name}{at} {'z' * 15}\n" for at in range(2900)) for name in "ab"]
    keys = ["".join(f"password{at} = {name}\n" for at in range(2900)) for name in "ab"]
    jobs = ["".join(f"{at % 60} * * * * root {name}{at % 7}\n" for at in range(2900)) for name in "ab"]
    same = [row * (60_000 // len(row)) for row in ("a:x:0:0:::\n", "a ALL=ALL\n")]
    blocks = ["".join(f"Match a{at}\nPort {at}\n" for at in range(3600)), "Port 1\n" * 9000]
    members = ["a:x:0:" + ",".join(f"{name}{at}" for at in range(9000)) + "\n" for name in "ab"]
    joined = ["x = \\\n" * 10_000, "x = \\\n" * 10_000 + "y\n"]
    return [
        (pair[0][:65_536], pair[1][:65_536])
        for pair in (few, words, runs, apart, keys, jobs, same, same[::-1], blocks, members, joined)
    ]


FORMATS = ("/etc/x", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/sudoers", "/etc/crontab")
FORMATS += ("/etc/ssh/sshd_config", "/etc/systemd/system/x.service", "/var/spool/cron/crontabs/x")


@pytest.mark.parametrize("path", FORMATS)
def test_hostile_texts_cost_no_time(path: str) -> None:
    for old, new in hostile():
        began = time.process_time()
        compare(path, old.encode(), new.encode())
        assert time.process_time() - began < 1.0


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(FORMATS))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_sentences_and_no_error(old: bytes, new: bytes, path: str) -> None:
    told = compare(path, old, new)
    assert all(isinstance(line, str) for line in (*told.diff, *told.changes))
    sentences(path, old.decode("latin-1"), new.decode("latin-1"))


@pytest.mark.parametrize("path", ["/etc/x", "/etc/shadow", "/etc/crontab"])
def test_hostile_texts_cost_no_memory(path: str) -> None:
    """The resident daemon compares; what it takes for a moment it must be able to spare."""
    for old, new in hostile():
        tracemalloc.start()
        compare(path, old.encode(), new.encode())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20
