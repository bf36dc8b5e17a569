import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "codec"))
sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

import postgres_server
from small_world import Device


@pytest.fixture
def device(tmp_path):
    return Device(str(tmp_path))


@pytest.fixture(scope="module")
def server():
    """PostgreSQL, for the tests of one file, which are skipped where there is none."""
    if why := postgres_server.missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="egpg") as folder:
        made = postgres_server.Server(Path(folder))
        yield made
        made.stop("immediate")
