"""The page in a real browser: pointed at, read by keyboard and by finger, saved, printed, and looked at by axe-core."""

import csv
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from tasks.report.figures import COLOURS
from tasks.report.stage import report
from tasks.tracking import Tracker

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1200, "height": 900}
ROUNDS = 4


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def url(finished, params, tmp_path_factory) -> str:
    """The page as the stage publishes it."""
    folder = Path(shutil.copytree(finished / "artifacts", tmp_path_factory.mktemp("page") / "artifacts"))
    report(params, folder, Tracker("report"))
    return (folder / "report" / "index.html").as_uri()


@pytest.fixture(scope="module")
def history(finished) -> list[dict[str, str]]:
    with (finished / "artifacts" / "train" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def opened(browser, url):
    """Opens the page in a window of its own; a page that complains or asks for anything is none to be content with."""

    @contextmanager
    def open_(viewport=DESK, scheme="light", **more) -> Iterator:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True, **more)
        page, asked, said = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        yield page
        assert said == []
        assert [address for address in asked if not address.startswith(("data:", "blob:"))] == [url]
        context.close()

    return open_


def chart(page, caption="Accuracy over rounds."):
    return page.locator("figure.chart").filter(has=page.locator("figcaption", has_text=caption)).first


def told(figure) -> str:
    return " ".join(figure.locator(".tip").inner_text().replace("\N{NO-BREAK SPACE}", " ").split())


def expected(row: dict[str, str]) -> str:
    """What a tip says of a round, from the history."""
    shares = [float(f"{100 * float(row[name]):.4g}") for name in ("test_accuracy", "validation_accuracy")]
    test, held_out = (f"{share:g} %" for share in shares)
    return f"round {row['round']}: test set {test} clients' held-out samples {held_out}"


def above(figure, label: str) -> tuple[float, float]:
    """A point of the window over a tick of the horizontal axis."""
    figure.scroll_into_view_if_needed()
    tick = figure.locator("svg text", has_text=label).first.bounding_box()
    plot = figure.locator(".plot").bounding_box()
    return tick["x"] + tick["width"] / 2, plot["y"] + plot["height"] / 3


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_a_pointer_is_told_the_numbers_of_the_round_it_is_over(opened, history, viewport):
    with opened(viewport) as page:
        figure = chart(page)
        for label in ("2", "3"):
            page.mouse.move(*above(figure, label))
            assert told(figure) == expected(history[int(label) - 1])
            tip, plot = (figure.locator(name).bounding_box() for name in (".tip", ".plot"))
            assert tip["x"] >= plot["x"] - 1
            assert tip["x"] + tip["width"] <= plot["x"] + plot["width"] + 1
            assert figure.locator(".cursor circle").count() == 2
        page.mouse.move(1, 1)
        assert told(figure) == ""


def test_a_finger_is_told_them_too_and_they_stay_when_it_is_lifted(opened, history):
    with opened(PHONE, has_touch=True) as page:
        figure = chart(page)
        page.touchscreen.tap(*above(figure, "3"))
        assert told(figure) == expected(history[2])


def test_the_arrow_keys_read_the_rounds_and_a_screen_reader_hears_of_it(opened, history):
    with opened() as page:
        figure = chart(page)
        frame = figure.locator(".plot")
        frame.focus()
        for key, row in (
            ("ArrowRight", 0),
            ("ArrowRight", 1),
            ("End", -1),
            ("ArrowRight", -1),
            ("ArrowLeft", -2),
            ("Home", 0),
        ):
            page.keyboard.press(key)
            assert told(figure) == expected(history[row])
        assert figure.locator(".tip").get_attribute("role") == "status"
        assert "arrow keys" in frame.get_attribute("aria-label")
        page.keyboard.press("Escape")
        assert told(figure) == ""


def test_bars_are_told_by_their_names(opened):
    with opened() as page:
        figure = chart(page, "Seconds in all rounds.")
        first = figure.locator("svg text", has_text="compute").bounding_box()
        page.mouse.move(first["x"] + first["width"] / 2, first["y"] + first["height"] / 2)
        figure.locator("summary").click()
        value = figure.locator("tr", has_text="compute").locator("td").inner_text()
        page.mouse.move(first["x"] + first["width"] / 2 + 3, first["y"] + first["height"] / 2)
        assert told(figure) == f"compute: seconds {value}"


def test_a_series_is_hidden_and_shown_by_its_name(opened, history):
    with opened() as page:
        figure = chart(page)
        button = figure.get_by_role("button", name="test set", exact=True)
        line = figure.locator('[data-series="0"]')
        assert line.is_visible()
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert not line.is_visible()
        page.mouse.move(*above(figure, "3"))
        assert "test set" not in told(figure)
        assert told(figure).startswith("round 3: clients' held-out samples")
        button.click()
        assert line.is_visible()


def saved(page, figure, kind: str) -> tuple[str, bytes]:
    with page.expect_download() as found:
        figure.locator(".tools button", has_text=kind).click()
    return found.value.suggested_filename, Path(found.value.path()).read_bytes()


def test_the_numbers_of_a_chart_are_saved_as_csv(opened, history):
    with opened() as page:
        name, content = saved(page, chart(page), "CSV")
    assert name == "accuracy-over-rounds.csv"
    header, *rows = csv.reader(io.StringIO(content.decode()))
    assert header == ["round", "test set", "clients' held-out samples"]
    assert [row[0] for row in rows] == [row["round"] for row in history]
    for column, of in ((1, "test_accuracy"), (2, "validation_accuracy")):
        assert [float(row[column]) for row in rows] == pytest.approx([float(row[of]) for row in history], rel=1e-5)


def test_a_chart_is_saved_as_an_svg_that_stands_alone(opened):
    with opened(scheme="dark") as page:
        page.mouse.move(*above(chart(page), "2"))
        name, content = saved(page, chart(page), "SVG")
    assert name == "accuracy-over-rounds.svg"
    root = ElementTree.fromstring(content)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert float(root.get("width")) == float(root.get("viewBox").split()[2])
    assert root.find(f"{space}title").text.startswith("Accuracy over rounds")
    assert {"round", "accuracy"} <= {text.text for text in root.iter(f"{space}text")}
    assert b"var(" not in content
    assert root.find(f".//{space}g[@class='cursor']") is None
    for i, colour in enumerate(("blue", "orange")):
        path = root.find(f".//{space}g[@data-series='{i}']/{space}path")
        assert COLOURS[colour] in path.get("style")
        assert path.get("d").count("L") == ROUNDS - 1


def test_a_chart_is_saved_as_a_png_that_shows_its_lines(opened):
    with opened() as page:
        name, content = saved(page, chart(page), "PNG")
        width = page.evaluate("document.querySelector('figure.chart svg').viewBox.baseVal.width")
    assert name == "accuracy-over-rounds.png"
    image = Image.open(io.BytesIO(content)).convert("RGB")
    assert image.width == pytest.approx(3 * width, abs=1)
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 20)}
    assert image.getpixel((0, 0)) == (255, 255, 255)
    for name in ("blue", "orange"):
        assert tuple(bytes.fromhex(COLOURS[name][1:])) in colours


def test_a_script_that_got_into_the_page_would_not_run(opened, browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.evaluate(
        """() => {
            window.refused = [];
            document.addEventListener("securitypolicyviolation", (e) => window.refused.push(e.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            new Image().src = "http://127.0.0.1:9/picture.png";
        }"""
    )
    page.wait_for_function("window.refused.length >= 2")
    assert page.evaluate("window.ran") is None
    assert sorted(page.evaluate("window.refused")) == ["img-src", "script-src-elem"]
    context.close()


def test_without_scripts_the_page_says_the_same_and_offers_nothing_that_does_not_work(opened, history):
    with opened(java_script_enabled=False) as page:
        figure = chart(page)
        assert figure.locator("svg").is_visible()
        assert figure.locator("svg .legend").is_visible()
        assert page.locator("button").count() == 0
        figure.locator("summary").click()
        assert figure.locator("tbody tr").count() == len(history)


def test_on_a_phone_nothing_is_wider_than_the_screen(opened):
    with opened(PHONE, has_touch=True) as page:
        for unfolded in (False, True):
            page.evaluate("(open) => document.querySelectorAll('details').forEach((d) => { d.open = open; })", unfolded)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        strip = page.locator(".strip").first
        tops = {round(strip.locator("img").nth(i).bounding_box()["y"]) for i in range(3)}
        assert len(tops) == 1, "an original and its reconstructions stand side by side"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_serious_fault(opened, viewport, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(viewport, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        chart(page).locator(".plot").focus()
        page.keyboard.press("ArrowRight")
        found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20
    faults = [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]]
    assert faults == []


def test_on_paper_charts_are_whole_and_nothing_is_there_to_press(opened):
    with opened(viewport={"width": 680, "height": 960}) as page:
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.emulate_media(media="print")
        for gone in ("button", "nav", ".tip", "details:not([open])"):
            assert not any(each.is_visible() for each in page.locator(gone).all()), gone
        assert chart(page).locator("svg .legend").is_visible()
        for figure in page.locator("figure").all():
            box = figure.bounding_box()
            assert box is None or box["x"] + box["width"] <= 681
        assert page.locator("figure").first.evaluate("(each) => getComputedStyle(each).breakInside") == "avoid"
