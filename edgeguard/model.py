"""The nouns that rooms hand to each other. Values only: nothing here opens, reads or asks the time.

Observations come by the thousand and are NamedTuples, and so is all else here.
Paths and names are `str` made with `os.fsdecode` (UTF-8 with surrogateescape), so every byte survives;
whoever prints one escapes it first (`edgeguard.cli.text.escape`).
Times are integers: milliseconds since the Unix epoch, UTC, unless a name ends in `_mono`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import NamedTuple

Value = None | bool | int | str | bytes | tuple[str, ...] | tuple[int, ...]
"""What a column may hold. Digests are bytes; sets (flags, members, arguments) are tuples."""

Columns = Mapping[str, Value]


class Severity(IntEnum):
    """OCSF severity_id. Ordered: a comparison tells which is worse."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5


class Status(IntEnum):
    """What a look at a subject gave. "Could not look" is an answer too, never an absence."""

    PRESENT = 0
    ABSENT = 1
    UNREADABLE = 2


class Origin(IntEnum):
    """How an observation came about, which decides what may be claimed about its time and actor."""

    LIVE = 0  # the kernel told us as it happened
    SWEEP = 1  # found by looking; it happened at some time since the last look
    DOWN = 2  # found at start: it happened while EdgeGuard was not running
    LEARN = 3  # seen while learning; becomes a reference value


class Outcome(StrEnum):
    """XCCDF 1.2 result values that we use."""

    PASS = "pass"  # noqa: S105 - an XCCDF result, not a password
    FAIL = "fail"
    ERROR = "error"
    UNKNOWN = "unknown"
    NOTAPPLICABLE = "notapplicable"
    NOTCHECKED = "notchecked"
    INFORMATIONAL = "informational"


class Mode(StrEnum):
    """audit: say. enforce: say and do. The stricter of device and rule never wins: both must say enforce."""

    AUDIT = "audit"
    ENFORCE = "enforce"


class State(StrEnum):
    """Life of a finding."""

    OPEN = "open"
    SUPPRESSED = "suppressed"  # a waiver or an acceptance covers it
    RESOLVED = "resolved"


class Transition(StrEnum):
    """What an evaluation did to a finding; OPENED, CHANGED, RESOLVED and SUPPRESSED are recorded and told."""

    OPENED = "opened"
    CHANGED = "changed"  # still open, but the observed value or the severity is another
    REPEATED = "repeated"  # the same again; only counted
    RESOLVED = "resolved"
    SUPPRESSED = "suppressed"


class Actor(NamedTuple):
    """Who did it, as far as the kernel told. Unknown parts are None (numbers) or "" (text)."""

    pid: int | None = None
    exe: str = ""
    argv: tuple[str, ...] = ()
    uid: int | None = None
    user: str = ""
    login_uid: int | None = None  # None: no login session (daemon, boot)
    login_user: str = ""
    tty: str = ""
    address: str = ""  # where the login came from, e.g. 10.0.3.8
    unit: str = ""  # systemd unit
    parents: tuple[tuple[int, str], ...] = ()  # nearest first: (pid, exe), at most 8


NOBODY = Actor()
"""The honest unknown."""


COMPARED = ("diff", "changes")
"""Columns that tell what differs from the reference value: they say nothing once there is another."""


class Observation(NamedTuple):
    """One immutable fact. `kind` and the names in `columns` are declared by the sensor that yields it."""

    kind: str
    subject: str
    columns: Columns
    at: int
    status: Status = Status.PRESENT
    origin: Origin = Origin.LIVE
    actor: Actor = NOBODY
    note: str = ""  # for UNREADABLE: why, in plain words


class Operator(StrEnum):
    """All that a rule can ask of a column. Conditions are joined by "and"; what needs thought is a column."""

    IS = "is"
    NOT = "not"
    IN = "in"
    NOT_IN = "not_in"
    LIKE = "like"  # shell globs, any of a list
    UNLIKE = "unlike"
    MIN = "min"
    MAX = "max"
    HAS = "has"  # the tuple contains all of these
    LACKS = "lacks"  # the tuple contains none of these
    SAME = "same"  # equals the reference value of this subject
    NOT_BELOW = "not_below"  # a number that is at least the reference value (hardening may only grow)


class Condition(NamedTuple):
    column: str
    operator: Operator
    operand: Value


class Rule(NamedTuple):
    """What should hold. Applies where `where` holds for an observation of `kind`; fails unless all of `expect` hold.

    The engine offers two columns to every rule besides the sensor's own: `known` (the baseline has a reference
    value for this subject) and `status` ("present", "absent", "unreadable").
    """

    id: str
    code: str  # EG-FILE-002
    kind: str
    severity: Severity
    title: str
    where: tuple[Condition, ...] = ()
    expect: tuple[Condition, ...] = ()
    mode: Mode = Mode.AUDIT
    remediation: str = ""  # name in edgeguard.remediations.TABLE, "" for none
    fix: str = ""  # one line: the next step for a person
    source: str = ""  # file:line in the policy


class Waiver(NamedTuple):
    """Signed, expiring acceptance of a deviation."""

    code: str
    subject: str  # glob over subjects
    owner: str
    reason: str
    expires: int  # ms; a waiver without an end does not exist
    source: str = ""


class Result(NamedTuple):
    """One rule applied to one observation."""

    rule: Rule
    observation: Observation
    outcome: Outcome
    failed: tuple[Condition, ...]  # the conditions of `expect` that do not hold
    expected: Columns  # for each failed column, what would have held
    observed: Columns  # for each failed column, what is there


class Finding(NamedTuple):
    """A failed or undecidable evaluation with its life. Frozen: the ledger replaces it as a whole."""

    id: str  # F-7K2M
    code: str
    rule: str
    kind: str
    subject: str
    severity: Severity
    state: State
    title: str
    first_seen: int
    last_seen: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody asks of a finding
    origin: Origin
    expected: Columns
    observed: Columns
    actor: Actor = NOBODY
    outcome: Outcome = Outcome.FAIL
    note: str = ""
    fix: str = ""
    waiver: str = ""  # reason and end of the waiver that suppresses it
    remediation: str = ""  # "", "restore: done", "stop: refused, ...": what was done about it
    resolved_at: int | None = None
    details: Columns | None = None  # all columns of the observation: what else is known about the subject


class Change(NamedTuple):
    """What the ledger did with a result; the daemon records it, tells it, and may remedy it."""

    transition: Transition
    finding: Finding
    rule: Rule | None  # None when the rule is gone from the policy


ATTRIBUTES = ("type", "sha256", "mode", "uid", "gid", "target", "caps", "xattrs")
"""Whatever can be checked of a file that stays as it is. `sha256` stands for content and size."""

GROWTH = "growth"
"""Checked instead of `sha256` of what only grows: that nothing that was in it is lost."""


class Watch(NamedTuple):
    """A tree (or, without `recurse`, one path) whose files are watched. The longest matching `path` decides.

    `path` may hold `*` in whole components (`/home/*/.ssh`). `exclude` are globs over absolute paths, `**` crossing
    directories; an excluded directory is not entered.
    """

    path: str
    category: str  # one of baseline.categories, or of the site's own
    exclude: tuple[str, ...] = ()
    recurse: bool = True
    content: bool = True  # False: attributes only, nothing is read
    protect: bool = False  # keep a copy of the content, so that it can be restored
    only: str = ""  # "setid": only files with set-id bits or capabilities are subjects (for trees like / and /home)
    source: str = ""  # file:line in the policy
    checks: tuple[str, ...] = ATTRIBUTES  # of its category; without `sha256`, `content` is False
    exclude_at: str = ""  # where each of `exclude` is written, a line each: a line of the same file, or file:line
    diff: tuple[str, ...] = ()  # globs: of these files a copy is kept, and what changed in them is told
    nodiff: tuple[str, ...] = ()  # globs: of these it never is

    @property
    def grows(self) -> bool:
        """Are these logs: files that may grow and be rotated, and lose nothing?"""
        return GROWTH in self.checks

    @property
    def by_rights(self) -> bool:
        """Is all that is checked in type, mode and owner, so that other times, sizes and inodes say nothing?"""
        return not self.content and "xattrs" not in self.checks and not self.only
