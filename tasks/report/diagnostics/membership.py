"""Whether the released model gives away who was trained on."""

from tasks.report.amounts import number, percent
from tasks.report.figures import Line, roc
from tasks.report.page import Figure, Panel, Row, Table, Text
from tasks.report.run import Run


def membership(run: Run) -> Panel | None:
    """ROC curves, areas, and the few members of whom an attacker can be sure."""
    if not run.membership:
        return None
    scores = [(row["attack"], row["scores"]) for row in run.membership]
    asked = scores[0][1]
    text = (
        f"The attacker has the released model and asks, of {asked['members']:,} members and {asked['others']:,} "
        "others, which were trained on. What counts is the left end of the curve: members named with hardly a false "
        "alarm."
    )
    rows = [
        (name, number(s["auc"]), percent(s["tpr_at_fpr_0_01"]), percent(s["tpr_at_fpr_0_001"])) for name, s in scores
    ]
    table = Table(
        "Area under the curve, and members named at 1 % and 0.1 % false alarms",
        ("attack", "AUC", "at 1 %", "at 0.1 %"),
        rows,
    )
    curves = [Line(row["attack"], row["roc"]["fpr"], row["roc"]["tpr"]) for row in run.membership]
    areas = "; ".join(f"{name} with area {number(s['auc'])}" for name, s in scores)
    figure = Figure(
        roc(f"ROC curves on logarithmic axes: {areas}", curves), "ROC curves on logarithmic axes; dotted: guessing."
    )
    verdicts = [Text(f"{row['attack']} {row['verdict']}.") for row in run.membership]
    return Panel("Who was trained on", (Text(text), *verdicts, Row((figure, table))))
