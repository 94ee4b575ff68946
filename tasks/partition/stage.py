"""Stage 1: reads a dataset, gives every sample to a client, and publishes ``artifacts/partition``."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifacts import publish, write_json
from tasks.keys import generator
from tasks.partition.card import measure
from tasks.partition.federation import Groups, Meta
from tasks.partition.index import filled, indexed
from tasks.partition.picture import draw
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
    settings.skew.check(samples.kind)
    clients = settings.clients
    owner = settings.split.assign(samples.y, samples.columns, clients, generator(seed, "split"))
    owner, moved = filled(owner, clients, settings.min_size, generator(seed, "minimum size"))
    index = indexed(owner, clients, settings.validation_fraction, generator(seed, "order"))
    card = measure(samples.y, index, len(samples.class_names), moved)
    groups, codes = _groups(samples)
    meta = Meta(
        dataset=settings.dataset.title,
        kind=samples.kind,
        shape=samples.shape,
        classes=len(samples.class_names),
        class_names=samples.class_names,
        range=samples.range,
        samples=len(samples.y),
        test_samples=len(samples.test_y),
        clients=clients,
        groups=groups,
        features=samples.features,
    )
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
        arrays = {"y": samples.y, "test_y": samples.test_y, **codes, **index._asdict()}
        for name, array in arrays.items():
            write_chunks(folder / f"{name}.npy", np.int64, array.shape, [array])
        write_json(folder / "meta.json", meta.model_dump(mode="json"))
        write_json(folder / "card.json", card.content())
        draw(card, samples.class_names, _title(settings), folder / "card.svg")
    write_json(artifacts.parent / "metrics" / "partition.json", card.numbers())
    tracker.metrics(card.numbers())
    tracker.artifact(artifacts / "partition" / "card.svg")


def _title(settings: "PartitionSettings") -> str:
    fields = settings.split.model_dump(exclude={"name"}).items()
    knobs = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields)
    skew = "" if settings.skew.name == "none" else f", {settings.skew.name} skew"
    split = settings.split.name + (f" ({knobs})" if knobs else "")
    return f"{settings.dataset.title} over {settings.clients:,} clients: {split}{skew}"


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


def _groups(samples: Samples) -> tuple[Groups | None, dict[str, np.ndarray]]:
    """The names of the groups and the arrays to publish; nothing where the dataset has none."""
    if samples.group is None:
        return None, {}
    both = np.concatenate([samples.columns[samples.group], samples.test_columns[samples.group]])
    values, codes = np.unique(both, return_inverse=True)
    groups = Groups(name=samples.group, values=tuple(str(value) for value in values))
    split = len(samples.y)
    return groups, {"groups": codes.reshape(-1)[:split], "test_groups": codes.reshape(-1)[split:]}
