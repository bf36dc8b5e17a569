"""Every reader of bytes from outside, in one table: what it is called, what it is given, which errors it may raise.

The invariant: any bytes give a value or an error of ours, nothing else, within bounded time and memory. The functions
stand in `formats` (our own files and messages), `kernel` (what the kernel says) and `texts` (what people, dpkg and
/proc write). What a coverage-guided run found interesting is in corpus/NAME/; `make test` replays all of it,
`make fuzz` looks for more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgeguard.errors import EdgeGuardError
from tests.fuzz import formats, kernel, texts

CORPUS = Path(__file__).parent / "corpus"
CPU_S = 2.0  # seconds of our own CPU time for one input; the slowest real one takes a tenth


class Harness(NamedTuple):
    """One line of the table. `size`: the longest input that the fuzzer makes, in bytes."""

    name: str
    run: Callable[[bytes], object]
    size: int = 4096
    errors: tuple[type[Exception], ...] = (EdgeGuardError,)

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name

    def try_one(self, data: bytes) -> None:
        """Give it these bytes; what is not one of the expected errors goes through and is a bug."""
        with contextlib.suppress(*self.errors):
            self.run(data)


TABLE = (
    Harness("cbor", formats.cbor_value),
    Harness("cose", formats.cose_message),
    Harness("segment", formats.segment_body),
    Harness("packed", formats.packed_body),
    Harness("baseline", formats.baseline),
    Harness("receipt", formats.receipt),
    Harness("answer", formats.http_answer),
    Harness("encrypted", formats.encrypted),
    Harness("certificate", formats.certificate),
    Harness("enrolment", formats.enrolment_request),
    Harness("mqtt", formats.by_mqtt),
    Harness("memory", formats.uplink_memory),
    Harness("epoch", formats.epoch_statement),
    Harness("tpm", formats.tpm_structure, size=256),
    Harness("es256", formats.es256_message),
    Harness("ledger", formats.ledger),
    Harness("evidence", formats.evidence_folder),
    Harness("journal", formats.journal_file),
    Harness("manifest", formats.manifest_file),
    Harness("observed", formats.observed_file),
    Harness("frames", formats.helper_frames),
    Harness("control", formats.control_line),
    Harness("netlink", kernel.netlink_datagram),
    Harness("fsnotify", kernel.file_events),
    Harness("uevent", kernel.uevent_and_descriptors),
    Harness("procfs", kernel.proc_files),
    Harness("policy", texts.policy),
    Harness("aide", texts.aide),
    Harness("logbook", formats.logs_memory),
    Harness("settings", texts.settings),
    Harness("dpkg", texts.dpkg),
    Harness("sshd", texts.sshd),
    Harness("libraries", texts.libraries),
    Harness("accounts", texts.accounts),
    Harness("changes", texts.changes),
    Harness("apt", texts.apt),
    Harness("package", formats.package),
    Harness("overlay", formats.overlay_and_expected),
    Harness("image", texts.image),
)


def samples(harness: Harness) -> Iterator[tuple[str, bytes]]:
    """The harness's corpus: name and bytes, in order."""
    for path in sorted(harness.corpus.iterdir()):
        yield path.name, path.read_bytes()
