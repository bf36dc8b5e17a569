"""The hook of image updates: never fails or holds an update, follows nothing, keeps what nobody takes, stands alone."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[3] / "packaging/bin/edgeguard-image-update"


def loaded() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("edgeguard_image_update", str(PROGRAM))
    spec = importlib.util.spec_from_loader("edgeguard_image_update", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


HOOK = loaded()


class Place:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.spool = base / "spool"
        self.spool.mkdir(mode=0o700)
        self.baseline = base / "image.egb"
        self.baseline.write_bytes(b"baseline")
        (base / "image.egm").write_bytes(b"manifest")
        self.asked: list[dict[str, object]] = []

    def run(self, *words: object, strict: bool = False) -> int:
        more = ["--strict"] if strict else []
        places = ["--spool", str(self.spool), "--socket", f"{self.base}/sock"]
        code: int = HOOK.main([*more, *places, *map(str, words or (self.baseline,))])
        return code

    def kept(self) -> list[str]:
        return sorted(os.listdir(self.spool))

    def daemon(self, answer: Callable[[int], bytes]) -> None:
        """Answers each connection in turn; `answer` gets how many there were before."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{self.base}/sock")
        server.listen()

        def serve() -> None:
            for number in range(10):
                connection, _ = server.accept()
                with connection:
                    question = json.loads(connection.recv(65536))
                    self.asked.append(question["parameters"])
                    said = answer(number)
                    if said == b"never":
                        time.sleep(5)
                    with contextlib.suppress(BrokenPipeError):  # who waited long enough has hung up
                        connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


WAITS = {"parameters": {"revision": 9, "previous": 8, "image": "pump 2", "waits": True}}
REFUSED = {"error": "org.edgeguard.BadSignature", "parameters": {"message": "signed by key \\x1b[31m00"}}


def test_without_a_daemon_it_is_kept_whole(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run(strict=True) == 0
    (name,) = place.kept()
    assert not name.startswith(".")
    assert (place.spool / name / "baseline.egb").read_bytes() == b"baseline"
    assert (place.spool / name / "baseline.egm").read_bytes() == b"manifest"
    assert (place.spool / name).stat().st_mode & 0o777 == 0o700
    assert "looked at when it starts" in said(capsys)


def test_what_the_daemon_took_is_not_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bytes] = []

    def answer(_number: int) -> bytes:
        seen.append(Path(str(place.asked[-1]["path"])).read_bytes())
        assert Path(str(place.asked[-1]["path"])).parent.name.startswith(".")  # no other look comes upon it
        return line(WAITS)

    place.daemon(answer)
    assert place.run(strict=True) == 0
    assert (seen, place.kept()) == ([b"baseline"], [])
    assert "waits until that image runs; r8 stays in force" in said(capsys)


def test_a_refusal_is_said_and_stops_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.daemon(lambda _number: line(REFUSED))
    assert place.run() == 0
    assert "refused: signed by key \\x1b[31m00" in said(capsys)
    assert place.run(strict=True) == 1
    assert place.kept() == []


def test_a_busy_daemon_is_asked_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOOK, "BUSY_S", 0.01)
    busy = {"error": "org.edgeguard.Busy", "parameters": {"message": "later"}}
    place.daemon(lambda number: line(busy if number < 2 else WAITS))
    assert place.run(strict=True) == 0
    assert len(place.asked) == 3


def test_a_daemon_that_hangs_holds_no_update(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HOOK, "LIMIT_S", 1)
    place.daemon(lambda _number: b"never")
    started = time.monotonic()
    assert place.run() == 0
    assert time.monotonic() - started < 3
    assert "the update goes on" in said(capsys)
    assert len(place.kept()) == 1


@pytest.mark.parametrize("answer", [b"", b"\n", b"[]\n", b"{" * 1000 + b"\n", b"\xff\n", b'"x"\n'])
def test_a_daemon_that_says_nonsense_is_none(place: Place, answer: bytes) -> None:
    place.daemon(lambda _number: answer)
    assert place.run() == 0
    assert len(place.kept()) == 1


def test_what_is_no_file_is_asked_about_by_its_name(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """So that the daemon's refusal becomes a finding."""
    place.daemon(lambda _number: line(REFUSED))
    os.mkfifo(place.base / "fifo.egb")
    (place.base / "link.egb").symlink_to("/etc/shadow")
    for name in ("nowhere.egb", "fifo.egb", "link.egb"):
        assert place.run(place.base / name) == 0
    assert [Path(str(item["path"])).name for item in place.asked] == ["nowhere.egb", "fifo.egb", "link.egb"]
    assert place.kept() == []
    assert "cannot be copied" in said(capsys)


def test_a_full_disk_leaves_no_half(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_words: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    assert place.run(strict=True) == 1
    assert place.kept() == []
    assert "No space left on device" in said(capsys)
    monkeypatch.undo()
    monkeypatch.setattr(HOOK, "FREE_MIN", 1 << 60)
    assert place.run() == 0
    assert "No space left on device" in said(capsys)


def test_without_rights_it_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_words: object, **_more: object) -> int:
        raise PermissionError(13, "Permission denied", str(place.spool))

    monkeypatch.setattr(os, "open", denied)
    assert place.run() == 0
    assert place.run(strict=True) == 1
    assert "Permission denied" in said(capsys)


@pytest.mark.parametrize("words", [(), ("a", "b", "c"), ("--nonsense",)])
def test_wrong_input_shows_how_and_stops_nothing(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert HOOK.main([*words]) == 0
    captured = capsys.readouterr()
    assert "usage: edgeguard-image-update" in captured.out + captured.err
    assert HOOK.main(["--strict", *words]) == 1


def test_a_name_that_is_no_text_bites_nobody(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = os.fsdecode(os.fsencode(place.base) + b"/a\x1b[31m\xff.egb")
    assert place.run(hostile) == 0
    shown = said(capsys)
    assert "\x1b" not in shown
    assert shown.isascii()
    Path(hostile).write_bytes(b"baseline")
    assert place.run(hostile) == 0
    assert len(place.kept()) == 1


def test_hand_overs_that_nobody_takes_stay_few(place: Place) -> None:
    (place.spool / ".00000000000000000001-1").mkdir()
    (place.spool / "a file").write_text("not ours")
    for _ in range(12):
        assert place.run() == 0
    assert len(place.kept()) <= HOOK.WAITING_MAX + 1
    assert ".00000000000000000001-1" not in place.kept()


def test_the_spool_is_not_followed_elsewhere(place: Place) -> None:
    elsewhere = place.base / "elsewhere"
    elsewhere.mkdir()
    place.spool.rmdir()
    place.spool.symlink_to(elsewhere)
    assert place.run() == 0
    assert os.listdir(elsewhere) == []


def test_it_stands_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(PROGRAM.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        assert not isinstance(node, ast.ImportFrom)
    assert names <= sys.stdlib_module_names
