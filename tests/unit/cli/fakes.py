"""A daemon in miniature: the real server with handlers that answer from the documents below."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "control"))

from loopers import Serving

from edgeguard.cli import render
from edgeguard.control import dump
from edgeguard.control_server.peers import Rights
from edgeguard.control_server.server import Server
from edgeguard.errors import ControlError

NOW = 1_800_000_000_000

SSHD = {
    "v": 1,
    "id": "F-7K2M",
    "code": "EG-FILE-002",
    "severity": "critical",
    "state": "open",
    "outcome": "fail",
    "title": "content",
    "kind": "file",
    "subject": "/usr/sbin/sshd",
    "rule": "file-content",
    "first_seen": "2027-01-15T07:58:00Z",
    "last_seen": "2027-01-15T07:58:00Z",
    "count": 1,
    "origin": "live",
    "expected": {"sha256": "9c" * 32},
    "observed": {"sha256": "77" * 32},
    "actor": {
        "pid": 2198,
        "exe": "/usr/bin/cp",
        "argv": ["cp"],
        "uid": 0,
        "user": "root",
        "login_uid": 1001,
        "login_user": "anna",
        "tty": "",
        "address": "10.0.3.8",
        "unit": "",
        "parents": [[2100, "/usr/bin/bash"], [900, "/usr/sbin/sshd"]],
    },
    "details": {},
    "note": "",
    "fix": "",
    "waiver": "",
    "remediation": "",
    "resolved_at": None,
    "mark": "0badf00d",
}
PORT = {
    **SSHD,
    "id": "F-3XQ9",
    "code": "EG-PORT-001",
    "severity": "high",
    "kind": "listener",
    "subject": "tcp/0.0.0.0:4444",
    "first_seen": "2027-01-15T07:58:20Z",
    "expected": {},
    "observed": {"exe": "/tmp/.x", "port": 4444},
    "actor": None,
    "details": {"pid": 2211, "exe": "/tmp/.x"},
}
GOOD = {
    "v": 1,
    "verdict": "OK",
    "name": "pump-07",
    "fleet": "northfield",
    "at": NOW,
    "valid_until": NOW + 180_000,
    "checked": NOW - 42_000,
    "clock_synchronised": True,
    "areas": {
        "files": {"state": "OK", "watched": 12431, "differ": 0, "checked": NOW - 3 * 3_600_000},
        "ports": {"state": "OK", "listening": 5, "unexpected": 0},
        "processes": {"state": "OK", "running": 61, "unusual": 0},
        "usb": {"state": "OK", "devices": 3, "unknown": 0},
        "hardening": {"state": "OK", "rules": 40, "met": 38, "waived": 2},
        "packages": {"state": "OK", "installed": 612, "incomplete": 0, "changed": NOW - 86_400_000},
        "log": {"state": "OK", "sequence": 48112, "since": NOW - 100 * 86_400_000, "error": ""},
        "uplink": {"state": "OK", "waiting": 0, "last_sent": NOW - 12_000, "error": ""},
        "clock": {"state": "OK", "synchronised": True},
    },
    "findings": [],
    "open": 0,
    "suppressed": 0,
    "closed_24h": 0,
    "policy": {"revision": 41, "trust": "fleet", "signer": "ops@northfield", "mode": "enforce", "expires": None},
    "daemon": {
        "version": "0.4.2",
        "pid": 412,
        "started": NOW - 19 * 86_400_000,
        "rss": 18_000_000,
        "cpu_percent": 0.4,
    },
    "learning": None,
    "problems": [],
    "next": "",
}


def with_areas(document, **areas):
    return {**document, "areas": {**document["areas"], **areas}}


BAD = with_areas(
    {
        **GOOD,
        "verdict": "CRIT",
        "checked": NOW - 8000,
        "findings": [SSHD, PORT],
        "open": 2,
        "next": "edgeguard explain F-7K2M",
    },
    files={"state": "CRIT", "watched": 12431, "differ": 1, "checked": NOW - 3 * 3_600_000},
    ports={"state": "WARN", "listening": 6, "unexpected": 1},
    uplink={"state": "WARN", "waiting": 19, "last_sent": None, "error": "no network for 2 h"},
)
LEARNING = {
    **GOOD,
    "verdict": "LEARNING",
    "policy": None,
    "learning": {"percent": 44, "files": 5470, "bytes": 1_100_000_000, "eta_s": 120},
}

CODES = {"OK": 0, "WARN": 1, "CRIT": 2, "UNKNOWN": 3, "LEARNING": 0}


class Fake:
    """Set `document`; `asked` keeps what was asked."""

    def __init__(self, path):
        self.path = path
        self.document = GOOD
        self.asked = []
        self.checks = [{"level": "OK", "name": "service", "text": "running", "fix": ""}]
        handlers = {name: getattr(self, name.lower()) for name in HANDLED}
        self.serving = Serving(lambda loop: Server(path, loop, handlers, Rights(owner=__import__("os").getuid())))

    def status(self, request):
        given = request.parameters
        self.asked.append(("Status", given))
        text = (
            dump(self.document).decode()
            if given["format"] == "json"
            else render.status(self.document, given["width"], given["color"], given["unicode"], given["height"])
        )
        request.reply({"code": CODES[self.document["verdict"]], "text": text})

    def findings(self, request):
        def replies():
            for finding in self.document["findings"]:
                yield {"finding": finding}
            yield {
                "open": self.document["open"],
                "suppressed": 0,
                "resolved": 0,
                "overflow": {},
                "verdict": self.document["verdict"],
            }

        request.stream(replies())

    def explain(self, request):
        found = [finding for finding in (SSHD, PORT) if finding["id"] == request.parameters["id"].upper()]
        if not found:
            request.fail(ControlError("NoSuchFinding", f"no finding {request.parameters['id']}"))
        else:
            rule = {
                "id": "file-content",
                "title": "",
                "source": "10-default.toml:3",
                "mode": "audit",
                "remediation": "",
            }
            request.reply({"finding": found[0], "near": [PORT] if found[0] is SSHD else [], "rule": rule})

    def why(self, request):
        self.asked.append(("Why", request.parameters))
        result = {
            "rule": "port",
            "code": "EG-PORT-001",
            "severity": "high",
            "title": "A port",
            "source": "10-default.toml:22",
            "mode": "audit",
            "remediation": "",
            "outcome": "fail",
            "where": ["protocol is tcp"],
            "expect": ["known is true"],
            "expected": {},
            "observed": {"exe": "/tmp/.x"},
        }
        answer = {
            "v": 1,
            "kind": "listener",
            "subject": "tcp/0.0.0.0:4444",
            "status": "present",
            "origin": "live",
            "known": False,
            "observed": {"exe": "/tmp/.x", "pid": 2211},
            "reference": None,
            "results": [result],
            "waivers": [],
            "findings": [PORT],
        }
        request.reply({"answers": [answer]})

    def log(self, request):
        def replies():
            for number in range(request.parameters["lines"]):
                yield {
                    "record": {
                        "at": NOW,
                        "stream": "findings",
                        "sequence": number,
                        "type": "finding",
                        "severity": "critical",
                        "text": "F-7K2M opened \x1b[2J",
                        "sent": False,
                        "finding": "F-7K2M",
                    }
                }
            yield {"count": request.parameters["lines"]}

        request.stream(replies())

    def scan(self, request):
        self.asked.append(("Scan", request.parameters))
        request.reply({"progress": {"phase": "files", "done": 1, "total": 2, "bytes": 3, "eta_s": 4}}, continues=True)
        request.reply({"verdict": "WARN", "open": 1, "files": 2, "seconds": 1})

    def accept(self, request):
        self.asked.append(("Accept", request.parameters))
        request.reply({"accepted": [SSHD], "revision": 42, "undo": "edgeguard undo F-7K2M"})

    def undo(self, request):
        request.reply({"undone": ["put /usr/sbin/sshd back"], "finding": None})

    def doctor(self, request):
        request.reply({"checks": self.checks})

    def reload(self, request):
        request.fail(ControlError("PolicyError", "10.toml:1:1: error: unknown key"))

    def version(self, request):
        request.reply({"version": "9.9", "pid": 1, "started": NOW, "python": "3"})

    def __enter__(self):
        self.serving.__enter__()
        return self

    def __exit__(self, *error):
        self.serving.__exit__(*error)


HANDLED = ("Status", "Findings", "Explain", "Why", "Log", "Scan", "Accept", "Undo", "Doctor", "Reload", "Version")
