"""The numbers in docs/uplink.md."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[4] / "docs" / "uplink.md"


def test_the_page_says_what_messages_weigh():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 8
    assert not result.failed
