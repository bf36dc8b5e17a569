"""The baseline's bytes: round trips, every cut, every flipped bit, and every reason to refuse one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.baseline import document
from edgeguard.baseline.document import Baseline, ManifestRef, References, compile_baseline, open_signed, sign
from edgeguard.baseline.policy import Policy, PolicySettings
from edgeguard.codec import cbor, cose
from edgeguard.errors import (
    BadSignature,
    BaselineRefused,
    Corrupt,
    DecodeError,
    Expired,
    NotYetValid,
    OlderRevision,
    Truncated,
    WrongDevice,
)
from edgeguard.model import Condition, Mode, Operator, Rule, Severity, Waiver, Watch

SEED = bytes(range(32))
PUBLIC = cose.public_of(SEED)
DEVICE = cose.device_id(PUBLIC)
NOW = 1_790_000_000_000
REF = ManifestRef(bytes(32), 100, 3)

RULE = Rule(
    "file.content.program",
    "EG-FILE-002",
    "file",
    Severity.CRITICAL,
    "changed",
    (Condition("category", Operator.IS, "program"), Condition("uid", Operator.IN, (0, 1))),
    (Condition("sha256", Operator.SAME, True),),
    Mode.AUDIT,
    "restore-file",
    "reinstall it",
    "10.toml:3",
)
POLICY = Policy(
    (Watch("/usr", "program", ("**/*.tmp",), protect=True, source="a:1"), Watch("/", "other", only="setid")),
    (RULE,),
    (Waiver("EG-FILE-002", "/usr/bin/*", "anna", "hotfix", NOW + 1000, "b:2"),),
    PolicySettings(1000, ("usb",)),
)
REFERENCES = {
    "listener": {"tcp/0.0.0.0:22": {"exe": "/usr/sbin/sshd", "uid": 0}},
    "file": {"/etc/gone": None, "/etc/\udcff\n\x1b": {"sha256": b"x" * 32, "target": "\udc80", "mode": 0o644}},
    "mount": {"/": {"options": ("ro", "nodev"), "source": ""}},
    "usb": {},
}


def small(**changes):
    values = {"revision": 7, "created": NOW, "not_before": NOW, "policy": Policy(rules=(RULE,)), "device": DEVICE}
    return Baseline(**{**values, **changes})


def opened(data, trusted=(PUBLIC,), device=DEVICE, floor=0, now=NOW):
    return open_signed(data, trusted, device, floor, now)


def test_round_trip_of_everything():
    made = compile_baseline(
        POLICY,
        REFERENCES,
        REF,
        3,
        NOW,
        device=DEVICE,
        target="northfield/pump",
        parent=bytes(32),
        note="learned \udce9",
    )
    assert made.expires == NOW + 1000
    found = Baseline.from_cbor(made.to_cbor())
    assert found == made
    assert found.to_cbor() == made.to_cbor()
    assert found.references["mount"]["/"]["options"] == ("ro", "nodev")


def test_equal_content_has_equal_bytes():
    turned = {kind: dict(reversed(table.items())) for kind, table in reversed(REFERENCES.items())}
    one = compile_baseline(POLICY, REFERENCES, REF, 3, NOW)
    two = compile_baseline(POLICY, turned, REF, 3, NOW)
    assert one.to_cbor() == two.to_cbor()


def test_mode_follows_the_rules():
    assert small().mode is Mode.AUDIT
    enforcing = Rule("a", "EG-FILE-002", "file", Severity.LOW, "t", mode=Mode.ENFORCE)
    assert small(policy=Policy(rules=(RULE, enforcing))).mode is Mode.ENFORCE


def test_skipped_kinds_are_known_to_be_empty():
    made = compile_baseline(POLICY, {"usb": {"1d6b:0002/x": {}}}, None, 1, NOW)
    assert made.references == {"usb": {}}
    assert References(made).learned("usb")


def test_open_signed_accepts_and_names_the_signer():
    baseline = opened(sign(small(), SEED))
    assert baseline.revision == 7
    assert baseline.signer == cose.kid_of(PUBLIC)
    assert opened(sign(small(device=None), SEED), floor=7).device is None


OTHER = cose.public_of(bytes(32))


@pytest.mark.parametrize(
    ("error", "code", "changes", "how"),
    [
        (BadSignature, "EG-BASE-001", {}, {"trusted": [OTHER]}),
        (BadSignature, "EG-BASE-001", {}, {"trusted": []}),
        (OlderRevision, "EG-BASE-002", {}, {"floor": 8}),
        (WrongDevice, "EG-BASE-003", {}, {"device": bytes(16)}),
        (Expired, "EG-BASE-004", {"expires": NOW}, {}),
        (NotYetValid, "EG-BASE-007", {}, {"now": NOW - 1}),
    ],
)
def test_refusals(error, code, changes, how):
    with pytest.raises(BaselineRefused) as caught:
        opened(sign(small(**changes), SEED), **how)
    assert type(caught.value) is error
    assert caught.value.code == code


def test_truncated_and_damaged_have_their_codes():
    data = sign(small(), SEED)
    with pytest.raises(Truncated):
        opened(data[:-1])
    with pytest.raises(Corrupt):
        opened(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corrupt):
        opened(data + b"\0")
    assert (Truncated.code, Corrupt.code) == ("EG-BASE-005", "EG-BASE-006")


def test_a_signature_for_another_purpose_does_not_count():
    with pytest.raises(Corrupt):
        opened(cose.sign1(small().to_cbor(), SEED, cose.SEGMENT_AAD))


def test_signed_nonsense_is_corrupt():
    for payload in (b"", b"\xa0", cbor.encode([1]), small().to_cbor()[:-1]):
        with pytest.raises(Corrupt, match="not understood"):
            opened(cose.sign1(payload, SEED, cose.BASELINE_AAD))


def test_every_cut_is_named():
    data = sign(small(), SEED)
    for cut in range(len(data)):
        with pytest.raises(Truncated):
            opened(data[:cut])


def test_every_flipped_bit_is_named():
    """Exhaustive: no single bit of a signed baseline can be another one unnoticed."""
    data = sign(small(policy=Policy()), SEED)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Truncated, Corrupt, BadSignature)):
            opened(bytes(flipped))


def test_every_flipped_bit_of_the_payload_is_a_value_or_decode_error():
    payload = compile_baseline(POLICY, REFERENCES, REF, 3, NOW).to_cbor()
    for bit in range(0, len(payload) * 8, 3):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert Baseline.from_cbor(bytes(flipped)).to_cbor() == bytes(flipped)
        except DecodeError:
            continue


WATCH = ["/", "other", [], True, True, False, "", ""]


def wrong(path, value):
    plain = cbor.decode(compile_baseline(POLICY, REFERENCES, REF, 3, NOW, device=DEVICE).to_cbor())
    at = plain
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return cbor.encode(plain)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("v",), 2, "baseline.v: expected version 1"),
        (("v",), True, "baseline.v"),
        (("revision",), 0, "baseline.revision: expected a whole number from 1"),
        (("device",), b"x", "baseline.device: expected 16 bytes"),
        (("expires",), "soon", "baseline.expires"),
        (("files",), [bytes(32), 1], "baseline.files: expected 3 elements"),
        (("files", 0), bytes(31), "baseline.files[0]: expected 32 bytes"),
        (("target",), 1, "baseline.target: expected a text"),
        (("policy", "rules", 0, 3), 9, "baseline.policy.rules[0][3]: expected a known"),
        (("policy", "rules", 0, 7), "bold", "baseline.policy.rules[0][7]: expected a known"),
        (("policy", "rules", 0, 6, 0, 1), "equals", "baseline.policy.rules[0][6][0][1]: expected a known"),
        (("policy", "rules", 0, 6, 0, 2), [1, "a"], "baseline.policy.rules[0][6][0][2]: a column holds"),
        (("policy", "watches", 0, 3), 1, "baseline.policy.watches[0][3]: expected true or false"),
        (("policy", "watches", 1), [*WATCH, ["type"], "", [], []], "baseline.policy.watches[1]:"),
        (
            ("policy", "watches", 1),
            [*WATCH, ["type"], "", [1], ["**"]],
            "baseline.policy.watches[1]",
        ),
        (("policy", "watches", 1), [*WATCH, ["type"]], None),
        (("policy", "watches", 1), [*WATCH, ["type"], "", ["**"]], None),
        (("policy", "waivers", 0, 4), None, "baseline.policy.waivers[0][4]"),
        (("policy", "rules"), [], None),
        (("references",), [], "baseline.references: expected a map"),
        (("references",), {1: []}, "baseline.references: expected text keys"),
        (("references", "usb"), [["b", {}], ["a", {}]], "baseline.references.usb[1]: expected subjects in order"),
        (("references", "usb"), [["b", {}], ["b", {}]], "baseline.references.usb[1]: expected subjects in order"),
        (("references", "usb"), [["b", 1]], "baseline.references.usb[0][1]: columns"),
        (("more",), 1, "baseline: expected a map of"),
    ],
)
def test_wrong_places_are_named(path, value, said):
    data = wrong(path, value)
    if said is None:
        Baseline.from_cbor(data)
        return
    with pytest.raises(DecodeError) as caught:
        Baseline.from_cbor(data)
    assert str(caught.value).startswith(said)


def test_rule_ids_are_unique():
    plain = cbor.decode(small().to_cbor())
    plain["policy"]["rules"] *= 2
    with pytest.raises(DecodeError, match="every id once"):
        Baseline.from_cbor(cbor.encode(plain))


names = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | names
    | st.binary(max_size=40)
    | st.lists(names).map(tuple)
)
tables = st.dictionaries(names, st.none() | st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), tables, max_size=3), names, st.integers(1, 2**31))
def test_round_trip_of_any_reference_values(references, note, revision):
    made = compile_baseline(Policy(), references, None, revision, NOW, note=note)
    assert Baseline.from_cbor(made.to_cbor()) == made


def test_accepting_changes_one_reference_value():
    first = compile_baseline(POLICY, REFERENCES, REF, 3, NOW)
    changed = document.with_reference(first, "file", "/etc/hosts", {"sha256": b"y" * 32})
    gone = document.with_reference(changed, "file", "/etc/motd", None)
    gone = document.with_reference(gone, "listener", "tcp/0.0.0.0:22", None)
    assert first.references == compile_baseline(POLICY, REFERENCES, REF, 3, NOW).references
    assert Baseline.from_cbor(gone.to_cbor()) == gone
    manifest = {"/etc/motd": {"sha256": b"m"}, "/etc/hosts": {"sha256": b"h"}, "/etc/issue": {"sha256": b"i"}}
    references = References(gone, manifest.get)
    assert references.expected("file", "/etc/hosts") == {"sha256": b"y" * 32}
    assert references.expected("file", "/etc/motd") is None
    assert references.expected("file", "/etc/issue") == {"sha256": b"i"}
    assert references.expected("file", "/etc/none") is None
    assert references.expected("listener", "tcp/0.0.0.0:22") is None
    assert references.expected("process", "x") is None
    assert references.learned("listener")
    assert references.learned("file")
    assert not references.learned("process")


def test_for_judging_keeps_what_rules_ask():
    rules = (
        Rule("a", "EG-PKG-001", "package", Severity.LOW, "t", (), (Condition("status", Operator.IS, "installed"),)),
        Rule("b", "EG-USB-001", "usb", Severity.LOW, "t", (), (Condition("known", Operator.IS, True),)),
    )
    tables = {kind: {"x": {"c": 1}} for kind in ("package", "usb", "file", "listener", "mount")}
    slim = document.for_judging(compile_baseline(Policy(rules=rules), tables, None, 1, NOW))
    assert {kind for kind, table in slim.references.items() if table} == {"usb", "file", "listener"}
    assert References(slim).learned("package")


def test_reissue_goes_forward():
    old = compile_baseline(POLICY, REFERENCES, REF, 3, NOW)
    new = document.reissue(old, 9, NOW + 5, b"p" * 32, "back to r3")
    assert (new.revision, new.expires, new.references) == (9, NOW + 1005, old.references)
