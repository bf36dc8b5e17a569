"""A small world for file tests: a tree, a manifest and an observed.db, learned and swept like the real ones."""

import io
import os
import time

from edgeguard.codec.digests import Algorithm
from edgeguard.model import Origin, Status, Watch
from edgeguard.sensors import sweep
from tests import lent

LATER = 10_000_000_000  # ns: nothing is racy for a clock that is ten seconds ahead


class World:
    """`root` is what / would be. `learn()`, change something, `sweep()`: {path: observation}."""

    def __init__(self, root, watches=None):
        self.root = root
        self.watches = watches or [Watch("/etc", "config")]
        self.observed = None
        self.manifest = None
        self.summary = None
        self.beside = None  # where the manifest is kept; beside the tree if not said
        self.clock = lambda: time.time_ns() + LATER
        self.algorithm = Algorithm.SHA256

    def path(self, path):
        return os.fsencode(str(self.root)) + (os.fsencode(path) if isinstance(path, str) else path)

    def write(self, path, content=b"content", mode=0o644):
        full = self.path(path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(content)
        os.chmod(full, mode)

    def learn(self, **options):
        manifest = (self.beside or self.root.parent) / "manifest"
        out = io.BytesIO()
        with open(manifest, "wb") as file:
            self.summary = sweep.learn(
                self.watches, str(self.root), file, out, clock_ns=self.clock, algorithm=self.algorithm, **options
            )
        self.observed = out.getvalue()
        self.manifest = lent.manifest(manifest)
        self.manifest.verify()
        return self.summary

    def sweep(self, full=False, **options):
        seen = {}
        out = io.BytesIO()
        before = io.BytesIO(self.observed) if self.observed is not None else None
        self.summary = sweep.sweep(
            self.watches,
            str(self.root),
            self.manifest,
            before,
            out,
            1,
            Origin.SWEEP,
            full,
            lambda observation: seen.__setitem__(observation.subject, observation),
            clock_ns=self.clock,
            algorithm=self.algorithm,
            **options,
        )
        if self.summary.written:
            self.observed = out.getvalue()
        return seen


def statuses(seen):
    return {path: observation.status for path, observation in seen.items()}


PRESENT, ABSENT, UNREADABLE = Status.PRESENT, Status.ABSENT, Status.UNREADABLE
