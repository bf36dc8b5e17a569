"""How busy device and guard are becomes a record now and then; what is unknown is left out."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgeguard.daemon.metering import Metering
from edgeguard.records import registry
from edgeguard.records.compose import Moment
from edgeguard.records.registry import Stream
from edgeguard.records.wire import Record
from edgeguard.settings import Budget, Paths, Settings


class Clockwork:
    """A loop whose timers the test rings."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []

    def later(self, seconds: float, callback: Any, slack: float = 0.0) -> None:
        assert slack < seconds
        self.timers.append((seconds, callback))

    def ring(self) -> float:
        seconds, callback = self.timers.pop(0)
        callback()
        return seconds


def made(tmp_path: Path, root: str, every: int = 900) -> tuple[Metering, Clockwork, list[Record]]:
    loop, told = Clockwork(), []
    paths = Paths(root=root, state=str(tmp_path), exchange=str(tmp_path))
    anything: Any = SimpleNamespace
    meter = Metering(
        loop,  # type: ignore[arg-type]
        Settings(paths=paths, budget=Budget(metrics_s=every)),
        anything(record=told.append, moment=lambda: Moment(1000, 2000)),
        anything(bytes=100, written=5000, disk_written=None),
        anything(ledger=anything(open=lambda: "abc")),
        anything(counts={"listener": 7}),
        anything(lost=2),
    )
    return meter, loop, told


def test_one_soon_and_then_one_in_each_interval(tmp_path: Path) -> None:
    meter, loop, told = made(tmp_path, "/")
    meter.begin()
    assert [loop.ring(), loop.ring(), loop.ring()] == [300.0, 900, 900]
    assert len(loop.timers) == 1
    assert {(record.type, record.stream) for record in told} == {(registry.METRIC.number, Stream.METRICS)}


def test_what_is_counted(tmp_path: Path) -> None:
    meter, _, _ = made(tmp_path, "/")
    meter.observations = 5
    busy = time.process_time()
    values = meter.values()
    assert (values["observations"], values["lost"], values["open_findings"], values["listening"]) == (5, 2, 3, 7)
    assert (values["spool_bytes"], values["written_kib"], values["disk_written_kib"]) == (100, 4, None)
    assert (values["cpu_ms"] or 0) >= int(busy * 1000) - 20  # ticks of 10 ms
    assert (values["rss_kib"] or 0) > 5000


def test_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    meter, loop, told = made(tmp_path, f"{tmp_path}/empty")
    meter.begin()
    loop.ring()
    fields = dict(zip(registry.field_names(registry.METRIC.number), told[0].fields, strict=False))
    assert fields["processes"] is None
    assert fields["disk_written_kib"] is None
    assert fields["open_findings"] == 3
