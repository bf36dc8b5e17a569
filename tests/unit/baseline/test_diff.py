"""What people read when one baseline follows another."""

from edgeguard.baseline.diff import DiffLine, changes, diff
from edgeguard.baseline.document import compile_baseline, with_reference
from edgeguard.baseline.policy import Policy
from edgeguard.model import Condition, Mode, Operator, Rule, Severity, Waiver, Watch

NOW = 1_790_000_000_000
RULE = Rule(
    "r",
    "EG-FILE-002",
    "file",
    Severity.HIGH,
    "t",
    (Condition("category", Operator.IN, ("a", "b")),),
    (Condition("mode", Operator.SAME, True),),
    source="10.toml:1",
)
FIRST = compile_baseline(
    Policy((Watch("/usr", "program"),), (RULE,), (Waiver("EG-FILE-002", "/x", "anna", "why", NOW),)),
    {"listener": {"tcp/0.0.0.0:22": {"exe": "/usr/sbin/sshd", "uid": 0, "unit": ""}}},
    None,
    1,
    NOW,
)


def lines(new, files=()):
    return [" ".join(filter(None, line)) for line in diff(FIRST, new, files)]


def test_nothing_changed():
    moved = RULE._replace(source="20.toml:9")
    again = FIRST._replace(revision=2, created=NOW + 1, policy=FIRST.policy._replace(rules=(moved,)))
    assert lines(again) == []


def test_policy():
    where = "category in [a, b]"
    policy = Policy(
        (Watch("/usr", "other"), Watch("/etc", "config")),
        (RULE._replace(mode=Mode.ENFORCE, where=()), RULE._replace(id="s")),
    )
    assert lines(FIRST._replace(policy=policy, target="pumps")) == [
        "~ validity target none -> pumps",
        "~ validity mode audit -> enforce",
        "+ watch /etc category=config, recurse=True, content=True, protect=False",
        "~ watch /usr category: program -> other",
        "~ rule r mode: audit -> enforce, where: category in [a, b] -> none",
        f"+ rule s code=EG-FILE-002, kind=file, severity=high, mode=audit, where={where}, expect=mode same, title=t",
        f"- waiver EG-FILE-002 /x owner=anna, reason=why, expires={NOW}",
    ]


def test_reference_values():
    new = with_reference(FIRST, "listener", "tcp/0.0.0.0:22", None)
    new = with_reference(new, "listener", "udp/[::]:5353", {"exe": "/x"})
    new = with_reference(new, "file", "/etc/a\udcff", {"mode": 0o4755, "sha256": b"\xab"})
    new = with_reference(new, "file", "/etc/b", None)
    assert lines(new, [DiffLine("~", "file", "/etc/c", "by the caller")]) == [
        "+ file /etc/a\udcff mode=0o4755, sha256=ab",
        "+ file /etc/b absent",
        "- listener tcp/0.0.0.0:22 exe=/usr/sbin/sshd, uid=0",
        "+ listener udp/[::]:5353 exe=/x",
        "~ file /etc/c by the caller",
    ]


def test_columns():
    assert list(changes({"mode": 0o755, "uid": 0, "sha256": b"\1"}, {"mode": 0o4755, "uid": 0, "sha256": None})) == [
        "mode: 0o755 -> 0o4755",
        "sha256: 01 -> none",
    ]
