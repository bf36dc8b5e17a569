#!/usr/bin/python3
"""Makes the golden segments and receipts beside it: `tests/vectors/make.py`, from the top of the tree.

Segments are signed with the key of the first epoch. They are checked in and frozen: a reader of any release reads
them. When the writer changes on purpose (a new field), new vectors are added under new names; the old ones stay. Keys
are the ones of RFC 8032 and RFC 6979 and of no use elsewhere.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import p256  # noqa: E402 - found by the line above

from edgeguard.codec import cose  # noqa: E402
from edgeguard.collector import events  # noqa: E402
from edgeguard.model import (  # noqa: E402
    Actor,
    Change,
    Finding,
    Observation,
    Origin,
    Severity,
    State,
    Transition,
)
from edgeguard.records import compose, epoch, receipts, wire  # noqa: E402
from edgeguard.records.compose import Moment  # noqa: E402
from edgeguard.records.receipts import Head, Range, Receipt, Refusal  # noqa: E402
from edgeguard.records.wire import Drop, Header, Record  # noqa: E402

DEVICE_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
COLLECTOR_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
EPOCH_SEEDS = (
    bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"),
    bytes.fromhex("f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5"),
)
PUBLIC = cose.public_of(DEVICE_SEED)
EPOCH_PUBLIC = cose.public_of(EPOCH_SEEDS[0])
DEVICE = cose.device_id(PUBLIC)
WALL = 1_795_416_177_140


def at(mono: int, clock: int = 2) -> Moment:
    return Moment(mono, WALL + mono, clock)


def findings() -> list[Record]:
    actor = Actor(
        2198, "/usr/bin/cp", ("cp", "evil", "/usr/sbin/sshd"), 0, "root", 1001, "anna", "pts/0", "10.0.3.8",
        "session-3.scope", ((2100, "/usr/bin/bash"), (1990, "/usr/sbin/sshd")),
    )  # fmt: skip
    opened = Finding(
        "F-7K2M", "EG-FILE-002", "programs-content", "file", "/usr/sbin/sshd", Severity.CRITICAL, State.OPEN,
        "content changed", WALL, WALL + 1200, 1, Origin.LIVE, {"sha256": bytes(range(32))},
        {"sha256": bytes(range(32, 64))}, actor, details={"type": "file", "size": 1400000, "mode": 0o755, "uid": 0},
    )  # fmt: skip
    return [
        compose.state("boot", at(100), "edgeguard 0.1.0", columns={"version": "0.1.0", "known": True}),
        compose.finding(Change(Transition.OPENED, opened, None), at(1200)),
        compose.state("clock step", at(1900), columns={"delta_ms": -5000}),
        compose.drop(3, "memory full", at(2500), count=17),
    ]


def security() -> list[Record]:
    seen = [
        Observation("file", "/etc/ld.so.preload", {"type": "file", "size": 12, "mode": 0o644}, WALL + 10),
        Observation("file", "/tmp/name\nwith\x1b[31m and \udcff", {"type": "fifo"}, WALL + 20, origin=Origin.SWEEP),
        Observation(
            "process", "/tmp/.x",
            {"exe": "/tmp/.x", "argv": (".x", "--password=hunter2"), "pid": 2211, "ppid": 2100, "uid": 1000,
             "exe_state": "deleted", "writable_dir": True}, WALL + 30,
        ),
        Observation(
            "listener", "tcp/[::]:4444",
            {"protocol": "tcp", "address": "::", "port": 4444, "scope": "any", "exe": "/tmp/.x", "uid": 1000},
            WALL + 40,
        ),
        Observation(
            "usb", "0781:5581/4C53", {"vendor": "0781", "product": "5581", "interfaces": ("080650",)}, WALL + 50
        ),
        Observation("sysctl", "kernel.kptr_restrict", {"value": "0", "level": 0}, WALL + 60),
    ]  # fmt: skip
    return [compose.observation(one, at(100)) for one in seen]


def vectors() -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    previous = wire.NO_PREVIOUS

    def seal(
        stream: int,
        sequence: int,
        first: int,
        records: list[Record],
        before: bytes,
        *,
        reference: wire.Reference | None = None,
        drops: tuple[Drop, ...] = (),
        dictionary: int = 0,
        digest: wire.Digest | None = None,
    ) -> bytes:
        header = Header(DEVICE, stream, sequence, 1, 3, first, 0, before, 0, None, 0, wire.NO_BASELINE, dictionary)
        payload = wire.encode_segment(header, records, reference, drops, digest)
        return cose.sign1(payload, EPOCH_SEEDS[0], cose.SEGMENT_AAD)

    made["segment-0-1.egs"] = seal(0, 1, 1, findings(), previous)
    previous = sha256(made["segment-0-1.egs"]).digest()
    made["segment-0-3.egs"] = seal(0, 3, 9, [compose.state("stop", at(9000))], previous, drops=(Drop(2, 2, 1, 0),))
    made["segment-1-1.egs"] = seal(1, 1, 1, security(), wire.NO_PREVIOUS)
    metrics = [
        compose.metric({"cpu_ms": 50 * n, "rss_kib": 15_000, "received_bytes": 10**9 + n}, at(60_000 * n))
        for n in (1, 2)
    ]
    made["segment-2-1.egs"] = seal(2, 1, 1, metrics, wire.NO_PREVIOUS)
    known = ["/etc/ld.so.preload"]
    made["segment-references.egs"] = seal(
        1, 2, 7, security()[:1], previous, reference=lambda text: known.index(text) if text in known else None
    )
    # Packed, with dictionary 1: numbers as differences, digests apart or the baseline's own.
    held = {"/usr/sbin/sshd": bytes(range(32)), "/etc/ld.so.preload": bytes(32)}
    names = list(held)
    made["segment-packed.egs"] = seal(
        0, 4, 10, [*findings(), *security(), *metrics], sha256(made["segment-0-3.egs"]).digest(), dictionary=1,
        reference=lambda text: names.index(text) if text in names else None,
        digest=lambda number: held[names[number]], drops=(Drop(2, 2, 1, 0),),
    )  # fmt: skip
    previous = sha256(made["segment-packed.egs"]).digest()
    heartbeat = compose.heartbeat(at(9500), [(0, 4, previous[:8]), (2, 1, b"short123")], 3600)
    made["segment-0-5.egs"] = seal(0, 5, 22, [heartbeat], previous)
    one = epoch.Statement(DEVICE, 1, EPOCH_PUBLIC, 3, 90, WALL + 90, 2, ())
    heads = tuple(
        epoch.Head(stream, sequence, sha256(made[f"segment-{stream}-{sequence}.egs"]).digest()[: epoch.HASH_SIZE])
        for stream, sequence in ((0, 5), (1, 1), (2, 1))
    )
    two = epoch.Statement(
        DEVICE,
        2,
        cose.public_of(EPOCH_SEEDS[1]),
        3,
        3_600_090,
        WALL + 3_600_090,
        2,
        heads,
        epoch.Before(1, EPOCH_PUBLIC),
    )
    made["epoch-1.ege"] = epoch.issue(one, DEVICE_SEED, None)
    made["epoch-2.ege"] = epoch.issue(two, DEVICE_SEED, EPOCH_SEEDS[0])
    device = cose.device_id(p256.public())
    mine = epoch.Statement(device, 1, EPOCH_PUBLIC, 3, 90, WALL + 90, 2, ())
    made["tpm-epoch-1.ege"] = epoch.issue(mine, cose.Elsewhere(p256.public(), p256.sign), None)
    receipt = Receipt(
        DEVICE, WALL, (Head(0, 3, sha256(made["segment-0-3.egs"]).digest()),), (Range(1, 3, 4),),
        (Refusal(bytes(32), "altered"),), epochs=(2, 1),
    )  # fmt: skip
    made["receipt.egr"] = cose.sign1(receipts.encode(receipt), COLLECTOR_SEED, cose.RECEIPT_AAD)
    return made


def decoded(data: bytes) -> list[dict[str, object]]:
    segment = wire.decode_segment(cose.verify1(data, [EPOCH_PUBLIC], cose.SEGMENT_AAD))
    return [
        {"stream": record.stream, "mono": record.mono, "wall": record.wall, **events.body(record)}
        for record in segment.records
    ]


def stated(data: bytes) -> dict[str, object]:
    said = epoch.opened(data, PUBLIC if cose.parse1(data).algorithm == cose.EDDSA else p256.public())
    return {
        "device": said.device.hex(), "number": said.number, "public": said.public.hex(), "boot": said.boot,
        "mono": said.mono, "wall": said.wall, "clock": said.clock,
        "heads": [[head.stream, head.sequence, head.hash.hex()] for head in said.heads],
        "before": [said.before.number, said.before.public.hex()] if said.before else None, "announced": said.announced,
    }  # fmt: skip


def main() -> None:
    made = vectors()
    for name, data in made.items():
        (HERE / name).write_bytes(data)
    readable: dict[str, object] = {name: decoded(data) for name, data in made.items() if name.endswith(".egs")}
    readable |= {name: stated(data) for name, data in made.items() if name.endswith(".ege")}
    (HERE / "decoded.json").write_text(json.dumps(readable, indent=1) + "\n")
    (HERE / "keys.json").write_text(
        json.dumps(
            {
                "device": PUBLIC.hex(),
                "epoch": EPOCH_PUBLIC.hex(),
                "collector": cose.public_of(COLLECTOR_SEED).hex(),
                "tpm": p256.public().hex(),
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
