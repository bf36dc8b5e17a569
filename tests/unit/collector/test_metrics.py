"""The collector's figures are the database's, in a form that Prometheus reads, from the command and over HTTP."""

import re
import socket
import urllib.request

import pytest
from small_world import finding, moment, state
from test_alertbook import World, change, over
from test_ingest import OTHER, chain, segment

from edgeguard.collector import metrics, schema
from edgeguard.collector.main import main
from edgeguard.model import Severity
from edgeguard.records import compose, wire

LINE = re.compile(r'edgeguard_collector_[a-z_]+(\{([a-z_]+="(?:[^"\\\n]|\\.)*",?)+\})? -?[0-9.]+')


def parsed(page):
    """{name with labels: value}, after a check of the whole form."""
    found, declared = {}, set()
    assert page.endswith("\n")
    for line in page.splitlines():
        if line.startswith("# "):
            word, name = line.split()[1:3]
            assert word in {"HELP", "TYPE"}
            declared.add(name)
            continue
        assert LINE.fullmatch(line), line
        key, value = line.rsplit(" ", 1)
        assert key.split("{")[0] in declared
        assert key not in found
        found[key.removeprefix("edgeguard_collector_")] = float(value)
    return found


@pytest.fixture
def world(tmp_path):
    return World(str(tmp_path / "collector.db"))


def test_what_stands_there(world):
    first, _, third = chain(3)
    world.take(first, first)
    world.take(third)
    world.take(segment(9, wire.NO_PREVIOUS, seed=OTHER))
    world.book.note(world.time)
    found = parsed(metrics.text(world.db, world.time + 5000))
    assert (found["devices"], found["devices_heard"]) == (1, 1)
    assert (found["segments_total"], found["records_total"]) == (2, 4)
    assert found["segment_bytes_total"] == len(first) + len(third)
    assert found["duplicates_total"] == 1
    assert found['incidents{name="gap"}'] == 1
    assert found["chains_with_gap"] == 1
    assert found['refused_total{name="re-sealed"}'] == 1
    assert found['findings_open{severity="critical"}'] == 1  # one finding, whatever it is seen on
    assert found['alerts_open{kind="finding"}'] == 1
    assert found['device_last_seen_timestamp_seconds{device="pump-07"}'] == world.time / 1000
    assert found["longest_silence_seconds"] == 5


def test_open_findings_by_severity(world):
    world.report(change(), change("F-2", severity=Severity.LOW), change("F-3", severity=Severity.LOW), over("F-4"))
    found = parsed(metrics.text(world.db, world.time))
    assert [found[f'findings_open{{severity="{name}"}}'] for name in ("critical", "high", "low")] == [1, 0, 2]


def test_messages(world):
    world.report(change())
    world.book.note(world.time)
    world.book.pack(world.time + 1000)
    message = world.book.next_message("ops", world.time + 1000)
    world.book.sent(message, world.time)
    found = parsed(metrics.text(world.db, world.time))
    assert found['messages{target="ops",state="sent"}'] == 1
    assert found['messages{target="duty",state="waiting"}'] == 1


def test_lag_is_how_old_the_newest_record_was(world):
    now = moment().wall + 90_000
    world.time = now
    world.db.execute("UPDATE devices SET lag = NULL")
    from small_world import EPOCH_SEED
    from test_ingest import DEVICE

    from edgeguard.codec import cose
    from edgeguard.records.wire import Header

    header = Header(DEVICE, 0, 1, 1, 1, 1, 0, wire.NO_PREVIOUS, moment().mono, moment().wall, 2, bytes(8), 0)
    records = [compose.finding(finding(), moment()), state("a")]
    world.take(cose.sign1(wire.encode_segment(header, records), EPOCH_SEED, cose.SEGMENT_AAD))
    assert parsed(metrics.text(world.db, now))['device_lag_seconds{device="pump-07"}'] == pytest.approx(90, abs=0.1)


def test_a_name_cannot_add_a_line():
    lines = list(metrics._family("x", "gauge", "About.", [({"a": 'b"} 1\nevil 2\\'}, 1)]))
    assert LINE.fullmatch(lines[2])


def test_totals_of_an_older_database_are_counted_once(tmp_path, world):
    first, second = chain(2)
    world.take(first, second)
    before = parsed(metrics.text(world.db, world.time))
    for table in ("findings", "alerts", "messages", "notices", "epochs", "announced"):
        world.db.execute(f"DROP TABLE {table}")
    for column in ("pace", "beat", "beat_seq", "beat_boot", "beat_mono", "segments", "records", "bytes", "lag"):
        world.db.execute("DROP INDEX IF EXISTS devices_seen")
        world.db.execute(f"ALTER TABLE devices DROP COLUMN {column}")
    for index in ("incidents_new", "incidents_over", "segments_of_epoch"):
        world.db.execute(f"DROP INDEX {index}")
    world.db.execute("ALTER TABLE incidents DROP COLUMN noted")
    world.db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    schema.migrate(world.db)
    after = parsed(metrics.text(world.db, world.time))
    for name in ("segments_total", "segment_bytes_total", "records_total", 'findings_open{severity="critical"}'):
        assert after[name] == before[name]


def test_from_the_command_and_over_http(tmp_path, capsys):
    pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
    from test_uplink_live import Serving

    directory = str(tmp_path / "c")
    assert main(["init", directory]) == 0
    capsys.readouterr()
    assert main(["metrics", directory]) == 0
    printed = parsed(capsys.readouterr().out)
    assert printed["devices"] == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "c/edgeguard-collector.toml").write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    serving = Serving(directory)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
            assert parsed(answer.read().decode()).keys() == printed.keys()
    finally:
        serving.stop()
