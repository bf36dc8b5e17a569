"""`edgeguard baseline ...`: what the device is judged by. `build`, `sign` and `verify` work on files, without the
daemon."""

from __future__ import annotations

import argparse
import os
from typing import Any

from edgeguard.cli import building, pages
from edgeguard.cli.console import Console
from edgeguard.cli.jsonform import iso
from edgeguard.cli.scan import follow
from edgeguard.cli.words import age, count
from edgeguard.errors import ControlError, DecodeError

FILE_MAX = 64 * 1024 * 1024  # bytes; what the decoder of baselines takes is less


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("show", help="the baseline in force", allow_abbrev=False)
    actions.add_parser("history", help="revisions that were in force", allow_abbrev=False)
    diff = actions.add_parser("diff", help="what a revision changed", allow_abbrev=False)
    diff.add_argument("revision", nargs="?", default="", metavar="REVISION", help="compare with it (the one before)")
    learn = actions.add_parser("learn", help="take down how the device looks now", allow_abbrev=False)
    learn.add_argument("-r", "--reason", required=True, help="why; recorded with your name")
    install = actions.add_parser("install", help="bring a signed baseline into force", allow_abbrev=False)
    install.add_argument("file", metavar="FILE", help="signed baseline (.egb)")
    install.add_argument("--manifest", default="", metavar="FILE", help="its file manifest (.egm)")
    building.arguments(actions)
    sign = actions.add_parser("sign", help="sign a baseline with a fleet key", allow_abbrev=False)
    sign.add_argument("file", metavar="FILE", help="a baseline, signed by whomever, or its plain CBOR")
    sign.add_argument("--key", required=True, metavar="FILE", help="32 bytes: the private Ed25519 key")
    sign.add_argument("--to", default="", metavar="FILE", help="where to write (FILE.signed.egb)")
    sign.add_argument("--revision", type=int, default=0, metavar="N", help="under another revision")
    sign.add_argument("--note", default=None, metavar="TEXT", help="a remark that history shows")
    verify = actions.add_parser("verify", help="check a signed baseline", allow_abbrev=False)
    verify.add_argument("file", metavar="FILE", help="signed baseline (.egb)")
    verify.add_argument("--key", default="", metavar="FILE", help="public key, 64 hex digits (those the device trusts)")


def run(given: argparse.Namespace, console: Console) -> int:
    return {
        "show": _show,
        "history": _history,
        "diff": _diff,
        "learn": _learn,
        "install": _install,
        "build": building.run,
        "sign": _sign,
        "verify": _verify,
    }[given.action](given, console)


# -- asking the daemon


def _show(given: argparse.Namespace, console: Console) -> int:
    del given
    baseline = console.ask_once("BaselineShow").get("baseline")
    if console.form != "text":
        console.json({"v": 1, "baseline": baseline})
    elif not isinstance(baseline, dict):
        console.text("No baseline is in force. Next: edgeguard baseline learn")
    else:
        console.text(_lines(baseline))
    return 0 if baseline else 3


def _lines(baseline: dict[str, Any]) -> str:
    references = baseline.get("references") or {}
    learned = ", ".join(f"{number} {kind}" for kind, number in sorted(references.items()) if kind != "image")
    expires = baseline.get("expires")
    image = baseline.get("image")
    digest = {"sha256": "SHA-256", "blake2b": "BLAKE2b"}.get(str(baseline.get("contents")))
    contents = f", contents by {digest}" if digest else ""
    rows = [
        ("Revision", f"r{baseline.get('revision')}, mode {baseline.get('mode')}"),
        ("Signed by", f"{baseline.get('signer') or '?'} (trust: {baseline.get('trust')})"),
        ("Valid", f"from {_day(baseline.get('not_before'))} until {_day(expires) if expires else 'the next one'}"),
        ("Policy", f"{count(baseline.get('rules'), 'rule')}, {count(baseline.get('waivers'), 'waiver')}"),
        ("Files", f"{count(baseline.get('files'), 'file')}{contents}"),
        ("Others", learned or "none"),
        ("Digest", str(baseline.get("digest") or "?")),
        *([("Image", str(image))] if image else []),
    ]
    return "\n".join(f"{label:<10} {text}" for label, text in rows)


def _day(ms: Any) -> str:
    return iso(ms)[:10] if isinstance(ms, int) else "?"


def _history(given: argparse.Namespace, console: Console) -> int:
    del given
    answer = console.ask_once("BaselineHistory")
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        console.text(pages.history(answer.get("revisions") or [], console.now, console.columns))
    return 0


def _diff(given: argparse.Namespace, console: Console) -> int:
    changes = []
    tail: dict[str, Any] = {}
    for answer in console.ask("BaselineDiff", against=given.revision.lstrip("r")):
        change = answer.get("change")
        if not isinstance(change, dict):
            tail = answer
        elif console.form == "text":
            console.text(pages.change_line(change, console.cut))
        elif console.form == "jsonl":
            console.json(change)
        else:
            changes.append(change)
    if console.form == "json":
        console.json({"v": 1, "changes": changes, **tail})
    elif console.form == "text":
        parts = ", ".join(f"{tail.get(what, 0)} {what}" for what in ("added", "removed", "changed"))
        console.text(f"r{tail.get('from')} -> r{tail.get('to')}: {parts}")
    return 0


def _learn(given: argparse.Namespace, console: Console) -> int:
    answer = follow(console, "BaselineLearn", reason=given.reason)
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        took = age((answer.get("seconds") or 0) * 1000)
        console.text(f"Baseline r{answer.get('revision')}: {count(answer.get('files'), 'file')}, {took}.")
    return 0


def _install(given: argparse.Namespace, console: Console) -> int:
    path = os.path.abspath(given.file)
    manifest = os.path.abspath(given.manifest) if given.manifest else ""
    answer = console.ask_once("BaselineInstall", path=path, manifest=manifest)
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        console.text(installed(answer))
    return 0


def installed(answer: dict[str, Any]) -> str:
    """What became of a baseline that was handed to the daemon."""
    name = f"Baseline r{answer.get('revision')}"
    if answer.get("waits"):
        kept = f"; r{answer['previous']} stays in force" if answer.get("previous") else ""
        return f"{name} waits until image {answer.get('image')} runs{kept}. Signed by {answer.get('signer')}."
    if answer.get("again"):
        return f"{name} lies here already, for image {answer.get('image')}, which runs."
    before = f" (before: r{answer['previous']})" if answer.get("previous") else ""
    return f"{name} is in force{before}, signed by {answer.get('signer')}."


# -- files


def _sign(given: argparse.Namespace, console: Console) -> int:
    from edgeguard.baseline.document import Baseline, sign
    from edgeguard.codec import cose

    data = _read(given.file)
    try:
        payload = cose.parse1(data).payload
    except DecodeError:
        payload = data  # not signed yet
    baseline = Baseline.from_cbor(payload)
    if given.revision:
        baseline = baseline._replace(revision=given.revision)
    if given.note is not None:
        baseline = baseline._replace(note=given.note)
    signed = sign(baseline, cose.load_seed([given.key]))
    target = given.to or f"{given.file.removesuffix('.egb')}.signed.egb"
    _write(target, signed)
    if console.form != "text":
        console.json({"v": 1, "file": target, "revision": baseline.revision, "bytes": len(signed)})
    else:
        console.text(f"Wrote {target}: r{baseline.revision}, {len(signed):,} bytes.")
    return 0


def _verify(given: argparse.Namespace, console: Console) -> int:
    from edgeguard.baseline.document import open_trusted
    from edgeguard.baseline.keys import device_public, read_public, trusted_keys

    data = _read(given.file)
    if given.key:
        keys, trust = [read_public(given.key)], "key given"
    else:
        paths = console.settings.paths
        keys, trust = trusted_keys(paths.trust, b"")
        keys = keys if trust == "fleet" else [device_public(paths.state)]
    baseline = open_trusted(data, keys)
    signer = baseline.signer.hex() if isinstance(baseline.signer, bytes) else str(baseline.signer)
    if console.form != "text":
        console.json(
            {"v": 1, "revision": baseline.revision, "signer": signer, "trust": trust, "expires": baseline.expires}
        )
    else:
        end = f", until {_day(baseline.expires)}" if baseline.expires else ""
        rules = count(len(baseline.policy.rules), "rule")
        console.text(f"Good: r{baseline.revision}, {rules}, signed by {signer} ({trust}){end}.")
    return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us
    with open(fd, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ControlError("TooLong", f"{path}: larger than {FILE_MAX} bytes")
    return data


def _write(path: str, data: bytes) -> None:
    """A whole new file or none."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(temporary, path)
