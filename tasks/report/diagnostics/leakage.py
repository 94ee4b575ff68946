"""What could be read back out of recorded messages, with the pictures side by side."""

from tasks.report.advice import advice
from tasks.report.amounts import count, number, percent
from tasks.report.page import Block, Folded, Heading, Panel, Picture, Points, Row, Table, Text
from tasks.report.recoveries import behind, recoveries
from tasks.report.run import Run

LISTED = 200
FAMILIES = {
    "optimisation": "searches samples",
    "generation": "by a generator",
    "analytics": "in closed form",
    "inference": "infers what is no sample",
}
SERVERS = {False: "keeps to the protocol", True: "sends its own model"}
MALICIOUS = (
    " Where an attack needs a server that does not keep to the protocol, the client was played once more: sent the "
    "model that the attack makes, it answered as it would have in that round."
)


def leakage(run: Run) -> Panel | None:
    """Attack by defence by message: the scores, the verdicts and the pictures."""
    if not run.leakage:
        return None
    results = run.leakage["results"]
    blocks: list[Block] = [
        Text(
            "Each recorded message was attacked as it crossed the wire, by someone who knows the model, the method and "
            "its settings but no sample. It was then passed through each defence and attacked again in the same way."
            + (MALICIOUS if any(row["malicious"] for row in results) else "")
        )
    ]
    tried = [row for row in results if row["applicable"]]
    if tried:
        blocks.append(_overview(run))
        if points := list(advice(run)):
            blocks += [Heading("What follows from it"), Points(points)]
    blocks += _gallery(run, tried)
    if tried:
        blocks += [Heading("Attack by attack"), Folded(count(len(tried), "attempt"), [_table(tried)])]
    if skipped := dict.fromkeys((row["attack"], row["verdict"]) for row in results if not row["applicable"]):
        blocks.append(Table("Attacks that could not be tried", ("attack", "why"), list(skipped), numeric=False))
    if not results:
        blocks += [Text(finding) for finding in run.leakage["findings"]]
    return Panel("What leaks from the messages", blocks)


def _overview(run: Run) -> Table:
    rows = [
        (r.attack, SERVERS[r.malicious], FAMILIES[r.family], behind(r.defence), number(r.messages),
         f"{r.got} {r.nouns}", number(r.psnr))
        for r in sorted(recoveries(run), key=lambda r: (r.malicious, r.attack))
    ]  # fmt: skip
    header = ("attack", "server", "how", "defence", "messages", "recovered", "mean PSNR (dB)")
    return Table("All messages together", header, rows, numeric=False)


def _table(rows: list[dict]) -> Table:
    header = ("attack", "message", "defence", "PSNR (dB)", "SSIM", "labels right", "verdict")
    cells = [
        (
            row["attack"],
            _message(row),
            behind(row["defence"]),
            number(row["scores"].get("psnr")),
            number(row["scores"].get("ssim")),
            percent(row["scores"].get("label_accuracy"), 0),
            row["verdict"],
        )
        for row in sorted(rows, key=lambda row: (row["attack"], row["message"]["label"]))[:LISTED]
    ]
    which = "Every attack on every message behind every defence"
    caption = which if len(rows) <= LISTED else f"{which}: the first {LISTED} of {len(rows):,}"
    return Table(caption, header, cells, numeric=False)


def _gallery(run: Run, rows: list[dict]) -> list[Block]:
    """Pictures of the messages that leak most, each behind all defences side by side."""
    pictured: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row.get("image"):
            pictured.setdefault((row["attack"], row["message"]["label"]), []).append(row)
    worst_first = sorted(pictured.values(), key=lambda same: max(map(_share, same)), reverse=True)
    blocks: list[Block] = []
    for same in worst_first[: run.params.report.pictures]:
        shown = [picture for row in same if (picture := _picture(run, row))]
        context = same[0]["message"]
        title = f"{same[0]['attack']}, {_message(same[0])}: {count(context['samples'], 'sample')} in "
        blocks += [Heading(title + count(context["steps"], "local step")), Row(shown)]
    if not blocks:
        return []
    intro = Text("Above: what the client trained on. Below: what the attacker made of its message.")
    few, more = blocks[:4], blocks[4:]
    left_out = len(worst_first) - len(worst_first[: run.params.report.pictures])
    folded = [Folded(count(len(more) // 2, "more message"), more)] if more else []
    rest = [Text(f"{count(left_out, 'more message')} in artifacts/attack/images.")] if left_out else []
    return [intro, *few, *folded, *rest]


def _picture(run: Run, row: dict) -> Picture | None:
    uri = run.embedded(f"attack/{row['image']}")
    if uri is None:
        return None
    said = behind(row["defence"])
    alt = f"Originals above, reconstructions by {row['attack']} below, {said}: {row['verdict']}"
    return Picture(uri, alt, f"{said[:1].upper()}{said[1:]}: {row['verdict']}.")


def _message(row: dict) -> str:
    return f"client {row['message']['client']}, round {row['message']['round']}"


def _share(row: dict) -> tuple[float, float]:
    scores = row["scores"]
    return scores["recovered"] / scores["samples"], scores.get("psnr") or 0.0
