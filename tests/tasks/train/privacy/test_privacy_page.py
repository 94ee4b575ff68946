"""The numbers in docs/privacy.md."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[4] / "docs" / "privacy.md"


def test_the_page_says_what_privacy_costs():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 5
    assert not result.failed
