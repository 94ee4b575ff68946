"""What the tests of the partition stage share: a way to run it, and the places where real data may lie."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.partition.federation import Federation
from tasks.partition.settings import PartitionSettings
from tasks.partition.stage import partition
from tasks.tracking import Tracker

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def settle() -> Callable[[dict], PartitionSettings]:
    """Settings from what YAML would say."""
    return lambda section: PartitionSettings.model_validate_json(json.dumps(section, default=str), strict=True)


@pytest.fixture
def run(tmp_path: Path, settle: Callable) -> Callable[..., Federation]:
    """Runs the stage with a section of parameters, and opens what it publishes."""

    def run(section: dict, seed: int = 0, folder: str = "run") -> Federation:
        artifacts = tmp_path / folder / "artifacts"
        partition(SimpleNamespace(seed=seed, partition=settle(section)), artifacts, Tracker("partition"))
        return Federation.open(artifacts / "partition")

    return run


@pytest.fixture
def real() -> Callable[[str], Path]:
    """A folder or file under the data root; the test is skipped where there is none."""
    root = Path(os.environ.get("FEDLOOM_DATA", ROOT.parent / "shared" / "data"))

    def real(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no {root / name}: set FEDLOOM_DATA to a folder with the published data")
        return root / name

    return real
