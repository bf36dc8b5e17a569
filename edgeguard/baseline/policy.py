"""Policy: what people write about how a device should be, as values. Pure.

Reading it from TOML is in `reading`, which is imported only when there is something to read: the resident daemon takes
its policy from the signed baseline. docs/policy.md says to people what a policy may hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.errors import PolicyProblem
from edgeguard.model import Rule, Waiver, Watch

if TYPE_CHECKING:
    from edgeguard.baseline.conditions_toml import Kinds

REMEDIATIONS = ("restore-file", "quarantine-file", "stop-process", "block-port", "deauthorise-usb", "set-sysctl")

Codes = Mapping[str, tuple[str, str]]
"""Finding code -> title, default severity."""


class PolicySettings(NamedTuple):
    """What a policy says about the baseline that is made from it."""

    expires_after: int | None = None  # ms from signing; None: a baseline that stays until the next
    learn_skip: tuple[str, ...] = ()  # kinds of which nothing is taken over when learning
    learn_digest: str = "auto"  # of the files' contents: "sha256", "blake2b", or whichever is quicker here


class Policy(NamedTuple):
    watches: tuple[Watch, ...] = ()
    rules: tuple[Rule, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    settings: PolicySettings = PolicySettings()
    warnings: tuple[PolicyProblem, ...] = ()  # for lint; no part of a baseline


def parse(
    files: Sequence[tuple[str, bytes]],
    codes: Codes | None = None,
    kinds: Kinds | None = None,
    *,
    remediations: Collection[str] = REMEDIATIONS,
    now: int | None = None,
) -> Policy:
    """The policy that `files` (name, content) make together; PolicyError with all problems.

    `codes` and `kinds` are what rules may name; without them names are taken as they come. With `now`, waivers that
    have ended are warned of.
    """
    from edgeguard.baseline.reading import Reader  # the TOML half: 150 KB that a device at work never needs

    reader = Reader(codes, kinds, remediations, now)
    for name, data in files:
        reader.read(name, data)
    return reader.finish()
