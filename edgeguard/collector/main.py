"""`edgeguard-collector`: the command line of the receiving side."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeguard import __version__
from edgeguard.codec import cose
from edgeguard.collector import authority, carried, events, following, store
from edgeguard.collector import outputs as verbs_of_output
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.config import Config
from edgeguard.collector.console import CONFIG_HELP, Wrong, configured, opened
from edgeguard.collector.console import log as _log
from edgeguard.collector.console import say as _say
from edgeguard.collector.database import Database
from edgeguard.collector.enrolment import Enrolment
from edgeguard.collector.ingest import Device, Ingest
from edgeguard.errors import DecodeError, EdgeGuardError, SegmentRefused
from edgeguard.records import registry

EXPECTED: tuple[type[Exception], ...] = (OSError, EdgeGuardError, *store.FAILURES)  # said in one line
SHAPES = ("jsonl", "ocsf", "ecs")
POLL_S = 0.2  # of `events -f`
EX_USAGE = 64
TOKEN_HOURS_MAX = 24 * 90
FILE_MAX = 64 * 1024 * 1024  # bytes of a file given to `import`: an export of many segments
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except Wrong as error:
        return _complain(str(error), EX_USAGE)
    except (BrokenPipeError, KeyboardInterrupt):
        return 130
    except EXPECTED as error:
        return _complain(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeguard-collector",
        description="Receives what EdgeGuard devices record: verifies, stores, answers with receipts.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgeguard-collector {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        added.add_argument("dir", metavar="DIR", help="directory of this collector: keys, certificates, database")
        added.set_defaults(run=run)
        return added

    init = verb("init", _init, "create a collector: a CA, a server certificate, a key for receipts, a database")
    init.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="name or address by which devices reach it; may be repeated (default: localhost 127.0.0.1 ::1)",
    )
    add = verb("add-device", _add_device, "know a device and make the certificate that it shows")
    add.add_argument("--name", required=True, help="what to call it")
    add.add_argument("--key", required=True, metavar="HEX", help="its public key: 64 hex digits, or a device.pub file")
    add.add_argument("--out", metavar="FOLDER", help="where to put what the device needs (default: DIR/devices/NAME)")
    manifest = verb("add-baseline", _add_baseline, "hold a baseline's file manifest, so that records can refer to it")
    manifest.add_argument("files", nargs="+", metavar="MANIFEST", help="a file SHA256.egm of a device or a fleet")
    serve = verb("serve", _serve, "receive segments")
    serve.add_argument("--listen", default="127.0.0.1:7443", metavar="ADDRESS:PORT", help="default: %(default)s")
    serve.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    serve.add_argument("--enroll", metavar="ADDRESS:PORT", help="also let devices with a token enrol there")
    broker = verb("add-broker", _add_broker, "make certificates, mosquitto.conf and acl for an MQTT broker in between")
    broker.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        required=True,
        help="name or address by which devices reach the broker; may be repeated",
    )
    broker.add_argument("--out", metavar="FOLDER", help="where to put what the broker needs (default: DIR/broker)")
    work = verb("work", _work, "verify and store what `serve` puts into the queue; any number may work at once")
    work.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    token = verb("token", _token, "make a one-time token with which a device enrols")
    token.add_argument("--name", required=True, help="what the device will be called")
    token.add_argument("--hours", type=int, default=24, metavar="N", help="how long it is good (default: %(default)s)")
    revoke = verb("revoke", _revoke, "refuse a device's certificates from now on")
    revoke.add_argument("name", metavar="DEVICE", help="its name")
    verbs_of_output.add(verb)
    show = verb("events", _events, "print decoded records, in the order in which each device recorded them")
    show.add_argument("-o", "--output", choices=("text", *SHAPES), default="text")
    show.add_argument("-f", "--follow", action="store_true", help="go on as records come in")
    show.add_argument("--device", metavar="NAME", help="of this device only")
    devices = verb("devices", _devices, "print devices, how far each chain is complete, and what is wrong")
    devices.add_argument("-o", "--output", choices=("text", "json"), default="text")
    take = verb("import", _import, "take in segment files that came by other means")
    take.add_argument("files", nargs="+", metavar="FILES", help="*.egs and *.ege of a device, exports, or folders")
    take.add_argument(
        "--receipts", metavar="FOLDER", help="where to put receipts to carry back, NAME.egr for each device"
    )
    verb("operator-key", _operator_key, "make the key that `edgeguard log export` encrypts to")
    check = verbs.add_parser(
        "verify",
        help="check signatures and chains from end to end, and name every defect",
        description="Check signatures and chains from end to end, and name every defect. Exit status 0: none, 2: some,"
        " 3: could not look.",
        allow_abbrev=False,
    )
    check.add_argument("path", metavar="DIR|DB", help="a collector's directory or database, or a directory of *.egs")
    check.add_argument(
        "--key", action="append", default=[], metavar="HEX", help="public key of a device, 64 hex digits or a file"
    )
    check.add_argument("--collector", metavar="DIR", help="a collector: keys that it knows, how far it confirmed")
    check.add_argument(
        "--receipt", action="append", default=[], metavar="FILE", help="a receipt: what it confirmed must be there"
    )
    check.add_argument("--collector-key", metavar="HEX", help="public key that signs receipts, 64 hex digits or a file")
    check.add_argument("-o", "--output", choices=("text", "json"), default="text")
    check.set_defaults(run=_verify)
    explain = verb("explain-gap", _explain_gap, "say that missing segments will not come, so that the chain goes on")
    explain.add_argument("--device", required=True, metavar="NAME")
    explain.add_argument("--stream", required=True, type=int, choices=range(4))
    explain.add_argument("--through", required=True, type=int, metavar="SEQ", help="the last that is missing")
    return parser


def _init(arguments: argparse.Namespace) -> int:
    try:
        authority.create(arguments.dir, arguments.host or ["localhost", "127.0.0.1", "::1"])
    except FileExistsError as error:
        raise Wrong(f"{error.filename} is there already; a collector is created once") from error
    store.open_(arguments.dir, configured(arguments.dir)).close()
    _say(f"Collector created in {arguments.dir}.")
    _say(f"Next: edgeguard-collector add-device {arguments.dir} --name NAME --key DEVICE.PUB")
    return 0


def _add_device(arguments: argparse.Namespace) -> int:
    if not _NAME.fullmatch(arguments.name):
        raise Wrong(f"{arguments.name!r}: a name has letters, digits, '.', '_', '-', at most 64")
    public = _public(arguments.key)
    target = arguments.out or os.path.join(arguments.dir, "devices", arguments.name)
    os.makedirs(os.path.dirname(os.path.abspath(target)), mode=0o700, exist_ok=True)
    if os.path.exists(target):
        raise Wrong(f"{target} is there already")
    ingest = _ingest(arguments.dir)
    try:
        device = ingest.add_device(arguments.name, public)
    except ValueError as error:
        raise Wrong(str(error)) from error
    authority.bundle(arguments.dir, target, device.id)
    _say(f"Device {device.name} is {device.id.hex()}.")
    _say(f"Put ca.pem, client.pem, client.key and collector.pub from {target} into /etc/edgeguard/uplink on it.")
    return 0


def _add_baseline(arguments: argparse.Namespace) -> int:
    opened(arguments.dir, looking=True).close()
    for path in arguments.files:
        identity = _baselines(arguments.dir).add(path)
        _say(f"{path}: held as {identity.hex()}; devices that use it learn so with their next receipt.")
    return 0


def _add_broker(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import broker

    opened(arguments.dir, looking=True).close()  # there is a collector
    target = arguments.out or os.path.join(arguments.dir, "broker")
    try:
        broker.create(arguments.dir, target, arguments.host)
    except FileExistsError as error:
        raise Wrong(f"{error.filename} is there already") from error
    first = arguments.host[0]
    url = f"mqtts://{f'[{first}]' if ':' in first else first}:8883"
    _say(f"Made in {target}. On the broker:")
    _say(f"  put its files into {broker.PLACE}, readable for mosquitto,")
    _say("  and its mosquitto.conf into /etc/mosquitto/conf.d instead.")
    _say(f'In the configuration here: [mqtt] url = "{url}"')
    _say(f'In agent.toml of devices: [uplink] url = "{url}"')
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from edgeguard.collector.server import Server  # aiohttp: the other commands do without

    enrol = _endpoint(arguments.enroll) if arguments.enroll else None
    config = _with_library(configured(arguments.dir, arguments.config))
    server = Server(arguments.dir, *_endpoint(arguments.listen), _log, config, enrol)
    asyncio.run(server.run())
    return 0


def _work(arguments: argparse.Namespace) -> int:
    from edgeguard.collector.work import Worker

    config = _with_library(configured(arguments.dir, arguments.config))
    if config.queue is None:
        raise Wrong("no queue to work for: the configuration has no [queue] with a url")
    asyncio.run(Worker(arguments.dir, config, config.queue, _log, _milliseconds).run())
    return 0


def _with_library(config: Config) -> Config:
    """It can be used here: trying again would not help where the queue's client is not installed."""
    if config.queue:
        from edgeguard.collector import jetstream

        try:
            jetstream.client()
        except jetstream.Away as error:
            raise Wrong(str(error)) from error
    return config


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise Wrong(f"{text!r}: expected ADDRESS:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _token(arguments: argparse.Namespace) -> int:
    opened(arguments.dir, looking=True).close()  # there is a collector
    if not _NAME.fullmatch(arguments.name):
        raise Wrong(f"{arguments.name!r}: a name has letters, digits, '.', '_', '-', at most 64")
    if not 0 < arguments.hours <= TOKEN_HOURS_MAX:
        raise Wrong(f"a token is good for 1 to {TOKEN_HOURS_MAX} hours")
    token = Enrolment(arguments.dir, _milliseconds).token(arguments.name, arguments.hours * 3600)
    _say(f"Token for {arguments.name}, good once, for {arguments.hours} hours: {token}")
    _say(f"On the device: edgeguard enroll https://HOST:PORT --token {token}")
    _say(f"  --ca-fingerprint {authority.fingerprint(arguments.dir)}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    connection = opened(arguments.dir, looking=True)
    row = connection.execute("SELECT id FROM devices WHERE name = ?", (arguments.name,)).fetchone()
    if row is None:
        raise Wrong(f"no device is called {arguments.name!r}")
    Enrolment(arguments.dir, _milliseconds).revoke(row[0])
    _say(f"{arguments.name} is refused from now on. To let it in again: edgeguard-collector token, and enrol it anew.")
    return 0


def _events(arguments: argparse.Namespace) -> int:
    connection = opened(arguments.dir, looking=True)
    shape = _shape(arguments.output)
    if arguments.follow:
        found = following.follow(connection, arguments.device, _pause, _log, time.monotonic)
    else:
        found = events.parts(connection, events.last_row(connection), arguments.device)
    for common, own in found:
        sys.stdout.write(shape(common, own) + "\n")
    return 0


def _pause() -> None:
    sys.stdout.flush()
    time.sleep(POLL_S)


def _shape(output: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str]:
    """What makes a line of a record."""
    if output == "text":
        return lambda common, own: events.sentence(events.merged(common, own))
    if output == "jsonl":
        return lambda common, own: events.line(events.merged(common, own))
    from edgeguard.collector import ecs, ocsf

    shape = ocsf.event if output == "ocsf" else ecs.event
    return lambda common, own: events.line(shape(common, own))


def _devices(arguments: argparse.Namespace) -> int:
    connection = opened(arguments.dir, looking=True)
    documents = [
        _device_document(connection, row)
        for row in connection.execute("SELECT id, name, seen, duplicates FROM devices ORDER BY name").fetchall()
    ]
    strangers = _incidents(connection, bytes(16))
    if arguments.output == "json":
        sys.stdout.write(events.line({"v": 1, "devices": documents, "strangers": strangers}) + "\n")
        return 0
    for document in documents:
        for line in _device_lines(document):
            _say(line)
    for incident in strangers:
        _say(f"!    {incident['name']} {incident['detail']} (x{incident['count']})")
    if not documents:
        _say("No devices yet: edgeguard-collector add-device")
    return 0


def _device_document(connection: Database, row: tuple[bytes, str, int | None, int]) -> dict[str, object]:
    device, name, seen, duplicates = row
    streams = []
    for stream in registry.Stream:
        head = connection.execute(
            "SELECT seq, hash, next_record FROM heads WHERE device = ? AND stream = ?", (device, stream)
        ).fetchone()
        stored, last = connection.execute(
            "SELECT count(*), max(seq) FROM segments WHERE device = ? AND stream = ?", (device, stream)
        ).fetchone()
        row_of = connection.execute(
            "SELECT seq FROM announced WHERE device = ? AND stream = ?", (device, stream)
        ).fetchone()
        announced = row_of[0] if row_of else 0
        if stored or announced:
            streams.append(
                {
                    "stream": int(stream),
                    "name": stream.name.lower(),
                    "complete_to": head[0] if head else 0,
                    "hash": head[1].hex() if head else None,
                    "records": (head[2] - 1) if head else 0,
                    "segments": stored,
                    "newest": last or 0,
                    "announced": announced,
                    "missing": bool(stored) and (head is None or last > head[0]),
                }
            )
    return {
        "id": device.hex(),
        "name": name,
        "last_seen": events.iso(seen) if seen else None,
        "duplicates": duplicates,
        "streams": streams,
        "incidents": _incidents(connection, device),
    }


def _incidents(connection: Database, device: bytes) -> list[dict[str, object]]:
    rows = connection.execute(
        "SELECT name, stream, seq, detail, count, first_seen, last_seen FROM incidents"
        " WHERE device = ? AND resolved IS NULL ORDER BY id LIMIT 1000",
        (device,),
    )
    return [
        {
            "name": name,
            "stream": stream,
            "seq": seq,
            "detail": detail,
            "count": count,
            "first_seen": events.iso(first),
            "last_seen": events.iso(last),
        }
        for name, stream, seq, detail, count, first, last in rows
    ]


def _device_lines(document: dict[str, object]) -> list[str]:
    lines = [f"{document['name']}  {document['id']}  last heard {document['last_seen'] or 'never'}"]
    streams, incidents = document["streams"], document["incidents"]
    assert isinstance(streams, list)
    assert isinstance(incidents, list)
    for stream in streams:
        state = f"GAP, newest is {stream['newest']}" if stream["missing"] else "complete"
        if stream["announced"] > stream["newest"]:
            state += f", {stream['announced']} announced"
        lines.append(
            f"     {stream['name']:9} segments to {stream['complete_to']}, records to {stream['records']}, {state}"
        )
    lines += [
        f"!    {item['name']}: stream {item['stream']}, segment {item['seq']}: {item['detail']} (x{item['count']})"
        for item in incidents
    ]
    return lines


def _import(arguments: argparse.Namespace) -> int:
    ingest = _ingest(arguments.dir)
    failed = 0
    came: dict[bytes, Device] = {}
    for path in carried.files(arguments.files):
        with open(path, "rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise Wrong(f"{path}: larger than {FILE_MAX} bytes")
        try:
            parts = carried.segments(data, arguments.dir)
            verdicts = ingest.take_files(parts)
            came |= {device.id: device for device in carried.devices(ingest, parts)}
        except SegmentRefused as error:
            verdicts = []
            failed += 1
            _say(f"{path}: malformed {error}")
        for verdict in verdicts:
            failed += not verdict.taken
            where = f"{verdict.stream}-{verdict.sequence}" if verdict.sequence else ""
            _say(f"{path}: {verdict.name} {where} {verdict.detail}".rstrip())
    for device in came.values() if arguments.receipts else ():
        receipt = carried.write_receipt(ingest, device, arguments.receipts)
        _say(f"{receipt}: on {device.name}, run: edgeguard log import-receipt FILE")
    return 1 if failed else 0


def _operator_key(arguments: argparse.Namespace) -> int:
    opened(arguments.dir, looking=True).close()  # there is a collector
    try:
        public = carried.make_key(arguments.dir)
    except FileExistsError as error:
        raise Wrong(f"{error.filename} is there already; whoever loses it cannot read old exports") from error
    _say(f"Operator's key made: {public.hex()}")
    _say(f"Put {os.path.join(arguments.dir, carried.PUBLIC)} into /etc/edgeguard/uplink on each device.")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from edgeguard.collector import verify
    from edgeguard.records import defects

    try:
        report = verify.run(
            arguments.path,
            keys=[_public(key) for key in arguments.key],
            collector=arguments.collector or "",
            receipt_files=arguments.receipt,
            collector_key=_public(arguments.collector_key) if arguments.collector_key else None,
        )
    except verify.Nothing as error:
        raise Wrong(str(error)) from error
    except EXPECTED as error:
        return _complain(f"could not look: {error}", verify.UNKNOWN)
    code = verify.code(report)
    if arguments.output == "json":
        sys.stdout.write(events.line({**defects.document(report, events.iso), "limits": verify.LIMITS}) + "\n")
        return code
    for line in [*defects.lines(report, events.iso, events.printable), *textwrap.wrap(verify.LIMITS, 80)]:
        sys.stdout.write(line + "\n")
    return code


def _explain_gap(arguments: argparse.Namespace) -> int:
    connection = opened(arguments.dir)
    row = connection.execute("SELECT id FROM devices WHERE name = ?", (arguments.device,)).fetchone()
    ingest = _ingest(arguments.dir)
    device = ingest.device(row[0]) if row else None
    if device is None:
        raise Wrong(f"no device is called {arguments.device!r}")
    ingest.explain(device, arguments.stream, arguments.through)
    return 0


def _ingest(directory: str) -> Ingest:
    seed = cose.load_seed([os.path.join(directory, "collector.key")])
    return Ingest(opened(directory), seed, lambda: time.time_ns() // 1_000_000, _baselines(directory))


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _baselines(directory: str) -> Baselines:
    return Baselines(os.path.join(directory, "baselines"))


def _public(key: str) -> bytes:
    if os.path.exists(key):
        with open(key, "rb") as file:
            key = file.read(256).decode("ascii", "replace").strip()
    try:
        public = bytes.fromhex(key)
    except ValueError:
        public = b""
    if not cose.is_identity(public):
        raise Wrong("expected a public key of 64 hex digits (66 of one in a TPM), or a file with one (device.pub)")
    try:
        cose.check_point(public)
    except DecodeError as error:
        raise Wrong(f"expected a public key: {error}") from error
    return public


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"edgeguard-collector: {events.printable(message)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
