import pytest
import torch
from torch import Tensor

from tests.tasks.attack import scenes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    return scenes.digits()
