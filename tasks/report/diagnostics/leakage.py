"""What could be read back out of recorded messages, with the pictures side by side."""

from collections.abc import Iterable
from itertools import chain

from torch import Tensor

from tasks.report.advice import advice
from tasks.report.amounts import count, number, percent
from tasks.report.page import Block, Folded, Heading, Panel, Picture, Points, Row, Strip, Table, Text
from tasks.report.pixels import pixels, psnr
from tasks.report.recoveries import behind, recoveries
from tasks.report.run import Run

LISTED = 200
OPEN, SAMPLES = 2, 8
"""Messages whose pictures are not folded away, and most samples shown of a message."""
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
        blocks.append(Folded(f"Attack by attack: {count(len(tried), 'attempt')}", [_table(tried)]))
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
    """The messages that leak most: each original beside what was made of it, behind all defences."""
    pictured: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row.get("image"):
            pictured.setdefault((row["attack"], row["message"]["label"]), []).append(row)
    worst_first = sorted(pictured.values(), key=lambda same: max(map(_share, same)), reverse=True)
    shown = [blocks for same in worst_first[: run.params.report.pictures] if (blocks := _side_by_side(run, same))]
    if not shown:
        return []
    intro = Text(
        "Each original, and beside it what the attacker made of its message, with the PSNR in dB: 20 is easy to "
        "recognise, 30 hard to tell apart. The samples that leak most come first."
    )
    few, more = shown[:OPEN], shown[OPEN:]
    left_out = len(worst_first) - len(worst_first[: run.params.report.pictures])
    folded = [Folded(count(len(more), "more message"), list(chain(*more)))] if more else []
    rest = [Text(f"{count(left_out, 'more message')} in artifacts/attack/images.")] if left_out else []
    return [Heading("Side by side"), intro, *chain(*few), *folded, *rest]


def _side_by_side(run: Run, same: list[dict]) -> list[Block]:
    """One attack on one message: a strip a sample, of its original and of its reconstruction behind each defence."""
    seen: dict[bytes, tuple[Tensor, int, dict[str, Tensor]]] = {}
    for row in same:
        pairs = run.reconstruction(row["reconstruction"])
        for original, made, label in zip(*(pairs[n] for n in ("original", "reconstruction", "labels")), strict=True):
            _, _, guesses = seen.setdefault(original.numpy().tobytes(), (original, int(label), {}))
            guesses[row["defence"]] = made
    if not seen:
        return []
    low, high = range_ = run.meta.range or _extent(original for original, _, _ in seen.values())
    scored = [
        (original, label, {how: (made, psnr(original, made, high - low)) for how, made in guesses.items()})
        for original, label, guesses in seen.values()
    ]
    scored.sort(key=lambda each: max(score for _, score in each[2].values()), reverse=True)
    context = same[0]["message"]
    title = f"{same[0]['attack']}, {_message(same[0])}: {count(context['samples'], 'sample')} in "
    verdicts = [(f"{_upper(behind(row['defence']))}:", f"{row['verdict']}.") for row in same]
    strips = [_strip(run, *each, range_, same[0]) for each in scored[:SAMPLES]]
    blocks: list[Block] = [Heading(title + count(context["steps"], "local step")), Points(verdicts), Row(strips)]
    if len(scored) > SAMPLES:
        blocks.append(Text(f"{count(len(scored) - SAMPLES, 'more sample')} in artifacts/attack/reconstructions."))
    return blocks


def _strip(run: Run, original: Tensor, label: int, guesses: dict[str, tuple[Tensor, float]], range_, row) -> Strip:
    whom, name = (
        f"client {row['message']['client']} in round {row['message']['round']}",
        f"class “{_class(run, label)}”",
    )
    pictures = [Picture(pixels(original, range_), f"Original of {whom}, {name}", f"original, {name}")]
    for defence, (made, score) in guesses.items():
        how = f"{behind(defence)}, {number(score)} dB"
        alt = f"What {row['attack']} made of it {behind(defence)}: {number(score)} dB"
        pictures.append(Picture(pixels(made, range_), alt, how))
    return Strip(f"A sample of {whom} and its reconstructions", pictures)


def _class(run: Run, label: int) -> str:
    return run.meta.class_names[label] if run.meta.class_names else str(label)


def _extent(originals: Iterable[Tensor]) -> tuple[float, float]:
    low, high = zip(*((float(one.min()), float(one.max())) for one in originals), strict=True)
    return min(low), max(high)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _message(row: dict) -> str:
    return f"client {row['message']['client']}, round {row['message']['round']}"


def _share(row: dict) -> tuple[float, float]:
    scores = row["scores"]
    return scores["recovered"] / scores["samples"], scores.get("psnr") or 0.0
