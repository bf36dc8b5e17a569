"""A week without a collector, a reboot a day, three times as much as there is room for; then the collector comes back.

Every finding and every state record arrives, once; whatever else does not is inside a range that the device signed
for. EDGEGUARD_OFFLINE_QUOTA=33554432 lives the week at the quota of the package.
"""

import os
import random

from small_world import Device, finding, moment, state

from edgeguard.codec import cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.model import Severity
from edgeguard.records import compose, delivery, evidence, outbox, registry, wire
from edgeguard.records.losses import EVICTED

QUOTA = int(os.environ.get("EDGEGUARD_OFFLINE_QUOTA", str(1 << 20)))
HOURS = 7 * 24
HOUR_MS = 3_600_000
SIZE = 200  # bytes of a record that nothing makes smaller
COLLECTOR = b"\x09" * 32


def an_hour(hour, dice):
    """Three quotas in a week, most of it verbose, as on a device."""
    start = 1000 + hour * HOUR_MS
    rows = 3 * QUOTA // HOURS // SIZE
    kinds = [1] * (rows // 3) + [2] * (rows // 12) + [3] * (rows - rows // 3 - rows // 12)
    dice.shuffle(kinds)
    for place, stream in enumerate(kinds):
        at = moment(start + place * HOUR_MS // (rows + 4))
        yield compose.text(dice.randbytes(SIZE).hex(), at)._replace(stream=stream)
    yield compose.finding(
        finding(f"/usr/bin/tool-{hour}", Severity.LOW, id=f"F-{hour:04d}"), moment(start + HOUR_MS - 2)
    )
    yield state(f"hour {hour}", start + HOUR_MS - 1)


def test_a_week_offline_loses_no_finding_and_explains_the_rest(tmp_path):
    dice = random.Random(7)
    device = Device(str(tmp_path), size=128 * 1024, spool_bytes=QUOTA)
    device.with_collector(cose.public_of(COLLECTOR))
    made = dict.fromkeys(range(4), 0)
    sealed = 0
    for day in range(7):
        spool = device.spool(b"day %012d" % day)
        spool.open()
        for hour in range(day * 24, day * 24 + 24):
            for record in an_hour(hour, dice):
                made[record.stream] += 1
                spool.append(record)
                if spool.commit_due(record.mono) == 0:
                    spool.commit()
                if spool.seal_due(record.mono) and spool.rotate(record.mono):
                    sealed += sum(row["bytes"] for row in device.seal()["sealed"])
                    spool.refresh()
            spool.rotate(1000 + (hour + 1) * HOUR_MS, force=True)
            result = device.seal()
            sealed += sum(row["bytes"] for row in result["sealed"])
            assert result["problems"] == []
            assert result["bytes"] <= result["limit"] == QUOTA
            spool.refresh()
        os.close(spool._fd)  # a power cut would do the same
    assert sealed > 2.5 * QUOTA
    arrived(device, made)


def arrived(device, made):
    database = store.connect(":memory:")
    ingest = Ingest(database, COLLECTOR, lambda: 1)
    known = ingest.add_device("d", device.public)
    spool = device.spool(b"and then online.")
    spool.open()
    spool.append(state("start", 1000 + HOURS * HOUR_MS))
    for turn in (1, 2):
        spool.rotate(10**10 * turn, force=True)
        device.seal()
        spool.refresh()
    spool.close()
    newest = outbox.newest(outbox.listing(device.outbox))
    receipt = b""
    ingest.take(b"".join(device.statements().values()), known)
    for name in delivery.in_order(outbox.listing(device.outbox)):
        verdicts, receipt = ingest.take(outbox.read(device.outbox, name), known)
        assert verdicts[0].name == "stored"
    with open(f"{device.inbox}/receipt.egr", "wb") as file:
        file.write(receipt)
    rows = database.execute("SELECT bytes FROM segments WHERE stream = 0").fetchall()
    told = [record for (data,) in rows for record in wire.decode_segment(cose.parse1(data).payload).records]
    findings = [record.fields[2] for record in told if record.type == registry.FINDING.number]
    states = [record.fields[1] for record in told if record.type == registry.STATE.number]
    assert sorted(findings) == [f"F-{hour:04d}" for hour in range(HOURS)]
    assert sorted(states) == sorted([*(f"hour {hour}" for hour in range(HOURS)), "start"])
    drops = database.execute("SELECT stream, first, last, reason FROM drops").fetchall()
    assert {reason for *_, reason in drops} == {EVICTED}
    assert {stream for stream, *_ in drops} >= {3}
    for stream, name in newest.items():
        here = {row[0] for row in database.execute("SELECT seq FROM segments WHERE stream = ?", (stream,))}
        said = {n for drop in drops if drop[0] == stream for n in range(drop[1], drop[2] + 1)}
        assert here | said == set(range(1, name.sequence + 1))
        assert not here & said
        head = database.execute("SELECT seq FROM heads WHERE stream = ?", (stream,)).fetchone()
        assert head == (name.sequence,)
    standing = {row[0] for row in database.execute("SELECT DISTINCT name FROM incidents WHERE resolved IS NULL")}
    assert standing == {"explained loss"}
    kept = dict(database.execute("SELECT stream, count(*) FROM records GROUP BY stream").fetchall())
    assert kept[1] / made[1] > kept[3] / made[3]  # security before noise
    result = device.seal()
    assert (result["waiting"], result["lost"]) == (0, [])
    paths = device.settings.paths
    report = evidence.own(evidence.Device(paths.state, paths.exchange, device.public, cose.public_of(COLLECTOR)))
    assert report.clean, [tuple(defect) for defect in report.defects]
    database.close()
