"""`edgeguard scan --root DIR`: an image checked against a baseline, or against the rules of a policy. For CI: no
daemon, findings as text or JSON, and an exit code. What an image cannot show is said."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from edgeguard.cli import imaging, pages
from edgeguard.cli.building import BASELINE_MAX, manifest_path
from edgeguard.cli.console import Console
from edgeguard.cli.jsonform import finding_document
from edgeguard.cli.text import cut, escape
from edgeguard.cli.words import count, headline, paint, state
from edgeguard.errors import ControlError, DecodeError
from edgeguard.model import Columns, Observation, Operator, Origin, Rule, Severity, Status

OK, ATTENTION, CRITICAL, UNKNOWN = 0, 1, 2, 3
VERDICTS = ("OK", "WARN", "CRIT", "UNKNOWN")


def arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("an image, without a daemon")
    group.add_argument("--root", default="", metavar="DIR", help="check this root directory, mounted or unpacked")
    group.add_argument("--baseline", default="", metavar="FILE", help="against this baseline (.egb)")
    group.add_argument("--manifest", default="", metavar="FILE", help="its file manifest (.egm beside it)")
    group.add_argument("--key", default="", metavar="FILE", help="whose signature it must have: 64 hex digits")
    group.add_argument(
        "--policy", action="append", default=[], metavar="PATH", help="against this policy's rules alone"
    )


class Check:
    """One image, judged."""

    def __init__(self, console: Console, root: str, policy: Any, references: Any) -> None:
        from edgeguard.evaluate.engine import Engine
        from edgeguard.evaluate.ledger import Ledger

        self._console = console
        self.root = root
        self.policy = policy
        self.now = console.now
        self._engine = Engine(policy.rules, policy.waivers, references)
        self.ledger = Ledger()
        self.ledger.govern(self._engine, self.now)
        self.files = 0
        self.notes: list[str] = []
        self.unread: list[str] = []

    def take(self, seen: Observation) -> None:
        if seen.status is Status.UNREADABLE and seen.kind == "file":
            self.unread.append(f"{seen.subject}: {seen.note}")
        self.ledger.apply(self._engine.evaluate(seen, self.now), self.now)

    def progress(self, seen: Any) -> None:
        told = {"phase": "files", "done": seen.files, "total": seen.total_files or None, "bytes": seen.bytes}
        self._console.progress(pages.progress(told, self._console.columns))

    def took(self, summary: Any) -> None:
        self.files = summary.files
        self.notes += [f"{path}: not entered: {why}" for path, why in summary.skipped]

    def rest(self, known: Any) -> None:
        """Accounts, packages and sshd: what is there, and what the baseline knows and is not."""
        from edgeguard.sensors.offline import Offline

        offline = Offline(self.root)
        present: dict[str, set[str]] = {}
        for seen in offline.observe(self.now):
            present.setdefault(seen.kind, set()).add(seen.subject)
            self.take(seen)
        for kind, subjects in present.items():
            if "*" not in subjects:
                for subject in known.get(kind, {}).keys() - subjects:
                    self.take(Observation(kind, subject, {}, self.now, Status.ABSENT, Origin.SWEEP))
        self.notes += offline.notes
        self.unread += offline.unread

    def code(self) -> int:
        worst = max((finding.severity for finding in self.ledger.open()), default=Severity.INFORMATIONAL)
        if worst >= Severity.CRITICAL:
            return CRITICAL
        if worst >= Severity.MEDIUM:
            return ATTENTION
        return UNKNOWN if self.unread else OK


def run(given: argparse.Namespace, console: Console) -> int:
    if bool(given.baseline) == bool(given.policy):
        raise ControlError("InvalidParameter", "--root needs --baseline FILE or --policy PATH, one of them")
    root = imaging.root_of(given.root)
    started = time.monotonic()
    if given.baseline:
        check, facts = _against_baseline(given, console, root)
    else:
        check, facts = _against_policy(given, console, root)
    console.end_progress()
    code = max(check.code(), ATTENTION) if facts.get("other_image") else check.code()
    _tell(console, check, facts, code, time.monotonic() - started)
    return code


# -- against a baseline


def _against_baseline(given: argparse.Namespace, console: Console, root: str) -> tuple[Check, dict[str, Any]]:
    from edgeguard.baseline.contents import in_terms_of
    from edgeguard.baseline.document import References
    from edgeguard.baseline.image import image_of, lies_in
    from edgeguard.codec.digests import Algorithm
    from edgeguard.codec.manifest import Reader
    from edgeguard.sensors.look import masked
    from edgeguard.sensors.walk import resolved
    from edgeguard.sensors.watching import Plan

    baseline, verified = _baseline(given)
    plan = Plan(resolved(baseline.policy.watches, root))
    fd = _manifest(given, baseline)
    reader = Reader(fd) if fd is not None else None
    algorithm = reader.algorithm if reader is not None else Algorithm.SHA256

    def expected(path: str) -> Columns | None:
        entry = reader.lookup(os.fsencode(path)) if reader is not None else None
        watch = plan.decide(path)
        if entry is None:
            return None
        return (masked(entry, watch) if watch is not None else entry).columns(algorithm)

    policy = baseline.policy._replace(rules=in_terms_of(baseline.policy.rules, algorithm))
    check = Check(console, root, policy, References(baseline, expected))
    _sweep(check, plan, reader, algorithm)
    _accepted(check, plan, baseline.references.get("file", {}), algorithm)
    check.rest(baseline.references)
    image, there = image_of(baseline), lies_in(root)
    other = image is not None and (there is None or there.sha256 != image.sha256)
    facts = {
        "baseline": baseline.revision,
        "signer": baseline.signer.hex() or None,
        "verified": verified,
        "image": image.name if image is not None else None,
        "other_image": ((there.name if there is not None else "") or "one without a name") if other else None,
    }
    if fd is not None:
        os.close(fd)
    return check, facts


def _baseline(given: argparse.Namespace) -> tuple[Any, bool]:
    """The baseline, and whether its signature was checked."""
    from edgeguard.baseline.document import Baseline, open_trusted
    from edgeguard.baseline.keys import read_public
    from edgeguard.codec import cose

    data = imaging.read(given.baseline, BASELINE_MAX)
    if given.key:
        return open_trusted(data, [read_public(given.key)]), True
    try:
        parts = cose.parse1(data)
    except DecodeError:
        return Baseline.from_cbor(data), False  # not signed yet
    return Baseline.from_cbor(parts.payload, parts.kid), False


def _manifest(given: argparse.Namespace, baseline: Any) -> int | None:
    """The manifest that the baseline names, open; its content is the one that was signed."""
    from edgeguard.codec import manifest

    if baseline.files is None:
        return None
    path = given.manifest or manifest_path(given.baseline)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if os.fstat(fd).st_size != baseline.files.size or manifest.digest(fd) != baseline.files.sha256:
        os.close(fd)
        raise ControlError("Corrupt", f"{path}: not the file manifest that this baseline names")
    return fd


def _sweep(check: Check, plan: Any, reader: Any, algorithm: Any) -> None:
    """Every watched file against the manifest; what is as it should be is not told."""
    from edgeguard.sensors.looker import Summary
    from edgeguard.sensors.sweep import HASH_FILE_MAX, Sweep

    summary = Summary()
    sweeping = Sweep(plan, check.root, reader, check.now, Origin.SWEEP, check.take, summary, "", algorithm)
    sweeping.run(None, None, None, False, HASH_FILE_MAX, time.time_ns, check.progress)
    check.took(summary)


def _accepted(check: Check, plan: Any, accepted: Any, algorithm: Any) -> None:
    """Files that were accepted otherwise than in the manifest are looked at by themselves."""
    from edgeguard.codec.digests import swift
    from edgeguard.linux.inside import parent_inside
    from edgeguard.sensors.look import Eye, observe
    from edgeguard.sensors.sweep import HASH_FILE_MAX

    eye = Eye(HASH_FILE_MAX, digester=swift(algorithm))
    for path in accepted:
        try:
            place = parent_inside(check.root, path)[len(check.root) :]
        except OSError as error:
            check.unread.append(f"{path}: {error.strerror}")
            continue
        seen = observe(eye, plan.decide(path), check.root, place, check.now, Origin.SWEEP)
        check.take(seen._replace(subject=path))


# -- against a policy alone


def _against_policy(given: argparse.Namespace, console: Console, root: str) -> tuple[Check, dict[str, Any]]:
    """Rules that ask nothing of reference values. The others are counted: they say nothing here."""
    from edgeguard.baseline.document import Baseline, References
    from edgeguard.sensors import sweep

    policy = imaging.policy_of(root, given.policy, console.now)
    kept = tuple(rule for rule in policy.rules if not _asks_reference(rule))
    left_out = len(policy.rules) - len(kept)
    policy = policy._replace(rules=kept)
    check = Check(console, root, policy, References(Baseline(1, 0, 0, policy)))
    with tempfile.TemporaryFile() as manifest, tempfile.TemporaryFile() as observed:
        total: Callable[[Any], None] = check.progress
        summary = sweep.learn(policy.watches, root, manifest, observed, None, total, now=check.now, emit=check.take)
    check.took(summary)
    check.rest({})
    return check, {"baseline": None, "image": None, "rules": len(kept), "rules_left_out": left_out}


def _asks_reference(rule: Rule) -> bool:
    return any(
        condition.column == "known" or condition.operator in (Operator.SAME, Operator.NOT_BELOW)
        for condition in (*rule.where, *rule.expect)
    )


# -- telling


def _tell(console: Console, check: Check, facts: dict[str, Any], code: int, seconds: float) -> None:
    from edgeguard.sensors.offline import NOT_IN_AN_IMAGE

    found = [finding_document(finding) for finding in check.ledger.open()]
    tail = {
        "verdict": VERDICTS[code],
        "open": len(found),
        "suppressed": len(check.ledger.suppressed()),
        "overflow": dict(check.ledger.overflow),
        "files": check.files,
        "root": escape(check.root),
        **{name: escape(value) if isinstance(value, str) else value for name, value in facts.items()},
        "unread": [escape(line) for line in check.unread],
        "notes": [escape(line) for line in check.notes],
        "not_looked_at": list(NOT_IN_AN_IMAGE),
    }
    if console.form == "json":
        console.json({"v": 1, "findings": found, **tail})
    elif console.form == "jsonl":
        for document in found:
            console.json(document)
        console.json({"v": 1, "summary": tail})
    else:
        for document in found:
            console.text(_line(document, console))
        console.text(_summary(console, check, facts, code, seconds))
    if console.form == "text":
        imaging.tell(console, [*check.unread, *check.notes])


def _line(document: dict[str, Any], console: Console) -> str:
    word = state(document)
    text = f"{document['code']:<12} {headline(document)}"
    text = cut(text, max(20, console.cut - 6)) if console.cut else text
    return f"{paint(word, console.color)}{' ' * (5 - len(word))} {text}"


def _summary(console: Console, check: Check, facts: dict[str, Any], code: int, seconds: float) -> str:
    from edgeguard.cli.text import wrap

    verdict = VERDICTS[code]
    numbers = f"{count(len(check.ledger.open()), 'finding')}, {len(check.ledger.suppressed())} waived"
    head = f"{verdict}  {numbers}; {count(check.files, 'file')} looked at in {seconds:.0f} s."
    lines = [head.replace(verdict, paint(verdict, console.color), 1)]
    if facts["baseline"] is not None:
        image = f" for image {escape(facts['image'])}" if facts["image"] else ""
        signed = "signature good" if facts["verified"] else "signature not checked (--key)"
        lines += wrap(f"Baseline r{facts['baseline']}{image}, {signed}.", console.columns)
    else:
        without = f"{count(facts['rules'], 'rule')}; {facts['rules_left_out']} ask for reference values, which only a"
        lines += wrap(f"{without} baseline has (--baseline).", console.columns)
    if facts.get("other_image"):
        lines += wrap(f"This is another image: {escape(facts['other_image'])}.", console.columns)
    if check.ledger.overflow:
        told = ", ".join(f"{number} of {name}" for name, number in sorted(check.ledger.overflow.items()))
        lines += wrap(f"Not listed, because there are too many: {told}.", console.columns)
    if check.unread:
        lines += wrap(f"{count(len(check.unread), 'place')} could not be read; see below.", console.columns)
    lines += wrap(f"Not in an image: {imaging.not_there()}.", console.columns)
    return "\n".join(lines)
