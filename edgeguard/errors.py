"""One tree, a branch per decision that a caller takes. Anything else that is raised is a bug of ours and stays loud.

Each class carries `code`: the finding code under which the daemon reports it, "" where it is not a finding.
Messages are for people: one line, no control bytes expected (callers escape what came from outside).
"""

from __future__ import annotations


class EdgeGuardError(Exception):
    """Base of all that EdgeGuard raises on purpose."""

    code = ""


class DecodeError(EdgeGuardError):
    """Bytes from outside are not what they should be. The only error of every decoder in `codec` and `records`."""


class UnknownDictionary(DecodeError):
    """Compressed with a preset dictionary that this release does not have."""


class Incomplete(DecodeError):
    """The bytes end before the value does: more may still come, or the rest was cut off."""


class SignatureError(EdgeGuardError):
    """A COSE_Sign1 is well formed but not to be believed."""


class UnknownSigner(SignatureError):
    """Signed by a key that is not among those we trust."""


class SignatureMismatch(SignatureError):
    """Names a key that we trust, but that key did not sign these bytes: damaged or forged."""


class IdentityUnusable(EdgeGuardError):
    """The device's identity key is not where the settings say, or does not sign now. Nothing is lost; try again."""

    code = "EG-HLTH-007"


class SettingsError(EdgeGuardError):
    """agent.toml is wrong: a person must edit it."""


class PolicyError(EdgeGuardError):
    """A policy file is wrong: a person must edit it. `problems` lists every problem found, not just the first."""

    code = "EG-POL-001"

    def __init__(self, problems: list[PolicyProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class PolicyProblem:
    """One problem in a policy: where, what, and what was expected."""

    __slots__ = ("column", "expected", "file", "level", "line", "message", "source")

    def __init__(
        self,
        file: str,
        line: int,
        column: int,
        message: str,
        expected: str = "",
        source: str = "",
        level: str = "error",
    ) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.message = message
        self.expected = expected
        self.source = source  # the text of that line
        self.level = level  # "error" or "warning"

    def __str__(self) -> str:
        tail = f"; expected {self.expected}" if self.expected else ""
        return f"{self.file}:{self.line}:{self.column}: {self.level}: {self.message}{tail}"


class BaselineRefused(EdgeGuardError):
    """A baseline must not come into force; the one that stands stays."""


class BadSignature(BaselineRefused):
    code = "EG-BASE-001"


class OlderRevision(BaselineRefused):
    code = "EG-BASE-002"


class WrongDevice(BaselineRefused):
    code = "EG-BASE-003"


class Expired(BaselineRefused):
    code = "EG-BASE-004"


class Truncated(BaselineRefused):
    code = "EG-BASE-005"


class Corrupt(BaselineRefused):
    code = "EG-BASE-006"


class NotYetValid(BaselineRefused):
    code = "EG-BASE-007"


class SegmentRefused(EdgeGuardError):
    """A sealed segment must not be believed: set it aside and report it."""

    code = "EG-HLTH-006"


class SpoolError(EdgeGuardError):
    """The spool could not make a record durable (disk full, I/O error): keep it in memory, say so, try again."""

    code = "EG-HLTH-004"


class Unavailable(EdgeGuardError):
    """This kernel or machine does not offer a facility: take the next rung of the ladder."""


class RemediationRefused(EdgeGuardError):
    """Preflight says that acting would do harm, or the request is not covered by baseline or finding."""

    code = "EG-ACT-001"


class RemediationFailed(EdgeGuardError):
    """It was tried and did not hold; what was changed has been put back."""

    code = "EG-ACT-002"


class ControlError(EdgeGuardError):
    """A request on the control socket is refused. `name` goes over the wire (reverse-domain, Varlink style)."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = f"org.edgeguard.{name}"


class NotPermitted(ControlError):
    """The peer may not do this: exit 77."""

    def __init__(self, message: str) -> None:
        super().__init__("NotPermitted", message)


class DaemonSilent(EdgeGuardError):
    """The daemon does not answer: what it last said is in status.json."""
