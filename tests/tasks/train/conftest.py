from pathlib import Path

import pytest

from tasks.partition.federation import Federation
from tests.tasks.train.runs import federation


@pytest.fixture
def data(tmp_path: Path) -> Federation:
    """Eight clients of 1 to 20 samples."""
    return federation(tmp_path / "partition")
