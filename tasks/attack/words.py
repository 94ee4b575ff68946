"""Verdicts and findings in plain language."""

from tasks.attack.defences import Defence

NOUNS = {"image": ("image", "images"), "table": ("record", "records"), "text": ("sample", "samples")}
NOTHING_RECORDED = "No message was recorded in the rounds that ran, so none was attacked."
SURE = 3.0
"""Standard deviations by which an area under the curve has to exceed one half to count."""


def not_applicable(reason: str) -> str:
    return f"not applicable: {reason}"


def declined(reason: str) -> str:
    return f"recovers nothing: the client stays out of the round, as {reason}"


def labels(right: int, total: int) -> str:
    """``right`` labels of ``total`` were read out of a message."""
    return f"recovers {right} of {total} labels"


def reconstruction(scores: dict, kind: str) -> str:
    """The verdict on reconstructed samples, against what needs no message: the average of the class."""
    one, many = NOUNS[kind]
    total, recovered = scores["samples"], scores["recovered"]
    if scores["psnr"] is not None:
        compared = f"{scores['psnr']:.1f} dB; the average {one} of the class scores {scores['baseline_psnr']:.1f} dB"
    elif scores["mse"] is not None:
        compared = f"mean squared error {scores['mse']:.2g}; the average of the class has {scores['baseline_mse']:.2g}"
    else:
        return f"recovers nothing of {total} {many if total > 1 else one}"
    noun = one if total == 1 else many
    if recovered:
        return f"recovers {recovered} of {total} {noun} ({compared})"
    return f"recovers none of {total} {noun}: nothing beyond the average of the class or public samples ({compared})"


def membership(scores: dict) -> str:
    """The verdict on a membership attack."""
    area = f"AUC {scores['auc']:.3f}"
    if scores["auc"] < 0.5 + SURE * scores["auc_deviation"]:
        return f"tells members from others no better than a coin ({area})"
    caught = f"{scores['tpr_at_fpr_0_01']:.1%} of the members at 1 % false alarms"
    return f"tells members from others better than a coin ({area}; {caught})"


def finding(attack: str, results: list[dict], defences: dict[str, Defence], kind: str) -> list[str]:
    """Sentences on what one attack found: the message that leaks most behind the first defence, and the same message
    behind the others."""
    rows = [row for row in results if row["applicable"]]
    if not rows:
        return [f"{attack}: {verdict}." for verdict in dict.fromkeys(row["verdict"] for row in results)]
    first = next(iter(defences))
    worst = max((row for row in rows if row["defence"] == first), key=_strength, default=rows[0])["message"]
    whom = f"client {worst['client']}'s message of round {worst['round']}"
    if rows[0]["malicious"]:
        whom = f"client {worst['client']}'s answer, in round {worst['round']}, to a model made for it"
    sentences = []
    for defence, how in defences.items():
        same = [row for row in rows if row["defence"] == defence]
        for row in same:
            if row["message"]["label"] == worst["label"]:
                sentences.append(f"{attack} on {whom}, {how.says}: {row['verdict']}.{_altogether(same, kind)}")
        whom = "the same answer" if rows[0]["malicious"] else "the same message"
    return sentences


def _altogether(rows: list[dict], kind: str) -> str:
    """What all messages gave together, where there are several."""
    if len(rows) < 2 or "recovered" not in rows[0]["scores"]:
        return ""
    recovered, samples = (sum(row["scores"][name] for row in rows) for name in ("recovered", "samples"))
    what = "answers" if rows[0]["malicious"] else "messages"
    return f" From all {len(rows)} {what}: {recovered} of {samples} {NOUNS[kind][1]}."


def _strength(row: dict) -> tuple[float, float]:
    scores = row["scores"]
    part = scores["recovered"] / scores["samples"] if "recovered" in scores else scores["label_accuracy"]
    return part, scores.get("psnr") or 0.0
