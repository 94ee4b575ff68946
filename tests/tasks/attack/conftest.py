import pytest
from torch import Tensor

from tests.tasks.attack import scenes


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    return scenes.digits()
