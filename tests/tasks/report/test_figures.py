import itertools
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.amounts import NOTHING, count, duration, number, percent, size
from tasks.report.figures import COLOURS, MOST_POINTS, Drawing, Line, bars, corners, histogram, lines, roc, thinned
from tasks.report.page import Figure, inline
from tests.tasks.report.conftest import Document


def test_a_drawing_follows_the_colours_of_the_page_and_says_what_it_shows():
    series = [Line("a & b", [1, 2], [3, 4]), Line("c", [1], [1])]
    drawing = lines("Loss of <all> & some", "round", "loss", series).svg
    assert "var(--blue,#1f5fbf)" in drawing
    assert "var(--orange,#a8500c)" in drawing
    bare = re.sub(r"var\(--\w+,#[0-9a-f]{6}\)", "", drawing)
    assert not re.findall(r"#(?:[0-9a-f]{6})\b", bare)
    document = Document(drawing)
    assert document.all("svg")[0]["attrs"]["aria-label"] == "Loss of <all> & some"
    assert "a & b" in document.all("svg")[0]["text"]


def test_drawings_share_no_id_and_the_same_numbers_give_the_same_bytes():
    first = [lines("First", "x", "y", [Line("a", [1, 2], [3, 4])]).svg for _ in range(2)]
    second = lines("Second", "x", "y", [Line("a", [1, 2], [3, 4])]).svg
    assert first[0] == first[1]
    ids = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in (first[0], second)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_points_without_a_value_leave_a_series_without_breaking_it():
    drawing = lines("Gaps", "x", "y", [Line("a", [1, 2, 3], [None, math.nan, 2.0]), Line("b", [1], [None])])
    assert "nan" not in re.sub(r"<text.*?</text>", "", drawing.svg).lower()
    assert drawing.rows == (("3", "2", ""),)


@pytest.mark.parametrize("values", [[1.0] * 3, [0.0], [0.2, 0.9, 1.0]])
def test_histograms_of_one_value_or_at_the_ends_of_the_range_are_drawn(values):
    drawing = histogram("Shares", "accuracy", "clients", values, [("mean", sum(values) / len(values))])
    assert drawing.svg.startswith("<svg")
    assert sum(float(clients) for _, clients in drawing.rows) == len(values)


def places(drawing: Drawing) -> dict[str, list]:
    return json.loads(Document(drawing.svg).all("svg")[0]["attrs"]["data-plot"])


def test_the_numbers_of_series_with_places_of_their_own_stand_in_rows_by_place():
    drawing = lines("Two", "round", "loss", [Line("a", [1, 3], [0.5, 0.25]), Line("b", [2, 3], [7, 1e-9])])
    assert drawing.header == ("round", "a", "b")
    assert drawing.rows == (("1", "0.5", ""), ("2", "", "7"), ("3", "0.25", "1e-09"))
    assert [[point is None for point in one] for one in places(drawing)["at"]] == [
        [False, True, False],
        [True, False, False],
    ]


def test_the_places_of_numbers_are_where_they_are_drawn():
    """The path of the line is drawn by matplotlib, through the same points."""
    drawing = lines("One", "round", "loss", [Line("a", list(range(40)), [x * x for x in range(40)])])
    path = re.search(r'data-series="0">\s*<path d="([^"]+)"', drawing.svg)[1]
    drawn = [tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    (at,) = places(drawing)["at"]
    assert len(drawn) == len(at) == 40
    for (x, y), (u, v) in zip(drawn, at, strict=True):
        assert math.hypot(x - u, y - v) < 0.1


def test_the_places_on_logarithmic_axes_and_of_bars_are_those_of_the_drawing():
    alike = roc("Rates", [Line("attack", [0, 0.01, 0.01, 1], [0, 0, 0.1, 1])])
    assert alike.rows == (("0", "0"), ("0.01", "0"), ("0.01", "0.1"), ("1", "1"))
    low, foot, tip, top = places(alike)["at"][0]
    assert low[0] < foot[0] == tip[0] < top[0]
    # A decade a third of the way: 0.001, below which all is drawn, to 0.01, and to 0.1 and 1.
    assert foot[0] - low[0] == pytest.approx((top[0] - low[0]) / 3, abs=0.2)
    assert low[1] == foot[1] > tip[1] > top[1]
    drawing = bars("Bars", "seconds", ["long", "short"], [4.0, 1.0])
    assert drawing.rows == (("long", "4"), ("short", "1"))
    long, short = places(drawing)["at"][0]
    assert long[1] < short[1] and long[0] > short[0]


def test_a_drawing_without_a_number_has_no_table():
    drawing = lines("Nothing", "round", "loss", [Line("a", [1], [None])])
    assert drawing.rows == ()
    assert "data-plot" not in drawing.svg
    assert "<table" not in Figure(drawing, "Nothing.").html()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=3000))
def test_thinning_keeps_both_ends_and_few_points_in_order(points):
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 1
    assert kept[:1] == points[:1]
    assert kept[-1:] == points[-1:]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_corners_of_a_staircase_draw_the_same_staircase(ups):
    x = y = 0
    points = [(0.0, 0.0)]
    for up in ups:
        x, y = x + (not up), y + up
        points.append((float(x), float(y)))
    kept = corners(points)
    drawn = {
        (a, b)
        for (x0, y0), (x1, y1) in itertools.pairwise(kept)
        for a in range(int(x0), int(x1) + 1)
        for b in range(int(y0), int(y1) + 1)
    }
    assert drawn == {(int(a), int(b)) for a, b in points}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.9777), "97.8 %"), (percent(1.0), "100 %"), (percent(0), "0 %"), (percent(0.9999), "100.0 %"),
        (number(1438), "1,438"), (number(0.08373), "0.0837"), (number(1e-5), "1e-05"), (number(48.72), "48.7"),
        (number(1234.5), "1,234"), (size(48_720_000), "48.7 MB"), (size(999), "999 B"), (size(999_900), "1 MB"),
        (duration(0.0206), "20.6 ms"), (duration(39.5), "39.5 s"), (duration(125), "2 min 05 s"),
        (duration(12_000), "3 h 20 min"), (count(1, "class", "classes"), "1 class"),
        (count(1200, "client"), "1,200 clients"),
    ],
)  # fmt: skip
def test_amounts_read_as_a_person_writes_them(shown, expected):
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize("amount", [percent, number, size, duration])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_a_dash(amount, value):
    assert amount(value) == NOTHING


def test_code_is_set_apart_and_everything_is_escaped():
    assert inline("run `a < b` & <b>") == "run <code>a &lt; b</code> &amp; &lt;b&gt;"


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_from_their_ground_by_day_and_by_night():
    """Contrast of 4.5 for text, as WCAG 2.1 asks in 1.4.3."""
    from importlib.resources import files

    style = (files("tasks.report") / "page.css").read_text()
    day, night = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in style.split("}")[:2])
    assert {name: day[name] for name in COLOURS} == COLOURS
    for colours in (day, night):
        for ground in ("paper", "card", "soft"):
            for name in ("ink", "muted", "blue", "orange", "green", "red", "purple"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
