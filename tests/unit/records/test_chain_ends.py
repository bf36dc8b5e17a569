"""The end of a chain, and what the device itself has named: an end that was let go with a signed word is explained, one
without it is a tail that is missing. Links on paper; whole devices are in test_eviction and test_verify_log.
"""

from hashlib import sha256

import pytest

from edgeguard.records import wire
from edgeguard.records.chain import Chain, Known
from edgeguard.records.defects import Report
from edgeguard.records.epoch import Head
from edgeguard.records.examine import Link

DEVICE = b"\x07" * 16
STREAM = 2


def digest(sequence):
    return sha256(b"%d" % sequence).digest()


def judged(upto, drops=(), claims=(), known=()):
    """(name, first, last) of each defect in a log of segments 1 to `upto`."""
    report = Report()
    chain = Chain(report, [Known(DEVICE, STREAM, *head, "a receipt") for head in known])
    for sequence, named in claims:
        chain.claim(DEVICE, Head(STREAM, sequence, named[:16]), "the statement of epoch 2")
    for first, last in drops:
        chain.explain(DEVICE, STREAM, first, last, "evicted")
    for sequence in range(1, upto + 1):
        previous = digest(sequence - 1) if sequence > 1 else wire.NO_PREVIOUS
        chain.follow(Link(DEVICE, STREAM, sequence, digest(sequence), previous, sequence, 1, 1, 1, None, None))
    chain.finish()
    return [(defect.name.word, defect.place.sequence, defect.last) for defect in report.defects]


@pytest.mark.parametrize(
    ("drops", "missing"),
    [
        ([], [("tail missing", 4, 6)]),
        ([(4, 6)], []),
        ([(4, 4), (5, 6)], []),
        ([(5, 5)], [("tail missing", 4, 4), ("tail missing", 6, 6)]),
        ([(1, 3)], [("tail missing", 4, 6)]),
    ],
)
def test_an_end_that_a_statement_names_is_there_or_explained(drops, missing):
    assert judged(3, drops, claims=[(6, digest(6))]) == missing


@pytest.mark.parametrize(("drops", "missing"), [([], [("tail missing", 4, 6)]), ([(6, 6)], []), ([(4, 6)], [])])
def test_an_end_that_a_receipt_confirms_takes_those_before_it_along(drops, missing):
    """The device may delete all up to that head; where the head itself was let go, those before it are no gap."""
    assert judged(3, drops, known=[(6, digest(6))]) == missing


@pytest.mark.parametrize(
    ("drops", "found"), [([], [("rolled back", 2, 0)]), ([(2, 2)], []), ([(3, 3)], [("rolled back", 2, 0)])]
)
def test_another_segment_than_the_device_named_is_explained_by_the_loss_of_that_one_only(drops, found):
    """A signed word says that what had this number was lost."""
    assert judged(3, drops, claims=[(2, digest(99))]) == found


def test_what_was_named_and_is_there_is_no_defect():
    assert judged(3, claims=[(2, digest(2)), (3, digest(3))], known=[(3, digest(3))]) == []


def after_damage(here, named, lost):
    """Defects of a log in which only `here` of segments 1 to 4 are left and number 5 names number `named` (0: none)."""
    report = Report()
    chain = Chain(report)
    for sequence in here:
        previous = digest(sequence - 1) if sequence > 1 else wire.NO_PREVIOUS
        chain.follow(Link(DEVICE, STREAM, sequence, digest(sequence), previous, sequence, 1, 1, 1, None, None))
    for sequence in lost:
        chain.explain(DEVICE, STREAM, sequence, sequence, "damaged")
    previous = digest(named) if named else wire.NO_PREVIOUS
    chain.follow(Link(DEVICE, STREAM, 5, digest(5), previous, 5, 1, 1, 1, None, None))
    chain.finish()
    return [(defect.name.word, defect.place.sequence) for defect in report.defects]


@pytest.mark.parametrize(
    ("here", "named", "lost"),
    [
        ([4], 0, [1, 2, 3, 4]),
        ([2, 4], 0, [1, 2, 3, 4]),
        ([4], 3, [1, 2, 3, 4]),
        ([4], 2, [1, 2, 3, 4]),
        ([4], 1, [1, 2, 3, 4]),
        ([2, 4], 1, [1, 2, 3, 4]),
        ([1, 2, 4], 2, [3, 4]),
        ([1, 2, 3, 4], 2, [3, 4]),
    ],
)
def test_a_sealer_goes_on_from_the_last_good_one_whether_that_is_here_or_was_let_go(here, named, lost):
    """A whole copy of what was damaged later may have been delivered, and of what was let go only its hash is named."""
    assert after_damage(here, named, lost) == []


@pytest.mark.parametrize(
    ("here", "named", "lost"),
    [
        ([1, 4], 0, [2, 3, 4]),
        ([3, 4], 2, [1, 2, 4]),
        ([3, 4], 1, [1, 2, 3]),
        ([1, 2, 3, 4], 2, [3]),
        ([1, 2, 3, 4], 99, [1, 2, 3, 4]),
        ([2, 3, 4], 99, [1, 2, 3, 4]),
    ],
)
def test_what_passes_over_a_good_one_is_spliced(here, named, lost):
    assert ("spliced", 5) in after_damage(here, named, lost)
