"""How evenly the released model serves the clients, the groups and the classes."""

from tasks.report.amounts import count, number, percent
from tasks.report.figures import histogram
from tasks.report.page import Block, Figure, Folded, Heading, Panel, Row, Table, Text
from tasks.report.run import Run

FIGURES = (
    ("mean", "mean"), ("standard deviation", "std"), ("worst tenth", "worst_decile"), ("best tenth", "best_decile"),
    ("lowest", "minimum"), ("median", "median"), ("highest", "maximum"),
)  # fmt: skip
PARTS = {
    "validation": "samples that they held out from training",
    "all": "all of their samples, most of which were trained on: too few are held out to compare clients on those",
}


def clients(run: Run) -> Panel | None:
    """The spread over the clients; by group and by class; what personalisation changed."""
    if not run.evaluation:
        return None
    found = run.evaluation["per_client"]
    blocks: list[Block] = [Text(_on_what(found))]
    shown = [_table(run.evaluation)]
    values = _values(run)
    if values and found["mean"] is not None:
        marks = [("worst tenth", found["worst_decile"]), ("mean", found["mean"])]
        alt = (
            f"Histogram of accuracy over {count(found['clients'], 'client')}: mean {percent(found['mean'])}, "
            f"from {percent(found['minimum'])} to {percent(found['maximum'])}"
        )
        drawing = histogram(alt, "accuracy", "clients", values, marks)
        shown.insert(0, Figure(drawing, "Clients by the accuracy that they get."))
    blocks.append(Row(shown))
    groups = run.evaluation["global"].get("groups")
    if groups:
        blocks += [
            Heading(f"By {groups['name']}"),
            Text(f"The best and the worst served group are {percent(groups['gap'])} apart in accuracy."),
            _scores(f"Test set by {groups['name']}", groups["values"]),
        ]
    blocks.append(Folded("By class", [_scores("Test set by class", run.evaluation["global"]["classes"])]))
    return Panel("How clients are served", blocks)


def _on_what(found: dict) -> str:
    drawn = found["clients"] + found["left_out"]
    whom = (
        f"All {drawn:,}" if drawn == found["population"] else f"{drawn:,} of {found['population']:,}, drawn at random,"
    )
    text = f"{whom} clients were evaluated on {PARTS[found['part']]}."
    if found["left_out"]:
        left = count(found["left_out"], "client")
        text += f" {left} with fewer than {count(found['min_samples'], 'sample')} are left out of the figures."
    return text


def _table(evaluation: dict) -> Table:
    columns = [("accuracy", evaluation["per_client"], percent), ("loss", evaluation["per_client"]["loss"], number)]
    if own := evaluation["personalised"]:
        columns += [("the one model", own["before"], percent), ("their own", own, percent)]
    rows = [(name, *(show(found[key]) for _, found, show in columns)) for name, key in FIGURES]
    rows += [
        (name, *(number(found[key]) for _, found, _ in columns)) for name, key in (("Gini", "gini"), ("Jain", "jain"))
    ]
    caption = "Over clients. Worst is the lowest accuracy and the highest loss; Gini 0 and Jain 1 are even."
    return Table(caption, ("figure", *(name for name, _, _ in columns)), rows)


def _scores(caption: str, values: list[dict]) -> Table:
    rows = [(v["name"], number(v["samples"]), percent(v["accuracy"]), number(v["loss"])) for v in values]
    return Table(caption, ("name", "samples", "accuracy", "loss"), rows)


def _values(run: Run) -> list[float]:
    enough = run.evaluation["per_client"]["min_samples"]
    if not run.clients:
        return []
    pairs = zip(run.clients["samples"], run.clients["accuracy"], strict=True)
    return [accuracy for samples, accuracy in pairs if samples >= enough]
