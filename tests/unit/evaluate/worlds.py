"""A small policy and small observations, shared by the tests of this room."""

from edgeguard.model import Actor, Condition, Observation, Operator, Origin, Rule, Severity, Status

NOW = 1_800_000_000_000


def c(column, operator, operand=None):
    return Condition(column, Operator(operator), operand)


KNOWN = c("known", "is", True)
FILE = c("type", "is", "file")

RULES = (
    Rule(
        "file-content",
        "EG-FILE-002",
        "file",
        Severity.CRITICAL,
        "content",
        (KNOWN, FILE),
        (c("sha256", "same"),),
        source="10.toml:3",
    ),
    Rule(
        "file-mode",
        "EG-FILE-003",
        "file",
        Severity.MEDIUM,
        "mode",
        (KNOWN,),
        (c("mode", "same"), c("uid", "same")),
        source="10.toml:9",
    ),
    Rule(
        "file-new",
        "EG-FILE-001",
        "file",
        Severity.LOW,
        "new",
        (c("category", "in", ("program", "unit")),),
        (KNOWN,),
        source="10.toml:15",
    ),
    Rule(
        "file-missing",
        "EG-FILE-004",
        "file",
        Severity.HIGH,
        "missing",
        (KNOWN,),
        (c("status", "not", "absent"),),
        source="10.toml:20",
    ),
    Rule(
        "file-unreadable",
        "EG-FILE-007",
        "file",
        Severity.LOW,
        "unreadable",
        (c("status", "is", "unreadable"),),
        (c("status", "is", "present"),),
    ),
    Rule("port", "EG-PORT-001", "listener", Severity.HIGH, "port", (c("protocol", "is", "tcp"),), (KNOWN,)),
    Rule("sysctl", "EG-HOST-001", "sysctl", Severity.HIGH, "weaker", (KNOWN,), (c("level", "not_below"),)),
    Rule("exec", "EG-PROC-004", "process", Severity.MEDIUM, "unknown program", (), (c("exe_known", "is", True),)),
    Rule("package", "EG-PKG-001", "package", Severity.INFORMATIONAL, "half", (), (c("status", "is", "installed"),)),
)

SSHD = {"type": "file", "sha256": b"\1" * 32, "size": 10, "mode": 0o755, "uid": 0, "gid": 0, "category": "program"}


class World:
    def __init__(self, **references):
        self.table = {
            ("file", "/usr/sbin/sshd"): {key: SSHD[key] for key in ("type", "sha256", "size", "mode", "uid", "gid")},
            ("sysctl", "kernel.kptr_restrict"): {"value": "2", "level": 2},
        }
        self.table.update(references)

    def expected(self, kind, subject):
        return self.table.get((kind, subject))


ANNA = Actor(
    pid=2198,
    exe="/bin/cp",
    uid=0,
    user="root",
    login_uid=1001,
    login_user="anna",
    tty="pts/0",
    parents=((2100, "/bin/bash"),),
)


def file(subject="/usr/sbin/sshd", status=Status.PRESENT, at=NOW, origin=Origin.LIVE, actor=ANNA, note="", **columns):
    row = {} if status is not Status.PRESENT else {**SSHD, **columns}
    return Observation("file", subject, row, at, status, origin, actor, note)


def listener(subject="tcp/0.0.0.0:4444", status=Status.PRESENT, at=NOW, **columns):
    row = {
        "protocol": "tcp",
        "address": "0.0.0.0",
        "port": 4444,
        "exe": "/tmp/.x",
        "user": "anna",
        "pid": 2211,
        **columns,
    }
    return Observation("listener", subject, row if status is Status.PRESENT else {}, at, status)
