"""Verbs of `edgeguard-collector` that hand on what it knows: alerts, figures, reports. `add` gives them a parser."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable

from edgeguard.collector import events
from edgeguard.collector.config import NAME
from edgeguard.collector.console import CONFIG_HELP, Wrong, configured, log, opened, say

SEGMENTS_MAX = 10_000  # of a stream that `show` prints
Verb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add(verb: Verb) -> None:
    told = verb("alerts", _alerts, "print open alerts, and what became of telling people of them")
    told.add_argument("-o", "--output", choices=("text", "json"), default="text")
    told.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    test = verb("test-alert", _test_alert, "send a test message to everybody who is told of alerts")
    test.add_argument("--target", metavar="NAME", help="to this one only")
    test.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    config = verb("check-config", _check_config, "check edgeguard-collector.toml and say what it means")
    config.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    figures = verb("metrics", _metrics, "print figures for Prometheus, for its textfile collector")
    figures.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    show = verb("show", _show, "print one device: its key, its rhythm, each stream's chain")
    show.add_argument("--device", required=True, metavar="NAME")
    show.add_argument("--segments", type=int, default=10, metavar="N", help="newest of each stream (default: 10)")
    show.add_argument("-o", "--output", choices=("text", "json"), default="text")
    show.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    defender = verb("defender", _defender, "print a device's AWS IoT Device Defender report")
    defender.add_argument("--device", required=True, metavar="NAME")
    defender.add_argument("-o", "--output", choices=("json", "cbor"), default="json")
    defender.add_argument("--short", action="store_true", help="short names")
    defender.add_argument("--config", metavar="FILE", help=CONFIG_HELP)


def _alerts(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import alertlist

    with contextlib.closing(opened(arguments.dir, arguments.config)) as db:
        document = alertlist.document(db)
    if arguments.output == "json":
        sys.stdout.write(events.line(document) + "\n")
        return 0
    for line in alertlist.lines(document):
        say(line)
    return 0


def _test_alert(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import alertlist

    config = configured(arguments.dir, arguments.config)
    names = [target.name for target in config.alerts.targets]
    if not names or arguments.target not in {None, *names}:
        raise Wrong(f"targets: {', '.join(names) or 'none; see edgeguard-collector.toml(5)'}")
    told = alertlist.test(config, arguments.target, lambda: secrets.token_hex(16), time.time_ns() // 1_000_000)
    for name, trouble in told:
        say(f"{name}: {trouble or 'delivered'}")
    return 1 if any(trouble for _, trouble in told) else 0


def _check_config(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import alertlist

    path = arguments.config or os.path.join(arguments.dir, NAME)
    if not os.path.exists(path):
        say(f"{path}: not there, so everything is at its default.")
    for line in alertlist.summary(configured(arguments.dir, arguments.config), path):
        say(line)
    return 0


def _metrics(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import metrics

    with contextlib.closing(opened(arguments.dir, arguments.config)) as db:
        sys.stdout.write(metrics.text(db, time.time_ns() // 1_000_000))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import chainview

    if not 0 <= arguments.segments <= SEGMENTS_MAX:
        raise Wrong(f"--segments: expected 0 to {SEGMENTS_MAX}")
    with contextlib.closing(opened(arguments.dir, arguments.config)) as db:
        shown = chainview.document(db, arguments.device, arguments.segments)
    if shown is None:
        raise Wrong(f"no device is called {arguments.device!r}")
    if arguments.output == "json":
        sys.stdout.write(events.line(shown) + "\n")
        return 0
    for line in chainview.lines(shown):
        say(line)
    return 0


def _defender(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import defender

    connection = opened(arguments.dir, arguments.config, looking=True)
    row = connection.execute("SELECT id FROM devices WHERE name = ?", (arguments.device,)).fetchone()
    if row is None:
        raise Wrong(f"no device is called {arguments.device!r}")
    report, cuts = defender.report(defender.seen(connection, row[0]), int(time.time()))
    for cut in cuts:
        log(f"{cut.name}: {defender.LISTED_MAX} of {cut.total} are listed, the total is true")
    data = defender.encode(defender.short(report) if arguments.short else report, arguments.output)
    sys.stdout.buffer.write(data + b"\n" * (arguments.output == "json"))
    sys.stdout.flush()
    return 0
