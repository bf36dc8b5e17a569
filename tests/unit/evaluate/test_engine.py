"""Rules applied to observations: what fails, what does not apply, what nobody can know."""

import pytest
from worlds import NOW, RULES, SSHD, World, file, listener

from edgeguard.evaluate.engine import Engine
from edgeguard.model import Observation, Outcome, Status, Waiver

ENGINE = Engine(RULES, (), World())


def outcomes(observation):
    return {result.rule.id: result.outcome.value for result in ENGINE.evaluate(observation, NOW)}


def only(observation, rule):
    return next(result for result in ENGINE.evaluate(observation, NOW) if result.rule.id == rule)


def test_a_file_as_it_should_be():
    assert outcomes(file()) == {
        "file-content": "pass",
        "file-mode": "pass",
        "file-new": "pass",
        "file-missing": "pass",
        "file-unreadable": "notapplicable",
    }


def test_changed_content_names_both_digests():
    result = only(file(sha256=b"\2" * 32), "file-content")
    assert result.outcome is Outcome.FAIL
    assert result.expected == {"sha256": b"\1" * 32}
    assert result.observed == {"sha256": b"\2" * 32}


def test_content_that_could_not_be_read_is_not_a_pass():
    result = only(file(sha256=None), "file-content")
    assert result.outcome is Outcome.UNKNOWN
    assert [condition.column for condition in result.failed] == ["sha256"]


def test_a_missing_column_in_where_is_undecided():
    observation = Observation("listener", "tcp/[::]:1", {"port": 1}, NOW)
    assert outcomes(observation) == {"port": "unknown"}


def test_absent_is_missing_and_ends_everything_else():
    assert outcomes(file(status=Status.ABSENT)) == {
        "file-content": "notapplicable",
        "file-mode": "notapplicable",
        "file-new": "notapplicable",
        "file-missing": "fail",
        "file-unreadable": "notapplicable",
    }


def test_absent_and_never_known_is_nothing():
    assert "fail" not in outcomes(file("/usr/sbin/new", status=Status.ABSENT)).values()


def test_unreadable_decides_nothing_but_itself():
    seen = outcomes(file(status=Status.UNREADABLE, note="permission denied"))
    assert seen["file-unreadable"] == "fail"
    assert seen["file-content"] == seen["file-mode"] == seen["file-new"] == "notchecked"


def test_a_new_subject_shows_what_it_is():
    result = only(listener(), "port")
    assert result.outcome is Outcome.FAIL
    assert result.expected == {}
    assert result.observed["exe"] == "/tmp/.x"
    assert "pid" not in result.observed  # the same program again is the same deviation


def test_same_does_not_apply_to_the_unknown():
    assert outcomes(file("/usr/sbin/new"))["file-content"] == "notapplicable"


def test_a_weaker_setting_shows_its_value():
    seen = Observation("sysctl", "kernel.kptr_restrict", {"value": "0", "level": 0}, NOW)
    result = only(seen, "sysctl")
    assert (result.expected["value"], result.observed["value"]) == ("2", "0")
    assert only(seen._replace(columns={"value": "3", "level": 3}), "sysctl").outcome is Outcome.PASS


def test_a_package_has_a_status_of_its_own():
    seen = Observation("package", "nano", {"version": "1", "status": "half-configured"}, NOW)
    assert only(seen, "package").observed == {"status": "half-configured"}


def test_kinds_without_rules_cost_nothing():
    assert ENGINE.evaluate(Observation("weather", "x", {}, NOW), NOW) == []


def test_why_names_the_rule_its_place_and_the_waiver():
    waiver = Waiver("EG-FILE-002", "/usr/**", "ops", "hotfix", NOW + 1)
    why = Engine(RULES, (waiver,), World()).why(file(sha256=b"\2" * 32), NOW)
    assert why.results[0].rule.source == "10.toml:3"
    assert why.results[0].outcome is Outcome.FAIL
    assert why.waivers == (waiver,)
    assert why.reference["sha256"] == SSHD["sha256"]


@pytest.mark.parametrize("order", [RULES, RULES[::-1]])
def test_the_order_of_rules_does_not_matter(order):
    results = Engine(order, (), World()).evaluate(file(sha256=b"\2" * 32), NOW)
    assert {r.rule.id: r.outcome.value for r in results} == outcomes(file(sha256=b"\2" * 32))
