"""Stage 1: reads a dataset, gives every sample to a client, and publishes ``artifacts/partition``."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifacts import publish, read_array, write_json
from tasks.config import Refused
from tasks.keys import derive, generator
from tasks.partition.card import measure
from tasks.partition.federation import Exchange, Groups, Meta
from tasks.partition.index import filled, indexed
from tasks.partition.picture import draw
from tasks.partition.refine import Partitioned, Wire
from tasks.partition.samples import Rows, Samples

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.partition.settings import PartitionSettings
    from tasks.tracking import Tracker

CHUNK = 1 << 24
"""Bytes of float32 samples in memory at a time, while they are copied."""


def partition(params: "Params", artifacts: Path, tracker: "Tracker") -> None:
    """Split a dataset over clients: reads the dataset, writes artifacts/partition and metrics/partition.json."""
    settings, seed = params.partition, params.seed
    samples = settings.dataset.load(seed, settings.test_fraction)
    samples = _limited(samples, settings.limit, settings.test_limit, seed)
    samples = _with_public(samples, settings.public, seed)
    settings.skew.check(samples.kind)
    clients = settings.clients or settings.split.natural(samples.y, samples.columns)
    owner = settings.split.assign(samples.y, samples.columns, clients, generator(seed, "split"))
    owner, moved = filled(owner, clients, settings.min_size, generator(seed, "minimum size"))
    index = indexed(owner, clients, settings.validation_fraction, generator(seed, "order"))
    groups, codes = _groups(samples)
    channels = samples.shape[0] if samples.kind == "image" else 1
    marks = settings.skew.draw(clients, channels, generator(seed, "skew"))
    noise = generator(seed, "skew", "samples")

    def skewed() -> Iterator[np.ndarray]:
        start = 0
        for x in _chunks(samples.x, samples.shape):
            mark = marks[owner[start : start + len(x)]]
            yield settings.skew.apply(x, mark, samples.range, noise)
            start += len(x)
            tracker.progress(start, len(owner), "sample")

    dtype = np.int64 if samples.kind == "text" else np.float32
    with publish(artifacts / "partition") as folder:
        write_chunks(folder / "x.npy", dtype, (len(samples.y), *samples.shape), skewed())
        test = _chunks(samples.test_x, samples.shape)
        write_chunks(folder / "test_x.npy", dtype, (len(samples.test_y), *samples.shape), test)
        data = Partitioned(
            x=read_array(folder / "x.npy"),
            y=samples.y,
            test_x=read_array(folder / "test_x.npy"),
            index=index,
            kind=samples.kind,
            classes=len(samples.class_names),
            range=samples.range,
            features=samples.features,
            groups=codes.get("groups"),
        )
        data, exchange = refined(settings, data, seed, folder)
        meta = Meta(
            dataset=settings.dataset.title,
            kind=data.kind,
            shape=data.x.shape[1:],
            classes=data.classes,
            class_names=samples.class_names,
            range=data.range,
            samples=len(data.y),
            test_samples=len(samples.test_y) - settings.public,
            public=settings.public,
            clients=clients,
            groups=groups,
            features=data.features,
            synthetic=data.synthetic,
            exchange=exchange,
        )
        arrays = {"y": data.y, "test_y": samples.test_y, **data.index._asdict()}
        arrays |= {"groups": data.groups, "test_groups": codes["test_groups"]} if groups else {}
        for name, array in arrays.items():
            write_chunks(folder / f"{name}.npy", np.int64, array.shape, [array])
        card = replace(measure(data.y, data.index, data.classes, moved), synthetic=data.synthetic, exchange=exchange)
        content = card.content()
        if settings.refine:
            content["before_refinement"] = measure(samples.y, index, data.classes, moved).numbers()
        write_json(folder / "meta.json", meta.model_dump(mode="json"))
        write_json(folder / "card.json", content)
        draw(card, samples.class_names, _title(settings, clients), folder / "card.svg")
    write_json(artifacts.parent / "metrics" / "partition.json", card.numbers())
    tracker.metrics(card.numbers())
    tracker.artifact(artifacts / "partition" / "card.svg")


def refined(settings: "PartitionSettings", data: Partitioned, seed: int, folder: Path) -> tuple[Partitioned, Exchange]:
    """The samples after all refinements, written into ``folder``, and what was sent for them, kept there too."""
    wires = []
    for i, refinement in enumerate(settings.refine):
        refinement.check(data.kind)
        wires.append(Wire(folder / "exchange" / f"{i}-{refinement.name}", data.clients))
        data = refinement.refine(data, derive(seed, "refine", i), wires[-1])
    if settings.refine:
        for name, array in (("x", data.x), ("test_x", data.test_x)):
            # Not over the old file, which may be mapped by what is written.
            write_chunks(folder / "refined.npy", np.float32, array.shape, [array])
            os.replace(folder / "refined.npy", folder / f"{name}.npy")
    used = [wire for wire in wires if wire.up.any()]
    if used:
        write_json(folder / "exchange" / "index.json", [wire.content() for wire in used])
    totals = [wire.total.model_dump() for wire in wires]
    return data, Exchange(**{name: sum(total[name] for total in totals) for name in Exchange.model_fields})


def _title(settings: "PartitionSettings", clients: int) -> str:
    fields = settings.split.model_dump(exclude={"name"}).items()
    knobs = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields)
    skew = "" if settings.skew.name == "none" else f", {settings.skew.name} skew"
    skew += "".join(f", {refinement.name}" for refinement in settings.refine)
    split = settings.split.name + (f" ({knobs})" if knobs else "")
    return f"{settings.dataset.title} over {clients:,} clients: {split}{skew}"


def write_chunks(path: Path, dtype: type, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> None:
    """A ``.npy`` of ``shape``, written a chunk at a time.

    With plain writes a full disk is an error that can be told; written through a memory map it would kill the process.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)


def _chunks(rows: Rows, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    return rows.chunks(max(CHUNK // (4 * prod(shape)), 1))


def _limited(samples: Samples, limit: int | None, test_limit: int | None, seed: int) -> Samples:
    """A random part of the samples, in their old order."""
    if limit is not None and limit < len(samples.y):
        kept = np.sort(generator(seed, "limit").permutation(len(samples.y))[:limit])
        columns = {name: values[kept] for name, values in samples.columns.items()}
        samples = replace(samples, x=samples.x.take(kept), y=samples.y[kept], columns=columns)
    if test_limit is not None and test_limit < len(samples.test_y):
        kept = np.sort(generator(seed, "test limit").permutation(len(samples.test_y))[:test_limit])
        columns = {name: values[kept] for name, values in samples.test_columns.items()}
        samples = replace(samples, test_x=samples.test_x.take(kept), test_y=samples.test_y[kept], test_columns=columns)
    return samples


def _with_public(samples: Samples, public: int, seed: int) -> Samples:
    """The samples with ``public`` random ones of the test set behind the others."""
    if not public:
        return samples
    count = len(samples.test_y)
    if public >= count:
        mend = "Lower it, or raise partition.test_fraction or partition.test_limit"
        raise Refused("params.yaml: partition.public", public, f"leaves none of {count} samples to test on", mend)
    chosen = generator(seed, "public").permutation(count)
    order = np.concatenate([np.sort(chosen[public:]), np.sort(chosen[:public])])
    columns = {name: values[order] for name, values in samples.test_columns.items()}
    return replace(samples, test_x=samples.test_x.take(order), test_y=samples.test_y[order], test_columns=columns)


def _groups(samples: Samples) -> tuple[Groups | None, dict[str, np.ndarray]]:
    """The names of the groups and the arrays to publish; nothing where the dataset has none."""
    if samples.group is None:
        return None, {}
    both = np.concatenate([samples.columns[samples.group], samples.test_columns[samples.group]])
    values, codes = np.unique(both, return_inverse=True)
    groups = Groups(name=samples.group, values=tuple(str(value) for value in values))
    split = len(samples.y)
    return groups, {"groups": codes.reshape(-1)[:split], "test_groups": codes.reshape(-1)[split:]}
