"""`edgeguard log [-f]`: events as they were recorded. `edgeguard log verify`: is the log whole? Without the daemon.

`export` and `import-receipt` are in `carrying`.
"""

from __future__ import annotations

import argparse
import os
import sys

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.cli.text import escape, wrap
from edgeguard.errors import ControlError, EdgeGuardError

OK, DEFECTS, UNKNOWN, DENIED = 0, 2, 3, 77
BESIDE = 9  # lines of a screen that are not defects
LIMITS = (
    "What this cannot see: the end of the log after its newest heartbeat and receipt; and whether the device really"
    " went off where a key was lost: who holds this device's key can pretend it. `edgeguard-collector verify` knows"
    " what was delivered."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("verify", "export", "import-receipt"),
        help="verify: check signatures and chains from end to end; export: sealed records for a stick; import-receipt:"
        " what came back",
    )
    parser.add_argument("path", nargs="?", metavar="DIR|FILE", help="of export: where to; of import-receipt: which")
    parser.add_argument("--to", metavar="FILE", default="", help="of export: the public key to encrypt to")
    parser.add_argument("--plain", action="store_true", help="of export: readable by anybody")
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="newest records to show (50)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")


def run(given: argparse.Namespace, console: Console) -> int:
    if given.action is None:
        return _show(given, console)
    if given.follow:
        raise ControlError("InvalidParameter", f"`log {given.action}` looks once: -f does not go with it")
    if (given.path is None) != (given.action == "verify"):
        raise ControlError("InvalidParameter", "`log export` takes a directory, `log import-receipt` a file")
    if given.action != "export" and (given.to or given.plain):
        raise ControlError("InvalidParameter", "--to and --plain go with `log export`")
    if given.action == "verify":
        return _verify(console)
    from edgeguard.cli import carrying

    if given.action == "export":
        return carrying.export(console, given.path, given.to, plain=given.plain)
    return carrying.take_receipt(console, given.path)


def _show(given: argparse.Namespace, console: Console) -> int:
    records = []
    for answer in console.ask("Log", lines=given.lines, follow=given.follow):
        record = answer.get("record")
        if not isinstance(record, dict):
            continue
        if console.form == "text":
            console.text(pages.log_line(record, console.cut))
        elif console.form == "jsonl" or given.follow:
            console.json(record)
        else:
            records.append(record)
        if given.follow:
            sys.stdout.flush()
    if console.form == "json" and not given.follow:
        console.json({"v": 1, "records": records})
    return 0


def _verify(console: Console) -> int:
    """0 no defect, 2 defects, 3 could not look, 77 not permitted."""
    from edgeguard.baseline.keys import device_public
    from edgeguard.cli.jsonform import iso
    from edgeguard.records import defects, evidence

    paths = console.settings.paths
    try:
        os.listdir(os.path.join(paths.state, "spool"))  # 0700: says at once who may look
        public = device_public(paths.state)
        device = evidence.Device(paths.state, paths.exchange, public, _collector(console.settings.uplink.collector_key))
        report = evidence.own(device)
    except PermissionError as error:
        return _sorry(console, f"{error.filename}: permission denied; the log is for root and the daemon", DENIED)
    except OSError as error:
        return _sorry(console, f"could not look: {error.filename or paths.state}: {error.strerror or error}", UNKNOWN)
    except EdgeGuardError as error:
        return _sorry(console, f"could not look: {error}", UNKNOWN)
    code = OK if report.clean else DEFECTS
    if not report.segments and report.clean:
        report.note("Nothing is sealed here, so there is nothing to verify.")
        code = UNKNOWN
    if console.form != "text":
        console.json({**defects.document(report, iso), "limits": LIMITS})
        return code
    most = max(3, (console.height - BESIDE) // 3) if console.cut else 200
    text = [*defects.lines(report, iso, escape, console.columns, most), *wrap(LIMITS, console.columns)]
    console.text("\n".join(text))
    return code


def _collector(path: str) -> bytes | None:
    """The key that signs receipts; None where this device has no collector."""
    from edgeguard.baseline.keys import read_public

    return read_public(path) if os.path.exists(path) else None


def _sorry(console: Console, why: str, code: int) -> int:
    if console.form != "text":
        console.json({"v": 1, "clean": None, "error": why})
    else:
        console.remark(f"edgeguard: {escape(why)}")
    return code
