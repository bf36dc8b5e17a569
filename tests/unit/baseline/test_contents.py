"""Which digest a baseline gets, and what rules mean by it: `same` asks for the content in every baseline, a digest from
elsewhere only where there is one of its kind, and what cannot be asked is undecided, never fulfilled."""

from __future__ import annotations

import pytest

from edgeguard.baseline import policy as policies
from edgeguard.baseline.contents import OtherDigest, check, chosen, in_terms_of, named
from edgeguard.baseline.document import Baseline
from edgeguard.codec.digests import Algorithm
from edgeguard.errors import DecodeError, PolicyError
from edgeguard.evaluate.engine import Engine
from edgeguard.model import Columns, Observation, Outcome, Rule

SHA256, BLAKE2B = Algorithm.SHA256, Algorithm.BLAKE2B
SAME = "expect = { sha256 = { same = true } }"


def policy(*expects: str, digest: str = "") -> policies.Policy:
    text = f'[learn]\ndigest = "{digest}"\n' if digest else ""
    for number, expect in enumerate(expects):
        text += f'[[rule]]\nid = "r{number}"\ncode = "EG-FILE-002"\nkind = "file"\nseverity = "high"\n{expect}\n'
    return policies.parse([("a.toml", text.encode())])


def value(column: str) -> str:
    return f'where = {{ {column} = "{"0f" * 32}" }}\nexpect = {{ status = "absent" }}'


@pytest.mark.parametrize("quickest", Algorithm)
def test_who_chooses(quickest: Algorithm) -> None:
    assert chosen(policy(SAME), quickest) is quickest, "the device, where nobody says anything"
    assert chosen(policy(SAME, digest="auto"), quickest) is quickest
    for algorithm in Algorithm:
        assert chosen(policy(SAME, digest=algorithm.value), quickest) is algorithm
        assert chosen(policy(SAME, value(algorithm.value)), quickest) is algorithm, "a rule that names a value"


def test_what_cannot_be_had_is_refused_with_the_rule() -> None:
    wrong = policy(SAME, value("sha256"))
    with pytest.raises(OtherDigest, match=r"rule r1 \(a.toml:.*\) compares sha256 .* has digests by BLAKE2b"):
        check(wrong.rules, BLAKE2B)
    check(wrong.rules, SHA256)
    for policy_of in (
        lambda: policy(value("sha256"), digest="blake2b"),
        lambda: policy(value("blake2b"), digest="sha256"),
        lambda: policy(value("blake2b"), value("sha256")),
    ):
        with pytest.raises(PolicyError, match="compares"):
            policy_of()


def test_another_word_is_a_mistake_with_its_place() -> None:
    with pytest.raises(PolicyError, match=r"a.toml:2:10: .*md5"):
        policy(SAME, digest="md5")


def test_rules_in_terms_of_a_baseline() -> None:
    rules = policy(SAME, "expect = { mode = { same = true } }", "expect = { blake2b = { same = true } }").rules
    assert [rule.expect[0].column for rule in rules] == ["sha256", "mode", "sha256"], "as it is read"
    rules = (*rules[:2], in_terms_of(rules, BLAKE2B)[2])
    assert named(rules) == {}
    assert [rule.expect[0].column for rule in in_terms_of(rules, SHA256)] == ["sha256", "mode", "sha256"]
    assert [rule.expect[0].column for rule in in_terms_of(rules, BLAKE2B)] == ["blake2b", "mode", "blake2b"]
    assert in_terms_of(rules, SHA256)[0] is rules[0]


class Known:
    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def expected(self, _kind: str, _subject: str) -> Columns | None:
        return self.columns


def outcome(rules: tuple[Rule, ...], known: Columns, seen: Columns) -> Outcome:
    (result,) = Engine(rules, (), Known(known)).evaluate(Observation("file", "/a", seen, 1), 1)
    return result.outcome


def test_the_engine_asks_for_the_content() -> None:
    rules = policy(SAME).rules
    good, bad = {"blake2b": b"g" * 32}, {"blake2b": b"b" * 32}
    assert outcome(in_terms_of(rules, BLAKE2B), good, good) is Outcome.PASS
    assert outcome(in_terms_of(rules, BLAKE2B), good, bad) is Outcome.FAIL
    assert outcome(rules, good, bad) is Outcome.UNKNOWN, "asked by the wrong name it is undecided, never as expected"
    assert outcome(rules, good, good) is Outcome.UNKNOWN
    assert outcome(in_terms_of(rules, BLAKE2B), good, {"sha256": b"g" * 32}) is Outcome.UNKNOWN


@pytest.mark.parametrize("digest", ["auto", "sha256", "blake2b"])
def test_the_choice_goes_with_the_baseline(digest: str) -> None:
    baseline = Baseline(1, 0, 0, policy(SAME, digest=digest))
    data = baseline.to_cbor()
    assert Baseline.from_cbor(data).policy.settings.learn_digest == digest
    assert (b"auto" in data) is False, "one value, one spelling"
    assert Baseline.from_cbor(data).to_cbor() == data


@pytest.mark.parametrize("word", [b"eight67", b"SHA256!"])
def test_an_unknown_choice_is_refused_with_its_place(word: bytes) -> None:
    data = Baseline(1, 0, 0, policy(SAME, digest="blake2b")).to_cbor()
    assert data.count(b"gblake2b") == 1
    with pytest.raises(DecodeError, match=r"settings\[2\]: no digest is called"):
        Baseline.from_cbor(data.replace(b"gblake2b", b"g" + word))
