"""Two tests run at a time: each has a thread, and those of the files that take minutes begin first."""

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

MINUTES = ("tests/test_docs.py", "tests/flows/")
"""Where the tests start servers and run whole pipelines."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(MINUTES))
