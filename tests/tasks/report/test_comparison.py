"""The page that compares the cells of a sweep."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.comparison import Point, Result, compare, front, table
from tests.tasks.report.conftest import Document

SMALL = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(SMALL, SMALL)))
def test_the_front_is_what_no_other_point_beats(places):
    points = [Point(i, cost, accuracy) for i, (cost, accuracy) in enumerate(places)]

    def beaten(one: Point) -> bool:
        return any(
            other.cost <= one.cost
            and other.accuracy >= one.accuracy
            and (other.cost, other.accuracy) != (one.cost, one.accuracy)
            for other in points
        )

    assert front(points) == {point.index for point in points if not beaten(point)}


def result(label: str, accuracy: float, up: int, epsilon: float | None, recovered: float, **other) -> Result:
    metrics = {
        "train": {"accuracy": 0.1, "bytes_up": up, "epsilon": epsilon, "virtual_seconds": 60.0},
        "aggregate": {"accuracy": accuracy, "clients_worst_decile": accuracy - 0.2},
        "attack": {
            "attacks": {
                "inverting_gradients": {"none": {"recovered": recovered / 2}, "noise": {"recovered": 1.0}},
                "read_out": {"none": {"recovered": recovered}},
                "labels": {"none": {"label_accuracy": 0.5}},
            },
            "membership": {"loss_threshold": {"auc": 0.6}, "lira": {"auc": 0.7}},
        },
    }
    case, density = label.split()
    return Result(label, {"case": case, "density": density}, metrics=metrics, experiment=f"s-{label}-1", **other)


RESULTS = [
    result("plain 1", 0.97, 80_000_000, None, 1.0, report="s-plain-1.html", run="http://127.0.0.1:5000/#/runs/7"),
    result("plain 2", 0.96, 9_000_000, 8.5, 0.5, report="s-plain-2.html"),
    result("noisy 1", 0.90, 9_000_000, 7.5, 0.5),
    result("noisy 2", 0.80, 2_000_000, 0.9, 0.0),
    Result("<b>bad</b> 1", {"case": "<b>bad</b>", "density": "1"}, "failed", "train: no <i>memory</i>"),
    Result("late 1", {"case": "late", "density": "1"}, "waiting"),
]


@pytest.fixture(scope="module")
def html() -> str:
    return compare("s", "Which is best?", RESULTS)


@pytest.fixture(scope="module")
def document(html) -> Document:
    return Document(html)


def points(document: Document) -> list[str]:
    return [e["text"].replace("\N{NO-BREAK SPACE}", " ") for e in document.all("li") if "ul" in e["inside"]]


def test_the_findings_say_in_words_which_cells_are_worth_their_price(document):
    cells, best, sent, epsilon, leak = points(document)
    assert cells == "Cells. 4 of 6 cells finished; failed: 5 (<b>bad</b> 1); waiting: 6 (late 1)."
    assert best.startswith("Most accurate. 1 (plain 1): 97.0 % (sent up 80 MB, samples recovered 100 %")
    assert "On the Pareto front are 3 of 4: 4 (noisy 2) (80.0 % at 2 MB); 2 (plain 2)" in sent
    assert "Least within 1 % of the best accuracy: 2 (plain 2), 9 MB in place of 80 MB." in sent
    assert "Best with sent up of at most 40 MB: 2 (plain 2), 96.0 %." in sent
    # The most accurate cell makes no promise, so it is not among those that are compared by epsilon.
    assert "On the Pareto front are 3 of 3" in epsilon and "Left out: 1 cell without a promise." in epsilon
    assert "Best with epsilon of at most 1: 4 (noisy 2), 80.0 %." in epsilon
    assert "Best with epsilon of at most 8: 3 (noisy 1), 90.0 %." in epsilon
    assert "at most 2:" not in epsilon and "at most 4:" not in epsilon
    assert leak.startswith("Accuracy against samples recovered.") and "3 of 4" in leak


def test_the_table_has_every_cell_with_its_numbers_and_says_the_front_in_words(document):
    head, rows = document.table("Every cell")
    assert head == [
        "cell", "case", "density", "outcome", "accuracy", "worst tenth of clients", "sent up", "virtual time",
        "epsilon", "samples recovered", "labels recovered", "membership AUC", "Pareto front", "report", "MLflow",
    ]  # fmt: skip
    assert rows["1"] == [
        "plain", "1", "finished", "97.0 %", "77.0 %", "80 MB", "60 s", "–", "100 %", "50.0 %", "0.7",
        "sent up, samples recovered", "open", "open",
    ]  # fmt: skip
    assert rows["3"][11:] == ["epsilon", "–", "–"]
    assert rows["2"][11] == "sent up, epsilon, samples recovered"
    assert rows["5"][:4] == ["<b>bad</b>", "1", "failed", "–"]
    assert (head[:-2], [[name, *cells[:-2]] for name, cells in rows.items()]) == table(RESULTS)
    _, failed = document.table("Cells that failed")
    assert failed == {"<b>bad</b> 1": ["train: no <i>memory</i>"]}


def test_each_cell_leads_to_its_own_page_and_run(document):
    links = [e["attrs"]["href"] for e in document.all("a") if not e["attrs"]["href"].startswith("#")]
    assert links == ["s-plain-1.html", "http://127.0.0.1:5000/#/runs/7", "s-plain-2.html"]


def test_the_charts_are_described_and_the_page_fetches_nothing(html, document):
    labels = [svg["attrs"]["aria-label"] for svg in document.all("svg")]
    assert labels == [
        "Accuracy against sent up of 4 cells; on the Pareto front: 1, 2, 4",
        "Accuracy against epsilon of 3 cells; on the Pareto front: 2, 3, 4",
        "Accuracy against samples recovered of 4 cells; on the Pareto front: 1, 2, 4",
    ]
    assert not document.all("link", "iframe", "object", "img", "b", "i")
    assert not [e for e in document.elements if "src" in e["attrs"]]
    assert "default-src 'none'" in html


def test_values_to_sort_by_are_exact(html):
    (row,) = re.findall(r"<tr><th scope=\"row\">4</th>.*?</tr>", html.partition("Every cell")[2], re.DOTALL)
    assert re.findall(r'data-value="([^"]*)"', row) == ["0.8", "0.6000000000000001", "2000000", "60.0", "0.9"] + [
        "0.0", "0.5", "0.7"
    ]  # fmt: skip
    assert table(RESULTS)[1][4][8] == "–"


def test_what_does_not_vary_is_said_and_not_drawn():
    same = [result(f"a {i}", 0.9, 5, None, 0.0) for i in range(3)]
    document = Document(compare("s", "", same))
    said = " ".join(points(document))
    assert "On the Pareto front are 3 of 3" in said
    assert "No cell makes a formal promise" in said
    assert "The same in every cell: samples recovered 0 %, labels recovered 50.0 %, membership AUC 0.7." in said
    assert len(document.all("svg")) == 1


@pytest.mark.parametrize("outcome", ["failed", "waiting"])
def test_a_page_without_any_finished_cell_says_so(outcome):
    document = Document(compare("s", "", [Result("a", {"case": "a"}, outcome, "why")]))
    assert points(document) == [f"Cells. 0 of 1 cell finished; {outcome}: 1 (a)."]
    assert not document.all("svg")
