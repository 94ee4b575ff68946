"""How unlike the clients' data are."""

from tasks.report.amounts import count, number
from tasks.report.page import Panel, Picture, Table, Text
from tasks.report.run import Run


def data(run: Run) -> Panel | None:
    """The heterogeneity card."""
    if not (run.card and run.meta):
        return None
    card, meta = run.card, run.meta
    text = (
        f"{meta.dataset}: {count(card['samples'], 'training sample')} of {count(meta.classes, 'class', 'classes')} "
        f"over {count(card['clients'], 'client')}, and {count(meta.test_samples, 'sample')} to test on. A client has "
        f"{number(card['median_client'])} samples in the middle, {number(card['smallest_client'])} at least and "
        f"{number(card['largest_client'])} at most."
    )
    if meta.synthetic:
        text += f" Of the training samples {meta.synthetic:,} were made, not measured."
    rows = [
        ("classes that a client effectively has", number(card["effective_classes"])),
        ("total variation from all data (0 alike, 1 disjoint)", number(card["total_variation"])),
        ("Jensen-Shannon divergence of two clients (bits, 0 to 1)", number(card["label_divergence"])),
        ("Gini coefficient of the sizes (0 even)", number(card["size_gini"])),
    ]
    if before := card.get("before_refinement"):
        rows += [
            ("total variation before the data were refined", number(before["total_variation"])),
            ("Jensen-Shannon divergence before that", number(before["label_divergence"])),
        ]
    blocks = [Text(text), Table("Means over the clients", ("measure", "value"), rows)]
    if picture := run.embedded("partition/card.svg"):
        alt = f"Labels, sizes and divergences of the clients. {text}"
        blocks.append(Picture(picture, alt, "Labels and sizes of the clients, and how far apart they are."))
    return Panel("The data and who has them", blocks)
