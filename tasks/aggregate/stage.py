"""Makes the released model, evaluates it for everyone, and registers it."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.aggregate.evaluation import (
    ClientScores,
    Tally,
    chosen,
    distribution,
    on_clients,
    on_test,
    with_own_models,
)
from tasks.aggregate.fairness import assessed
from tasks.aggregate.merges import Fusion
from tasks.aggregate.personalise import NoPersonalisation
from tasks.aggregate.register import register
from tasks.aggregate.settings import AggregateSettings, Evaluate
from tasks.artifacts import Damaged, publish, read_tree, write_json, write_tree
from tasks.config import Refused
from tasks.models import Network, build
from tasks.partition.federation import Federation
from tasks.tree import Tree, part, take

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.tracking import Tracker


def aggregate(params: "Params", artifacts: Path, tracker: "Tracker") -> None:
    """Makes the released model out of what the training left, evaluates it for everyone, and registers it."""
    settings, federation = params.aggregate, Federation.open(artifacts / "partition")
    network = build(params.model, federation.meta.shape, federation.meta.classes, params.seed)
    own = artifacts / "train" / "personal.safetensors"
    personal = read_tree(own) if own.exists() else {}
    released = merged(settings, network, artifacts / "train", personal)
    evaluation, table = evaluate(settings, network, released, federation, params.seed, personal)
    fairness = None
    if federation.meta.groups and federation.meta.classes == 2:
        clients = chosen(federation.clients, settings.evaluate.clients, params.seed)
        fairness = assessed(network, released, federation, clients, settings.evaluate.frontier, personal)
    numbers = headline(evaluation, fairness)
    with publish(artifacts / "aggregate") as folder:
        write_tree(folder / "model.safetensors", released)
        write_json(folder / "evaluation.json", evaluation)
        write_table(folder, table)
        if fairness:
            write_json(folder / "fairness.json", fairness)
    write_json(artifacts.parent / "metrics" / "aggregate.json", numbers)
    tracker.metrics(numbers)
    tracker.artifact(artifacts / "aggregate" / "evaluation.json")
    if settings.registry and tracker.run_id:
        register(params, federation.meta, artifacts / "aggregate" / "model.safetensors", numbers)


def merged(settings: AggregateSettings, network: Network, train: Path, personal: Tree) -> Tree:
    """The released model of the training in the folder ``train``; ``personal`` are the clients' own models, stacked.

    Raises ``Damaged`` where a model does not fit ``network``, ``Refused`` where the merge has too few uploads.
    """
    path, merge = train / "model.safetensors", settings.merge
    final = read_tree(path)
    wanted = {name: value.shape for name, value in network.parameters.items()}
    if {name: value.shape for name, value in final.items()} != wanted:
        raise Damaged(path, "does not hold the parameters of the model in params.yaml")
    if isinstance(merge, Fusion):
        if {name: value.shape[1:] for name, value in personal.items()} != wanted:
            raise Damaged(train / "personal.safetensors", "does not hold every client's model")
        return merge.fuse(personal)
    if not merge.reads_uploads:
        return merge.merge(final, {}, {}, torch.empty(0))
    uploads = read_tree(train / "uploads.safetensors")
    taken = uploads["weights"] > 0
    for problem in merge.conflicts(int(taken.sum())):
        raise Refused("params.yaml", None, problem)
    return merge.merge(final, part(uploads, "start"), take(part(uploads, "delta"), taken), uploads["weights"][taken])


def evaluate(
    settings: AggregateSettings,
    network: Network,
    released: Tree,
    federation: Federation,
    seed: int,
    personal: Tree | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """The evaluation for people and machines to read, and the columns of the table with one row a client.

    ``personal`` are all clients' own models, stacked, where the training left each client one: they are what is
    personalised unless ``settings`` name a way of their own.
    """
    clients = chosen(federation.clients, settings.evaluate.clients, seed)
    scores = on_clients(network, released, federation, clients)
    name, tally = judged_on(settings.evaluate, scores)
    evaluation = {
        "merge": settings.merge.name,
        "global": on_test(network, released, federation),
        "per_client": {"part": name, "population": federation.clients, **spread(tally, settings.evaluate.min_samples)},
        "personalised": None,
    }
    columns = {"client": clients, **_columns("", tally)}
    columns |= {**_columns("train_", scores.train), **_columns("validation_", scores.validation)}
    fitted = not isinstance(settings.personalise, NoPersonalisation)
    if fitted or personal:
        groups = (
            settings.personalise.adapt(network, released, federation, clients, seed)
            if fitted
            else ((clients[[i]], take(personal, torch.from_numpy(clients[[i]]))) for i in range(len(clients)))
        )
        own = with_own_models(network, groups, federation, clients)
        enough = settings.evaluate.min_samples if name == "validation" else 1
        how = settings.personalise.name if fitted else "training"
        evaluation["personalised"] = {"name": how, **gain(scores.validation, own, enough)}
        columns |= {"personalised_accuracy": own.accuracy, "personalised_loss": own.loss}
    return evaluation, columns


def judged_on(settings: Evaluate, scores: ClientScores) -> tuple[str, Tally]:
    """The part of their samples on which clients are compared, and the scores on it."""
    enough = (scores.validation.samples >= settings.min_samples).mean()
    held_out = settings.part == "validation" or (settings.part == "auto" and enough >= 0.5)
    return ("validation", scores.validation) if held_out else ("all", scores.all)


def spread(tally: Tally, enough: int) -> dict:
    """The distribution over the clients with ``enough`` samples; how many were left out is said."""
    kept = tally.samples >= enough
    return {
        "clients": int(kept.sum()),
        "left_out": int((~kept).sum()),
        "min_samples": enough,
        "samples": int(tally.samples[kept].sum()),
        **distribution(tally.accuracy[kept], worst="low"),
        "loss": distribution(tally.loss[kept], worst="high"),
    }


def gain(before: Tally, after: Tally, enough: int) -> dict:
    """What personalisation did to the clients with ``enough`` held-out samples, on those."""
    kept = before.samples >= enough
    change = after.hits[kept] - before.hits[kept]
    return {
        "part": "validation",
        **spread(after, enough),
        "before": distribution(before.accuracy[kept], worst="low"),
        "improved": int((change > 0).sum()),
        "worsened": int((change < 0).sum()),
    }


def headline(evaluation: dict, fairness: dict | None = None) -> dict[str, float | None]:
    """The few numbers by which the stage is judged."""
    whole, clients, own = evaluation["global"], evaluation["per_client"], evaluation["personalised"]
    numbers = {"accuracy": whole["accuracy"], "loss": whole["loss"]}
    numbers |= {f"clients_{name}": clients[name] for name in ("mean", "std", "worst_decile", "best_decile", "jain")}
    if own:
        numbers |= {f"personalised_{name}": own[name] for name in ("mean", "worst_decile")}
    if fairness:
        parts = ("local", "unique", "redundant", "masked")
        numbers |= {"fairness_global": fairness["total"]} | {f"fairness_{name}": fairness[name] for name in parts}
    return numbers


def write_table(folder: Path, columns: dict[str, np.ndarray]) -> None:
    """One row a client, as ``clients.parquet`` and ``clients.csv``; a figure without samples is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    pq.write_table(table, folder / "clients.parquet")
    with (folder / "clients.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(zip(*table.to_pydict().values(), strict=True))


def _columns(prefix: str, tally: Tally) -> dict[str, np.ndarray]:
    return {
        f"{prefix}samples": tally.samples,
        f"{prefix}accuracy": tally.accuracy,
        f"{prefix}loss": tally.loss,
    }
