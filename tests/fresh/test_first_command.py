"""`make run` and `make test`, each as the first command on a machine with nothing but the base system, git and make."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import pytest

from tests.fresh.root import USER, Fresh

pytestmark = pytest.mark.fresh

INSTALL_S = 600.0  # some forty packages over any network
LEARN_S = 300.0
NOTICE_S = 30.0
TEST_S = 1800.0


@pytest.mark.parametrize("user", ["root", USER])
def test_make_run(suite: str, user: str) -> None:
    with Fresh(suite, user) as fresh:
        process = fresh.begin("exec make run")
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
        reader.start()

        def wait(pattern: str, seconds: float) -> None:
            _until(lambda: bool(re.search(pattern, "".join(lines))) or process.poll() is not None, seconds)
            assert re.search(pattern, "".join(lines)), "".join(lines)[-4000:]

        try:
            wait(r"The findings follow as they come", INSTALL_S + LEARN_S)
            text = "".join(lines)
            assert "Everything is below build/run" in text
            assert re.search(r"Policy r1, trust: local", text), text
            if user != "root":
                assert "EdgeGuard sees less here" in text
            # What the words on the screen tell to type in a second terminal; another shell on the same machine.
            (provoke,) = re.findall(r"^  (echo 'echo changed' >> \S+)", text, re.MULTILINE)
            act = fresh.root / fresh.home.lstrip("/") / "edgeguard" / provoke.rpartition(" ")[2]
            with act.open("a") as file:
                file.write("echo changed\n")
            wait(r"EG-FILE-002.*demo/hello", NOTICE_S)
        finally:
            process.kill()
            process.wait(30)
            reader.join(30)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("user", ["root", USER])
def test_make_test(suite: str, user: str) -> None:
    with Fresh(suite, user) as fresh:
        code, out = fresh.run("make test", timeout=TEST_S)
        assert code == 0, out[-4000:]
        assert re.search(r"\d+ passed|\[100%\]", out), out[-2000:]


def _until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)
