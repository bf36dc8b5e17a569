import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "codec"))
sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

from small_world import Device


@pytest.fixture
def device(tmp_path):
    return Device(str(tmp_path))
