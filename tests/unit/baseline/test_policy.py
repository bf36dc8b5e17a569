"""Policy files: a corpus of good and bad ones next to what they give, layering, and no input that is not answered."""

import os
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.baseline import policy
from edgeguard.baseline.reading import WATCHES_MAX
from edgeguard.errors import PolicyError
from edgeguard.model import Mode, Operator

CORPUS = os.path.join(os.path.dirname(__file__), "..", "..", "corpus", "policy")
NOW = 1_790_000_000_000


class Column(NamedTuple):
    type: str
    reference: bool = False


CODES = {
    "EG-FILE-001": ("A file appeared", "low"),
    "EG-FILE-002": ("Content changed", "critical"),
    "EG-HOST-003": ("Mounted", "medium"),
    "EG-PORT-001": ("A TCP port", "high"),
}
KINDS = {
    "file": {
        "type": Column("str", True),
        "sha256": Column("bytes", True),
        "size": Column("int", True),
        "mode": Column("int", True),
        "uid": Column("int", True),
        "gid": Column("int", True),
        "target": Column("str", True),
        "caps": Column("str", True),
        "category": Column("str"),
        "setid": Column("bool"),
        "world_writable": Column("bool"),
    },
    "mount": {"options": Column("list", True)},
    "usb": {"interfaces": Column("list", True)},
}


def parse(*files):
    return policy.parse(files, CODES, KINDS, now=NOW)


def read(directory, name):
    with open(os.path.join(CORPUS, directory, name), "rb") as file:
        return file.read()


def names(directory):
    return sorted(name for name in os.listdir(os.path.join(CORPUS, directory)) if name.endswith(".toml"))


def expected(directory, name):
    return read(directory, name.replace(".toml", ".expected")).decode()


def render(found):
    """A policy as lines, for comparison by eye."""
    lines = []
    for watch in found.watches:
        flags = [name for name in ("recurse", "content", "protect") if getattr(watch, name)]
        lines.append(f"watch {watch.path} {watch.category} {' '.join(flags)} only={watch.only!r} at {watch.source}")
        for name in ("exclude", "diff", "nodiff"):
            lines.extend(f"  {name} {glob}" for glob in getattr(watch, name))
    for rule in found.rules:
        lines.append(f"rule {rule.id} {rule.code} {rule.kind} {rule.severity.name} {rule.mode.value} at {rule.source}")
        lines.append(f"  title {rule.title!r} remediation {rule.remediation!r} fix {rule.fix!r}")
        for word in ("where", "expect"):
            lines.extend(f"  {word} {c.column} {c.operator.value} {c.operand!r}" for c in getattr(rule, word))
    lines.extend(
        f"waiver {waiver.code} {waiver.subject} {waiver.owner} until {waiver.expires} at {waiver.source}"
        for waiver in found.waivers
    )
    lines.append(f"settings {found.settings}")
    lines.extend(str(problem) for problem in found.warnings)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", names("good"))
def test_good(name):
    assert render(parse((name, read("good", name)))) == expected("good", name)


@pytest.mark.parametrize("name", names("bad"))
def test_bad(name):
    """Every problem, each where it stands."""
    with pytest.raises(PolicyError) as caught:
        parse((name, read("bad", name)))
    assert "\n".join(map(str, caught.value.problems)) + "\n" == expected("bad", name)
    assert caught.value.code == "EG-POL-001"
    for problem in caught.value.problems:
        lines = read("bad", name).decode(errors="replace").split("\n")
        assert problem.source == lines[problem.line - 1] or name == "encoding.toml"
        assert problem.column <= len(lines[problem.line - 1]) + 1


BASE = b"""
[[watch]]
path = "/usr"
category = "program"
[[rule]]
id = "r"
code = "EG-FILE-002"
kind = "file"
where = { category = "program", setid = false }
expect = { sha256 = { same = true } }
"""


def test_a_later_file_changes_one_rule():
    site = b'[[rule]]\nid = "r"\noverride = true\nmode = "enforce"\nwhere = { setid = true }\n'
    found = parse(("10.toml", BASE), ("50.toml", site))
    (rule,) = found.rules
    assert rule.mode is Mode.ENFORCE
    assert rule.source == "10.toml:5, 50.toml:1"
    assert {condition.column: condition.operand for condition in rule.where} == {"category": "program", "setid": True}
    assert rule.expect[0].operator is Operator.SAME


def test_a_later_file_replaces_a_watch():
    site = b'[[watch]]\npath = "/usr"\ncategory = "other"\ncontent = false\n'
    (watch,) = parse(("10.toml", BASE), ("50.toml", site)).watches
    assert (watch.category, watch.content, watch.source) == ("other", False, "50.toml:1")


def test_a_watch_is_switched_off_and_on_again():
    off = b'[[watch]]\npath = "/usr"\noff = true\n'
    assert parse(("10.toml", BASE), ("50.toml", off)).watches == ()
    again = b'[[watch]]\npath = "/usr"\ncategory = "other"\n'
    assert len(parse(("10.toml", BASE), ("50.toml", off), ("60.toml", again)).watches) == 1


def test_problems_of_all_files_are_told():
    with pytest.raises(PolicyError) as caught:
        parse(("a.toml", b"x = 1"), ("b.toml", b"= 2"), ("c.toml", b"[[rule]]\n"))
    assert {problem.file for problem in caught.value.problems} == {"a.toml", "b.toml", "c.toml"}


def test_names_are_free_without_a_vocabulary():
    found = policy.parse([("a.toml", b'[[rule]]\nid="x"\ncode="ANY"\nkind="any"\nexpect={ col = { min = 1 } }')])
    assert found.rules[0].code == "ANY"


def test_bounds():
    many = b"".join(b'[[watch]]\npath="/%d"\ncategory="other"\n' % n for n in range(WATCHES_MAX + 1))
    with pytest.raises(PolicyError, match=f"{WATCHES_MAX + 1} watches"):
        parse(("a.toml", many))
    for text in (b"a = " + b"[" * 5000 + b"]" * 5000, b"a." * 3000 + b"b = 1"):
        with pytest.raises(PolicyError):
            parse(("a.toml", text))


def test_crlf_and_byte_order_mark():
    found = parse(("a.toml", b"\xef\xbb\xbf" + BASE.replace(b"\n", b"\r\n")))
    assert found.rules[0].source == "a.toml:5"


pieces = st.sampled_from(
    [
        *BASE.decode().strip().split("\n"),
        "[[waiver]]",
        "expires = 2027-01-01",
        "expires = 9999-12-31",
        'expires = "0001-01-01T00:00:00+23:59"',
        "[validity]",
        'expires_after = "1ms"',
        "where.category.not = 3",
        "expect = { options = { has = [] } }",
        "off = true",
        "override = true",
        'path = ["/", "/*"]',
        "rule = []",
        "[rule.where]",
        "x = nan",
        'subject = "\\u0000"',
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=12).map("\n".join).map(str.encode) | st.binary(max_size=60))
def test_any_text_gives_a_policy_or_its_problems(data):
    problems = None
    try:
        parse(("any.toml", data))
    except PolicyError as error:
        problems = error.problems
    assert problems is None or problems


@pytest.mark.parametrize(
    "text",
    [
        b"a = " + b"9" * 5000,
        b"[[watch]]\npath = 0x" + b"f" * 5000,
        b"[[watch]]\ncategory = 0x" + b"f" * 5000,
        b"[[rule]]\nexpect = { uid = 0x" + b"f" * 5000 + b" }",
        b"a = " + b"[" * 5000,
    ],
)
def test_giant_numbers_and_depths_are_problems_like_others(text):
    with pytest.raises(PolicyError) as caught:
        parse(("50.toml", text))
    assert all(len(problem.message) < 200 for problem in caught.value.problems)
