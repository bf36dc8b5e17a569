"""Verb `learn` of the helper: see how this device looks now, and sign that as its baseline.

Policy first, so that a mistake in it costs seconds and not the hour of reading; then the files, then what every other
sensor sees. Nothing is in force before all of it is signed and on disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from edgeguard.baseline import contents, document, store
from edgeguard.baseline.document import ManifestRef
from edgeguard.baseline.policy import Policy
from edgeguard.codec import manifest as codec
from edgeguard.codec.digests import Algorithm
from edgeguard.daemon.frames import Out
from edgeguard.daemon.signing import NotLocal, compiled_policy, describe, trust_of
from edgeguard.daemon.sweeping import Meter, file_digest, now_ms, replacing, summary_to_plain
from edgeguard.errors import Truncated
from edgeguard.linux import cpu, durable, priority
from edgeguard.model import Columns, Status
from edgeguard.sensors import TABLE, Context, sensor_class
from edgeguard.sensors import sweep as sweeps
from edgeguard.sensors.looker import Summary
from edgeguard.sensors.packages import Ownership
from edgeguard.sensors.vault import tidy
from edgeguard.settings import Settings

NOT_LEARNED = ("files", "processes", "health")  # files go into the manifest; what runs is judged by its file


def learn(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Request {"reason"}; answers with progress and {"revision", "files", "milliseconds", "trust", "notes", "contents":
    which digest}."""
    started = time.monotonic()
    trust = trust_of(settings)
    if trust.name != "local":
        raise NotLocal("a fleet signs the baselines of this device; learn on an unenrolled one")
    policy = compiled_policy(settings)
    algorithm = contents.chosen(policy, quickest())
    priority.background()
    shelf = store.Store(settings.paths.state, settings.paths.root)
    summary = learn_files(settings, policy, out, algorithm)
    references = learn_rest(settings)
    with shelf.alone():
        baseline = document.compile_baseline(
            policy,
            references,
            keep_manifest(shelf),
            shelf.floor() + 1,
            now_ms(),
            device=trust.device,
            target=settings.fleet,
            parent=shelf.parent(),
            note=request.get("reason", ""),
        )
        shelf.install(document.sign(baseline, trust.key), baseline)
        with contextlib.suppress(OSError):  # before anybody accepts something by this baseline
            tidy(f"{settings.paths.state}/vault", summary.copies)
    with contextlib.suppress(OSError):  # what was seen before is as good: it only costs another look
        os.rename(learned_path(settings.paths.state), f"{settings.paths.state}/observed.db")
        durable.sync(settings.paths.state)
    facts = summary_to_plain(summary, time.monotonic() - started)
    out.say({**facts, **describe(baseline), "trust": trust.name, "contents": algorithm.value})


def learn_files(settings: Settings, policy: Policy, out: Out, algorithm: Algorithm = Algorithm.SHA256) -> Summary:
    """Read every watched file; what was seen and a draft of the manifest are durable afterwards, protected copies lie
    in the vault. As long as no baseline says that it is right, no sweep may take for known what was seen."""
    state = settings.paths.state
    meter = Meter(out, "files")
    with replacing(learned_path(state)) as observed, replacing(draft_path(store.Store(state))) as manifest:
        return sweeps.learn(
            policy.watches,
            settings.paths.root,
            manifest,
            observed,
            f"{state}/vault",
            meter.progress,
            now=now_ms(),
            hash_file_max=settings.budget.hash_file_max,
            vault_max=settings.budget.vault_bytes,
            algorithm=algorithm,
        )


def quickest() -> Algorithm:
    """Where the policy leaves it to the device. BLAKE2b works on 64 bits at a time: a 32-bit system is slow at it."""
    wide = sys.maxsize > 1 << 32
    return Algorithm.BLAKE2B if wide and cpu.computes_sha256() is False else Algorithm.SHA256


def learned_path(state: str) -> str:
    """What observed.db will be when the baseline is signed."""
    return f"{state}/observed.db.learned"


def draft_path(shelf: store.Store) -> str:
    return f"{shelf.directory}/manifest.draft"  # not .egm: those that no baseline names are tidied away


def keep_manifest(shelf: store.Store) -> ManifestRef:
    """The draft gets its name, which is its digest. From here to the baseline that names it, nobody may tidy up."""
    draft = draft_path(shelf)
    with open(draft, "rb") as file:
        digest, size = file_digest(file), os.fstat(file.fileno()).st_size
        if not size:
            raise Truncated("the file manifest came out empty")
        entries = codec.Reader(file.fileno()).count
    os.rename(draft, shelf.manifest_path(digest))
    durable.sync(shelf.directory)
    return ManifestRef(digest, size, entries)


def learn_rest(settings: Settings) -> dict[str, dict[str, Columns | None]]:
    """Reference values of everything that is not a file: what each sensor sees now, its reference columns only."""
    ownership = Ownership(settings.paths.root)
    context = Context(settings.paths.root, package_of=ownership.package_of)
    references: dict[str, dict[str, Columns | None]] = {}
    for name in TABLE:
        if name in NOT_LEARNED:
            continue
        sensor: Any = sensor_class(name)
        instance = sensor(context)
        kept = {
            kind: [n for n, column in columns.items() if column.reference] for kind, columns in sensor.kinds.items()
        }
        references.update({kind: {} for kind in sensor.kinds})
        instance.start()
        try:
            for seen in instance.observe(now_ms()):
                if seen.status is Status.PRESENT:
                    references[seen.kind][seen.subject] = {
                        column: seen.columns[column] for column in kept[seen.kind] if column in seen.columns
                    }
        finally:
            instance.close()
    return references
