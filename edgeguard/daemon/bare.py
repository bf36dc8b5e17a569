"""What is judged where no baseline is valid: EdgeGuard itself, so that a baseline that was destroyed is a finding.

The rules are those of the package's policy, which only a baseline brings into the daemon. Same ids, so that a finding
is the same one when a baseline is in force again. A test compares them with the policy and the table of codes.
"""

from __future__ import annotations

from edgeguard.evaluate.engine import Engine
from edgeguard.model import Columns, Condition, Operator, Rule, Severity

RULES: tuple[tuple[str, Severity, str], ...] = (
    ("EG-BASE-001", Severity.CRITICAL, "A baseline with a wrong signature was refused"),
    ("EG-BASE-002", Severity.HIGH, "A baseline with an older revision was refused"),
    ("EG-BASE-003", Severity.HIGH, "A baseline for another device was refused"),
    ("EG-BASE-004", Severity.HIGH, "An expired baseline was refused"),
    ("EG-BASE-005", Severity.MEDIUM, "A truncated baseline was refused"),
    ("EG-BASE-006", Severity.HIGH, "A damaged baseline was refused"),
    ("EG-BASE-007", Severity.MEDIUM, "A baseline that is not valid yet was refused"),
    ("EG-BASE-008", Severity.HIGH, "The device does not run the image that it was updated to"),
    ("EG-POL-001", Severity.MEDIUM, "A policy file is wrong; the old policy stays in force"),
    ("EG-HLTH-004", Severity.HIGH, "Records cannot be stored"),
    ("EG-HLTH-006", Severity.HIGH, "A sealed log segment is damaged and was set aside"),
    ("EG-HLTH-007", Severity.MEDIUM, "A helper of EdgeGuard failed"),
)


class _Nothing:
    """No baseline knows anything."""

    def expected(self, kind: str, subject: str) -> Columns | None:
        del kind, subject
        return None


def rules() -> tuple[Rule, ...]:
    return tuple(
        Rule(
            id="health." + code.removeprefix("EG-").lower(),
            code=code,
            kind="health",
            severity=severity,
            title=title,
            where=(Condition("code", Operator.IS, code),),
            expect=(Condition("ok", Operator.IS, True),),
            fix="See `edgeguard doctor`; then install a good baseline, or learn anew (`edgeguard baseline`).",
        )
        for code, severity, title in RULES
    )


def engine() -> Engine:
    return Engine(rules(), (), _Nothing())
