"""Which digest a baseline gets of its files' contents, and what rules mean by it. Pure.

In a rule `sha256 = { same = true }` says that the content is as it was learned, whatever digest the baseline has; so
does `blake2b`, and a policy that was read has the former word only. Any other condition on one of the two names a
digest that somebody has from elsewhere. It can only be decided where the baseline has just that one.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeguard.baseline.policy import Policy
from edgeguard.codec.digests import Algorithm
from edgeguard.errors import EdgeGuardError
from edgeguard.model import Condition, Operator, Rule

AUTO = "auto"
CHOICES = (AUTO, *(algorithm.value for algorithm in Algorithm))
_COLUMNS = frozenset(algorithm.value for algorithm in Algorithm)


class OtherDigest(EdgeGuardError):
    """A rule names a digest of a kind that the baseline does not have."""


def named(rules: Iterable[Rule]) -> dict[Algorithm, Rule]:
    """The kinds of digests that rules name values of, each with the first rule that does."""
    found: dict[Algorithm, Rule] = {}
    for rule in rules:
        for condition in (*rule.where, *rule.expect):
            if rule.kind == "file" and condition.column in _COLUMNS and condition.operator is not Operator.SAME:
                found.setdefault(Algorithm(condition.column), rule)
    return found


def chosen(policy: Policy, quickest: Algorithm) -> Algorithm:
    """For a baseline that is made of this policy. `quickest`: where nobody says anything. Raises OtherDigest."""
    asked = policy.settings.learn_digest
    values = named(policy.rules)
    algorithm = next(iter(values), quickest) if asked == AUTO else Algorithm(asked)
    check(policy.rules, algorithm)
    return algorithm


def check(rules: Iterable[Rule], algorithm: Algorithm) -> None:
    """Raises OtherDigest where a rule names a value of another kind: it could never be decided."""
    for other, rule in named(rules).items():
        if other is not algorithm:
            asks = f"rule {rule.id} ({rule.source}) compares {other.value} with a value"
            raise OtherDigest(f"{asks}, but the baseline has digests by {algorithm.label}")


def in_terms_of(rules: Iterable[Rule], algorithm: Algorithm) -> tuple[Rule, ...]:
    """The rules as this baseline can be asked by them. Those that do not ask for the content stay the same objects."""
    return tuple(_translated(rule, algorithm) for rule in rules)


def _translated(rule: Rule, algorithm: Algorithm) -> Rule:
    if rule.kind != "file" or not any(_other(item, algorithm) for item in (*rule.where, *rule.expect)):
        return rule
    return rule._replace(
        where=tuple(_condition(item, algorithm) for item in rule.where),
        expect=tuple(_condition(item, algorithm) for item in rule.expect),
    )


def _other(condition: Condition, algorithm: Algorithm) -> bool:
    same = condition.operator is Operator.SAME
    return same and condition.column in _COLUMNS and condition.column != algorithm.value


def _condition(condition: Condition, algorithm: Algorithm) -> Condition:
    return condition._replace(column=algorithm.value) if _other(condition, algorithm) else condition
