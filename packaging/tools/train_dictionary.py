#!/usr/bin/python3
"""Makes a preset DEFLATE dictionary: train_dictionary.py ROOT FILE [SEED]. The same root gives the same bytes.

ROOT is a directory with a Debian in it (an unpacked root; not the machine on which bytes are measured). What a device
with such a root would write (tests/bench/corpus.py) is packed into segments, and from their bodies those pieces are
taken that occur in most of them: the more often, the nearer to the end, where DEFLATE reaches with fewer bits. It is
the idea of zstd's COVER (Liao, Petri, Moffat, Wirth 2016), without its suffix array.

A dictionary is never changed once released. A new one gets the next number, its file and its SHA-256 in
edgeguard/records/dictionaries.py, and a line in docs/dictionaries.md that says what it was made of.
"""

from __future__ import annotations

import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))

from edgeguard.records import packing  # noqa: E402 - found by the line above
from edgeguard.records.dictionaries import SIZE_MAX  # noqa: E402
from tests.bench.corpus import Baseline, Machine, corpus, streams  # noqa: E402

SIZE = SIZE_MAX - 512  # the last bytes of the window would be out of reach as soon as the body begins
GRAM = 6  # bytes that are counted: a match of six saves something even from far away
PIECE = 64  # bytes that are taken at once
BATCH = 16  # records of a segment
SEED = 2


def bodies(root: str, seed: int) -> list[bytes]:
    """The bodies of packed segments before compression, with the baseline's references and without."""
    machine = Machine(root, seed)
    baseline = Baseline(machine)
    found = []
    for known in (baseline, None):
        for stream in streams(corpus(machine, seed)):
            batches = (stream[at : at + BATCH] for at in range(0, len(stream), BATCH))
            if known:
                found += [packing.packed_body(batch, known.reference, known.digest) for batch in batches]
            else:
                found += [packing.packed_body(batch) for batch in batches]
    return found


def train(texts: list[bytes], size: int = SIZE) -> bytes:
    """At most `size` bytes, the best piece of each stretch of all texts, the best of all last."""
    count: Counter[bytes] = Counter()
    for text in texts:
        count.update({text[at : at + GRAM] for at in range(len(text) - GRAM + 1)})
    whole = b"".join(texts)
    stretches = max(1, size // PIECE)
    step = len(whole) // stretches
    chosen = []
    for number in range(stretches):
        value, piece = _best(whole[number * step : (number + 1) * step + PIECE], count)
        if value:
            chosen.append((value, piece))
            for at in range(len(piece) - GRAM + 1):
                count[piece[at : at + GRAM]] = 0  # once is enough
    return b"".join(piece for _, piece in sorted(chosen, key=lambda item: item[0]))


def _best(stretch: bytes, count: Counter[bytes]) -> tuple[int, bytes]:
    """The piece of this stretch whose grams occur in most segments: (how many in all, piece)."""
    grams = [stretch[at : at + GRAM] for at in range(len(stretch) - GRAM + 1)]
    width = PIECE - GRAM + 1
    inside: Counter[bytes] = Counter()
    value, best, found = 0, 0, 0
    for at, gram in enumerate(grams):
        inside[gram] += 1
        if inside[gram] == 1:
            value += max(0, count[gram] - 1)
        if at >= width:
            left = grams[at - width]
            inside[left] -= 1
            if inside[left] == 0:
                value -= max(0, count[left] - 1)
        if value > best:
            best, found = value, max(0, at - width + 1)
    return best, stretch[found : found + PIECE]


def main(arguments: list[str]) -> int:
    if len(arguments) not in {2, 3}:
        print((__doc__ or "").splitlines()[0], file=sys.stderr)
        return 64
    root, target, *rest = arguments
    seed = int(rest[0]) if rest else SEED
    data = train(bodies(root, seed))
    Path(target).write_bytes(data)
    print(f"{len(data)} bytes, SHA-256 {sha256(data).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
