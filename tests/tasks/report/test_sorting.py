"""The table of a comparison in a real browser: sorted by a click or a key, and looked at by axe-core."""

import pytest

from tasks.report.comparison import compare
from tests.tasks.report.test_comparison import RESULTS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
browsing = pytest.importorskip("tests.tasks.report.test_browser")
pytestmark = browsing.pytestmark
browser = browsing.browser


@pytest.fixture
def page(browser, tmp_path):
    """The page of a comparison, which must not complain."""
    (tmp_path / "s.html").write_text(compare("s", "Which is best?", RESULTS))
    opened, said = browser.new_page(), []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.goto((tmp_path / "s.html").as_uri())
    yield opened
    opened.close()
    assert said == []


@pytest.mark.parametrize("press", ["click", "key"])
def test_the_table_is_sorted_by_a_column(page, press):
    def sort(name: str) -> tuple[str, str | None]:
        button = page.locator("table.sortable thead").get_by_role("button", name=name, exact=True)
        button.click() if press == "click" else button.press("Enter")
        (head,) = page.locator("table.sortable th[aria-sort]").all()
        assert head.inner_text() == name
        return order(), head.get_attribute("aria-sort")

    def order() -> str:
        return "".join(page.locator("table.sortable tbody th").all_inner_texts())

    assert order() == "123456"
    # What has no number comes last, whichever way the others are turned.
    assert sort("sent up") == ("423156", "ascending")
    assert sort("sent up") == ("123456", "descending")
    assert sort("epsilon") == ("432156", "ascending")
    assert sort("outcome") == ("543216", "ascending")
    assert sort("cell") == ("123456", "ascending")


def test_without_scripts_it_is_a_table_all_the_same(browser, tmp_path):
    (tmp_path / "s.html").write_text(compare("s", "", RESULTS))
    context = browser.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto((tmp_path / "s.html").as_uri())
    assert still.locator("table.sortable tbody tr").count() == len(RESULTS)
    assert still.locator("button").count() == 0
    context.close()
