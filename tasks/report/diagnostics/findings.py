"""What came out, in plain words, before anything else."""

from collections.abc import Iterator
from typing import Any

from tasks.partition.federation import Exchange
from tasks.report.advice import remedies
from tasks.report.amounts import count, duration, number, percent, size
from tasks.report.page import Block, Heading, Headline, Panel, Points, Tiles
from tasks.report.recoveries import Recovery, behind, recoveries, sentences, strongest
from tasks.report.run import Run

ON_DEVICES = ("local",)
"""The mechanisms that protect a message before it leaves the device; others protect what is made of the messages."""


def findings(run: Run) -> Panel | None:
    """The two or three sentences that a reader in a hurry needs, the numbers at a glance, a sentence on each of them,
    and what to do about it."""
    points = list(_points(run))
    if not points:
        return None
    blocks: list[Block] = [Headline(list(_headline(run))), Tiles(list(_tiles(run))), Points(points)]
    if todo := list(remedies(run)):
        blocks += [Heading("What to do"), Points(todo)]
    return Panel("What came out", blocks)


def _headline(run: Run) -> Iterator[str]:
    if run.evaluation:
        yield _how_good(run)
    if run.summary:
        yield _promise(run.summary)
    if run.leakage:
        yield _leak(run)
    elif not run.membership:
        yield "Nothing was attacked, so what the messages and the model give away is not known."


def _how_good(run: Run) -> str:
    whole = run.evaluation["global"]
    said = f"The model gets {percent(whole['accuracy'])} of {count(whole['samples'], 'test sample')} right"
    if run.summary:
        sent, seconds = run.summary["bytes_up"] + run.summary["bytes_down"], run.summary["virtual_seconds"]
        said += f", for {size(sent)} sent and {duration(seconds)} on the devices' clock"
    return said + "."


def _promise(summary: dict[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "It comes with no promise of privacy: no differential privacy was in force."
    epsilon = f"ε = {number(summary['epsilon'])} at δ = {number(summary['delta'])}"
    if summary["privacy"] in ON_DEVICES:
        return f"Its messages are differentially private before they leave a device: {epsilon}."
    return f"The model is differentially private, {epsilon}; the messages are not: who reads them sees no noise."


def _leak(run: Run) -> str:
    """What the strongest attack on the messages as they were gets, from the worst of them and from all."""
    bare = next((row["defence"] for row in run.leakage["results"]), None)
    found = [each for each in recoveries(run) if each.defence == bare and each.total]
    honest = strongest(each for each in found if not each.malicious)
    malicious = strongest(each for each in found if each.malicious)
    said = _got(run, honest) if honest else ""
    if malicious and (not honest or malicious.share > honest.share):
        said += f" A server that sends models of its own making recovers {malicious.got} {malicious.nouns}"
        said += f" with {malicious.attack}{_behind(run, malicious)}."
    return said.strip() or "No attack on a message could be tried."


def _got(run: Run, found: Recovery) -> str:
    labels = strongest(e for e in recoveries(run) if e.defence == found.defence and e.nouns == "labels")
    aside = f", but {labels.got} labels" if labels and labels.recovered and not found.recovered else ""
    of, every = f"{found.got} {found.nouns}{aside}", count(found.messages, "message")
    rows = [
        row for row in run.leakage["results"]
        if (row["attack"], row["defence"], row["applicable"]) == (found.attack, found.defence, True)
    ]  # fmt: skip
    if found.messages == 1 or not found.recovered or found.nouns == "labels":
        return f"The attacker recovers {of} from {every}{_behind(run, found)}."
    worst = max(
        rows, key=lambda row: (row["scores"]["recovered"] / row["scores"]["samples"], row["scores"]["recovered"])
    )
    one, message = worst["scores"], worst["message"]
    return (
        f"The attacker recovers {one['recovered']:,} of {one['samples']:,} {found.nouns} from one message of round "
        f"{message['round']:,}, and {of} from all {found.messages:,} that were attacked{_behind(run, found)}."
    )


def _behind(run: Run, found: Recovery) -> str:
    same = [each for each in recoveries(run) if each.attack == found.attack and each.defence != found.defence]
    said = ", ".join(f"{behind(each.defence)} {each.got}" for each in same)
    return f"; {said}" if said else ""


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    if run.evaluation:
        whole, clients = run.evaluation["global"], run.evaluation["per_client"]
        yield "Test accuracy", percent(whole["accuracy"]), f"of {count(whole['samples'], 'sample')}"
        yield (
            "Worst tenth of clients",
            percent(clients["worst_decile"]),
            f"best tenth {percent(clients['best_decile'])}",
        )
    if run.summary:
        up, down = run.summary["bytes_up"], run.summary["bytes_down"]
        yield "Sent", size(up + down), f"{size(up)} up, {size(down)} down"
        yield "Time on the devices", duration(run.summary["virtual_seconds"]), f"virtual, {_steps(run.summary)}"
        epsilon = run.summary["epsilon"]
        remark = "no formal promise" if epsilon is None else f"at delta {number(run.summary['delta'])}"
        yield "Privacy loss (epsilon)", "∞" if epsilon is None else number(epsilon), remark
    if most := strongest(found for found in recoveries(run) if found.total and not found.malicious):
        yield (
            "Read back out of messages",
            f"{most.recovered} of {most.total}",
            f"{most.nouns}, out of {count(most.messages, 'message')}",
        )


def _points(run: Run) -> Iterator[tuple[str, str]]:
    if run.evaluation:
        yield "Accuracy.", _accuracy(run)
        yield "Fairness.", _fairness(run.evaluation)
    if run.evaluation and run.evaluation["personalised"]:
        yield "Personalisation.", _personalisation(run.evaluation["personalised"])
    if run.summary:
        yield "Price.", _price(run.summary)
        if "staleness" in run.summary:
            yield "Pace.", _pace(run.summary)
        if run.summary["rejected"]:
            yield (
                "Left out.",
                f"{count(run.summary['rejected'], 'upload')} were not finite or too long, and count for nothing.",
            )
        yield "Privacy.", _privacy(run.summary)
    if run.meta and run.meta.exchange.bytes_up:
        yield "Before the training.", _exchange(run.meta.exchange)
    for sentence in sentences(run):
        yield "Leakage.", sentence
    for row in run.membership:
        yield "Membership.", f"{row['attack']} {row['verdict']}."


def _accuracy(run: Run) -> str:
    whole = run.evaluation["global"]
    classes = [c for c in whole["classes"] if c["accuracy"] is not None]
    sentence = f"The released model gets {percent(whole['accuracy'])} of {count(whole['samples'], 'test sample')} right"
    if run.summary:
        sentence += f" after {_steps(run.summary)}"
        sentence += " (stopped early)" if run.summary["stopped_early"] else ""
        if (own := run.summary["personal_test_accuracy"]) is not None:
            sentence += f", and clients with the models of their own {percent(own)} on average"
    if len(classes) > 1:
        hardest = min(classes, key=lambda c: c["accuracy"])
        sentence += f"; the hardest class is “{hardest['name']}” with {percent(hardest['accuracy'])}"
    return sentence + "."


def _fairness(evaluation: dict[str, Any]) -> str:
    clients, groups = evaluation["per_client"], evaluation["global"].get("groups")
    if clients["mean"] is None:
        return "The model has no accuracy on single clients: none has enough samples, or it diverged."
    said = (
        f"A client gets {percent(clients['mean'])} on average; the worst-served tenth "
        f"{percent(clients['worst_decile'])}, the best-served {percent(clients['best_decile'])} (Jain's index "
        f"{number(clients['jain'])}, 1 is even)."
    )
    if groups:
        said += f" By {groups['name']}, the best and the worst served are {percent(groups['gap'])} apart."
    return said


def _personalisation(own: dict) -> str:
    return (
        f"{own['name']} moves the mean client from {percent(own['before']['mean'])} to {percent(own['mean'])} on "
        f"held-out samples: better for {own['improved']:,}, worse for {own['worsened']:,} of "
        f"{count(own['clients'], 'client')}."
    )


def _price(summary: dict) -> str:
    return (
        f"{size(summary['bytes_up'])} went up and {size(summary['bytes_down'])} down in "
        f"{_steps(summary)}, which took {duration(summary['virtual_seconds'])} on the devices' "
        "virtual clock."
    )


def _steps(summary: dict[str, Any]) -> str:
    """How long the training was; where clients do not work in rounds, in steps of the server."""
    return (
        count(summary["rounds"], "step of the server", "steps of the server")
        if "staleness" in summary
        else count(summary["rounds"], "round")
    )


def _pace(summary: dict[str, Any]) -> str:
    return (
        f"Clients were heard when they were ready, {number(summary['staleness'])} steps of the server after the model "
        f"that they started from on average and {number(summary['max_staleness'])} at most; they waited "
        f"{percent(summary['idle'])} of the time."
    )


def _exchange(exchange: Exchange) -> str:
    return (
        f"To refine the data, {size(exchange.bytes_up)} of statistics went up and {size(exchange.bytes_down)} down, "
        f"which the price includes. {count(exchange.exposed_samples, 'training sample')} can be calculated exactly "
        "from what the owner sent."
    )


def _privacy(summary: dict) -> str:
    if summary["epsilon"] is None:
        return "The training makes no formal promise: no differential privacy was in force."
    return (
        f"The training is differentially private with epsilon {number(summary['epsilon'])} at delta "
        f"{number(summary['delta'])} (mechanism {summary['privacy']}). What the attacker is denied: "
        + (
            "the messages, and so all that is made of them."
            if summary["privacy"] in ON_DEVICES
            else "the released models; server and wire see every upload without noise."
        )
    )
