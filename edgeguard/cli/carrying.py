"""`edgeguard log export DIR`, `edgeguard log import-receipt FILE`: a device without a network. Without the daemon."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError, EdgeGuardError, SettingsError

if TYPE_CHECKING:
    from edgeguard.settings import Settings

OK, ATTENTION = 0, 1


def export(console: Console, directory: str, key: str, *, plain: bool) -> int:
    """0 written, 1 written but for what is named. Raises OSError."""
    from edgeguard.baseline.keys import device_public
    from edgeguard.codec import cose
    from edgeguard.linux import durable
    from edgeguard.records import carrying

    settings = console.settings
    public = None if plain else _reader(key or settings.uplink.export_key)
    identity = cose.device_id(device_public(settings.paths.state)).hex()
    outbox = os.path.join(settings.paths.exchange, "outbox")
    os.listdir(outbox)  # says at once who may look
    stem = os.path.join(directory, f"{identity[:16]}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    suffix = carrying.PLAIN_SUFFIX if plain else carrying.SUFFIX
    left_out: list[str] = []
    files: list[str] = []
    segments = 0
    for number, (data, count) in enumerate(carrying.parts(outbox, left_out), 1):
        path = f"{stem}-{number:03d}{suffix}"
        carrying.write(path, carrying.sealed(data, public))
        files.append(path)
        segments += count
    if files:
        durable.sync(directory)
    document = {"v": 1, "device": identity, "segments": segments, "files": files, "left_out": left_out}
    if console.form != "text":
        console.json(document)
    else:
        for name in left_out:
            console.remark(f"edgeguard: left out: {escape(name)}")
        console.text(_told(segments, files, plain=plain))
    return ATTENTION if left_out else OK


def take_receipt(console: Console, path: str) -> int:
    """Check it, and put it where the sealer, which checks it again, looks for it."""
    from edgeguard.baseline.keys import device_public
    from edgeguard.codec import cose
    from edgeguard.errors import SignatureError
    from edgeguard.records import receipts
    from edgeguard.records.outbox import replace

    settings = console.settings
    data = receipts.read(path)
    identity = cose.device_id(device_public(settings.paths.state))
    trouble: EdgeGuardError = SettingsError(f"{settings.uplink.collector_key}: no collector's key is here")
    for file, public in _collectors(settings):
        try:
            receipt = receipts.verified(data, [public], identity)
        except SignatureError as error:
            trouble = error
            continue
        replace(os.path.join(settings.paths.exchange, "inbox", file), data)
        heads = [{"stream": head.stream, "complete_to": head.sequence} for head in receipt.heads]
        if console.form != "text":
            console.json({"v": 1, "taken": True, "time": receipt.time, "heads": heads})
        else:
            names = ("findings", "security", "metrics", "verbose")
            lines = [f"  {names[head.stream]:9} complete to segment {head.sequence}" for head in receipt.heads[:4]]
            console.text("\n".join(["The receipt is good; what it confirms leaves with the next sealing.", *lines]))
        return OK
    raise trouble


def _told(segments: int, files: list[str], *, plain: bool) -> str:
    if not files:
        return "Nothing is sealed here, so there is nothing to export."
    how = "readable by anybody" if plain else "encrypted to the operator's key"
    return "\n".join(
        [
            f"{segments} segments, {how}:",
            *(f"  {escape(path)}" for path in files),
            "They stay on this device until a receipt comes back:",
            "  there: edgeguard-collector import DIR FILES --receipts FOLDER",
            "  here:  edgeguard log import-receipt FILE",
        ]
    )


def _reader(path: str) -> bytes:
    from edgeguard.baseline.keys import read_public

    if not os.path.exists(path):
        raise ControlError(
            "InvalidParameter",
            f"{path}: no key to encrypt to (edgeguard-collector operator-key makes one); --plain exports it readable",
        )
    return read_public(path)


def _collectors(settings: Settings) -> list[tuple[str, bytes]]:
    """The receipt files of this device's collectors, and the keys that sign what belongs there."""
    from edgeguard.baseline.keys import read_public
    from edgeguard.records import receipts

    second = settings.uplink.second
    keys = [(receipts.FILE, settings.uplink.collector_key)]
    keys += [(receipts.SECOND_FILE, second.collector_key)] if second.url else []
    return [(file, read_public(path)) for file, path in keys if os.path.exists(path)]
