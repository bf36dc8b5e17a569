"""Each category says what it checks, in code and manual alike; a site's own comes with the rules of its like."""

import os

import pytest

from edgeguard.baseline.categories import CATEGORIES, CHECKS
from edgeguard.baseline.document import Baseline, compile_baseline
from edgeguard.baseline.policy import parse
from edgeguard.errors import PolicyError
from edgeguard.model import ATTRIBUTES, Condition, Operator

HOUSE = os.path.join(os.path.dirname(__file__), "..", "..", "..")

RULES = b"""
[[rule]]
id = "a"
code = "EG-FILE-002"
kind = "file"
where = { category = "config" }
expect = { sha256 = { same = true } }

[[rule]]
id = "b"
code = "EG-FILE-002"
kind = "file"
where = { category = { not_in = ["config", "own"] } }
expect = { sha256 = { same = true } }

[[rule]]
id = "c"
code = "EG-FILE-002"
kind = "mount"
where = { category = "config" }
expect = { fstype = "ext4" }
"""
SITE = b"""
[[watch]]
path = "/srv/recipes"
category = "recipe"

[[category]]
name = "recipe"
like = "config"
checks = ["uid", "sha256"]

[[category]]
name = "spool"
checks = ["mode"]
"""


def test_the_manual_holds_the_table():
    with open(os.path.join(HOUSE, "docs", "policy.md"), encoding="utf-8") as file:
        text = file.read()
    for name, category in CATEGORIES.items():
        listed = " ".join(category.checks)
        missing = [check for check in ATTRIBUTES if check not in category.checks]
        if category.checks == ATTRIBUTES:
            listed = "everything"
        elif missing == ["sha256"]:
            listed = "everything but sha256"
        assert f"| `{name}` | {category.meaning} | {listed} |" in text
    with open(os.path.join(HOUSE, "packaging", "man", "edgeguard-policy.5"), encoding="utf-8") as file:
        manual = file.read()
    assert all(name in manual for name in (*CATEGORIES, *CHECKS))


def test_what_a_watch_checks_is_its_category_s():
    text = b"".join(b'[[watch]]\npath = "/%s"\ncategory = "%s"\n' % (n.encode(), n.encode()) for n in CATEGORIES)
    for watch in parse([("p.toml", text)]).watches:
        assert watch.checks == CATEGORIES[watch.category].checks
        assert watch.content == ("sha256" in watch.checks)
        assert watch.grows == (watch.category == "log")
        assert watch.by_rights == (watch.category in {"log", "volatile"})


def test_a_category_of_the_site():
    policy = parse([("r.toml", RULES), ("s.toml", SITE)])
    (watch,) = policy.watches
    assert (watch.category, watch.checks, watch.content) == ("recipe", ("type", "sha256", "uid"), True)
    first, second, third = policy.rules
    assert first.where == (Condition("category", Operator.IN, ("config", "recipe")),)
    assert second.where == (Condition("category", Operator.NOT_IN, ("config", "own", "recipe")),)
    assert third.where == (Condition("category", Operator.IS, "config"),)  # of mounts
    assert policy.warnings == ()
    signed = Baseline.from_cbor(compile_baseline(policy, {}, None, 1, 1).to_cbor())
    assert signed.policy == policy


def test_one_that_no_rule_names_is_warned_of():
    text = SITE.replace(b'category = "recipe"', b'category = "spool"')
    (warning,) = parse([("r.toml", RULES), ("s.toml", text)]).warnings
    assert (warning.level, warning.line) == ("warning", 4)
    assert 'no rule names category "spool"' in warning.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[[category]]\nname = "log"\nlike = "log"', "is there already"),
        (b'[[category]]\nname = "Log"\nlike = "log"', "no name of a category"),
        (b'[[category]]\nname = "x"', '"checks" is missing'),
        (b'[[category]]\nlike = "log"', '"name" is missing'),
        (b'[[category]]\nname = "x"\nlike = "logs"', 'did you mean "log"'),
        (b'[[category]]\nname = "x"\nchecks = ["sha1"]', "is not a checked attribute"),
        (b'[[category]]\nname = "x"\nchecks = ["sha256", "growth"]', "another content each time"),
        (b'[[category]]\nname = "x"\nchecks = [3]', "is not a checked attribute"),
        (b'[category]\nname = "x"', "is a list of tables"),
        (b'[[watch]]\npath = "/x"\ncategory = "recipe"', '"recipe" is not a category'),
        (b"".join(b'[[category]]\nname = "x%d"\nlike = "log"\n' % n for n in range(101)), "too many categories"),
    ],
)
def test_slips(text, message):
    with pytest.raises(PolicyError) as caught:
        parse([("s.toml", text)])
    assert message in " ".join(problem.message for problem in caught.value.problems)
