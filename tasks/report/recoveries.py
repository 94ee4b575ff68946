"""What the attacks got out of all messages together."""

from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import NamedTuple

from tasks.report.amounts import count
from tasks.report.run import Run

NOUNS = {"image": "images", "table": "records", "text": "samples"}
BEHIND = {"none": "as recorded"}


class Recovery(NamedTuple):
    """What one attack got out of all attacked messages behind one defence.

    ``malicious``: the messages answer models that a malicious server made for the attack. ``psnr`` is the mean over
    messages, None without any.
    """

    attack: str
    family: str
    malicious: bool
    defence: str
    messages: int
    recovered: int
    total: int
    nouns: str
    psnr: float | None

    @property
    def share(self) -> float:
        return self.recovered / self.total if self.total else 0.0

    @property
    def got(self) -> str:
        return f"{self.recovered:,} of {self.total:,}" if self.recovered else f"none of {self.total:,}"


def recoveries(run: Run) -> Iterator[Recovery]:
    """Each attack and defence with what all messages together gave away; label attacks count labels."""
    results = [row for row in (run.leakage or {}).get("results", ()) if row["applicable"]]
    kind = NOUNS[run.meta.kind] if run.meta else "samples"
    for attack, defence in dict.fromkeys((row["attack"], row["defence"]) for row in results):
        rows = [row for row in results if (row["attack"], row["defence"]) == (attack, defence)]
        total = sum(row["message"]["samples"] for row in rows)
        quality = [row["scores"]["psnr"] for row in rows if row["scores"].get("psnr") is not None]
        if all("recovered" in row["scores"] for row in rows):
            got, nouns = sum(row["scores"]["recovered"] for row in rows), kind
        elif all(row["scores"].get("label_accuracy") is not None for row in rows):
            got, nouns = sum(round(r["scores"]["label_accuracy"] * r["message"]["samples"]) for r in rows), "labels"
        else:
            continue
        family, malicious, mean = rows[0]["family"], rows[0]["malicious"], fmean(quality) if quality else None
        yield Recovery(attack, family, malicious, defence, len(rows), got, total, nouns, mean)


def strongest(found: Iterable[Recovery]) -> Recovery | None:
    """The attack that got most. A sample read back weighs more than any number of labels."""
    return max(found, key=lambda each: (each.nouns != "labels", each.share, each.psnr or 0.0), default=None)


def sentences(run: Run) -> Iterator[str]:
    """What each attack got, first as recorded and then behind each defence."""
    found = list(recoveries(run))
    for attack in dict.fromkeys(each.attack for each in found):
        first, *others = (each for each in found if each.attack == attack)
        what, how = count(first.messages, "message"), behind(first.defence)
        if first.malicious:
            what = f"{count(first.messages, 'answer')} to models made for it"
            how = "with no defence" if first.defence == "none" else how
        start = f"From {what}, {how}, the attack {attack} recovers "
        rest = "".join(f"; {behind(each.defence)}, {each.got}" for each in others)
        yield f"{start}{first.got} {first.nouns}{rest}."


def behind(defence: str) -> str:
    """A defence as part of a sentence."""
    return BEHIND.get(defence, f"behind {defence}")
