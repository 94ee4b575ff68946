"""Each format is read as published, and what is wrong with a file is said in words.

Real data are used where they lie at hand; the formats are also written here byte by byte, whole and broken.
"""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.datasets import Adult, BreastCancer, Cifar10, Digits, Idx, ImageFolder, Npz, Synthetic, Table, Wine
from tasks.partition.datasets.idx import read_idx
from tasks.partition.samples import Rows, Samples, hold_out


def all_of(rows: Rows) -> np.ndarray:
    return np.concatenate(list(rows.chunks(7)))


def load(dataset, fraction: float = 0.25) -> Samples:
    return dataset.load(0, fraction)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=200).map(np.array), st.floats(0.01, 0.9))
def test_a_held_out_part_has_its_share_of_every_class(y, fraction):
    if np.bincount(y).max() < 2:
        with pytest.raises(Refused, match="single sample"):
            hold_out(y, fraction, generator(0))
        return
    train, test = hold_out(y, fraction, generator(0))
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(y)))
    assert len(test) >= 1
    for label in np.unique(y):
        count, held = (y == label).sum(), (y[test] == label).sum()
        assert held <= count - 1
        assert abs(held - fraction * count) <= 1


def test_digits_are_the_pixels_of_scikit_learn_in_unit_range():
    from sklearn.datasets import load_digits

    samples = load(Digits())
    x = np.concatenate([all_of(samples.x), all_of(samples.test_x)])
    assert np.array_equal(np.sort(x.ravel()), np.sort((load_digits().images / 16).astype(np.float32).ravel()))
    assert x.max() == 1.0 and x.shape == (1797, 1, 8, 8)


@pytest.mark.parametrize("dataset", [BreastCancer(), Wine()])
def test_tables_are_standardised_by_the_training_part_alone(dataset):
    samples = load(dataset)
    x, test_x = all_of(samples.x).astype(np.float64), all_of(samples.test_x).astype(np.float64)
    assert np.allclose(x.mean(0), 0, atol=1e-5) and np.allclose(x.std(0), 1, atol=1e-5)
    assert abs(test_x.mean(0)).max() > 1e-3
    assert len(samples.features) == x.shape[1]


def write_idx(path: Path, array: np.ndarray, squeeze: bool = True) -> None:
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def mnist_like(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, n in (("train", 50), ("t10k", 20)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 6, 5), np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", (np.arange(n) % 10).astype(np.uint8))
    return tmp_path


def test_mnist_is_what_its_publishers_count(real):
    samples = load(Idx(path=real("mnist")))
    assert np.bincount(samples.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(samples.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    means = [chunk.mean(dtype=np.float64) for chunk in samples.x.chunks(10_000)]
    assert np.mean(means) == pytest.approx(0.1307, abs=5e-5)


def test_fashion_mnist_and_usps_are_read_by_the_same_loader(real):
    fashion = load(Idx(path=real("fashion_mnist")))
    assert np.bincount(fashion.y).tolist() == [6000] * 10 and fashion.shape == (1, 28, 28)
    usps = load(Idx(path=real("usps")))
    assert np.bincount(usps.y).tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert len(usps.test_y) == 2007 and usps.shape == (1, 16, 16)


def test_idx_files_are_the_same_gzipped_or_memory_mapped(mnist_like):
    zipped = load(Idx(path=mnist_like))
    for path in list(mnist_like.glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    mapped = load(Idx(path=mnist_like))
    assert np.array_equal(all_of(zipped.x), all_of(mapped.x)) and np.array_equal(zipped.test_y, mapped.test_y)
    assert isinstance(read_idx(mnist_like / "train-images-idx3-ubyte"), np.memmap)


def test_rows_of_one_folder_make_datasets_that_share_nothing(mnist_like):
    whole = load(Idx(path=mnist_like))
    first, second = (Idx(path=mnist_like, rows=rows) for rows in ((0, 20), (20, len(whole.y))))
    parts = [load(idx) for idx in (first, second)]
    assert np.array_equal(np.concatenate([part.y for part in parts]), whole.y)
    assert np.array_equal(np.concatenate([all_of(part.x) for part in parts]), all_of(whole.x))
    assert np.array_equal(parts[0].test_y, whole.test_y)
    assert not first.shares(second) and first.shares(Idx(path=mnist_like)) and Idx(path=mnist_like).shares(second)
    assert not first.shares(Idx(path=mnist_like / "other")) and not first.shares(Digits())
    with pytest.raises(Refused, match=r"partition\.dataset\.rows = \[10, 99999\]: is no part of the"):
        load(Idx(path=mnist_like, rows=(10, 99_999)))


def test_without_test_files_a_test_set_is_split_off(mnist_like):
    for path in mnist_like.glob("t10k*"):
        path.unlink()
    samples = load(Idx(path=mnist_like), 0.2)
    assert np.bincount(samples.test_y).tolist() == [1] * 10 and np.bincount(samples.y).tolist() == [4] * 10


def test_what_is_wrong_with_an_idx_file_is_said(mnist_like):
    images, labels = (mnist_like / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    data = gzip.decompress(whole)
    broken = {
        whole[: len(whole) // 2]: "truncated",
        b"not gzip at all": "cannot be read",
        gzip.compress(data[:-100]): r"promises \[50, 6, 5\], which is 1500 bytes, but 1400 bytes follow",
        gzip.compress(data + b"!"): "but more follow",
        gzip.compress(b"\x89PNG" + data[4:]): "does not begin as an idx file",
        gzip.compress(data[:9]): "ends inside its header",
        gzip.compress(b""): "does not begin as an idx file",
    }
    for content, problem in broken.items():
        images.write_bytes(content)
        with pytest.raises(Refused, match=problem) as refused:
            load(Idx(path=mnist_like))
        assert refused.value.where == str(images)
    images.write_bytes(whole)
    write_idx(labels, np.zeros(49, np.uint8))
    with pytest.raises(Refused, match="49 labels for the 50 images"):
        load(Idx(path=mnist_like))
    labels.unlink()
    with pytest.raises(Refused, match=r"has no file like train-labels-idx1-ubyte.gz"):
        load(Idx(path=mnist_like))
    with pytest.raises(Refused, match=r"params.yaml: partition.dataset.path = '.*nowhere': does not exist"):
        load(Idx(path=mnist_like / "nowhere"))


def cifar_records(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 10, n, np.uint8), rng.integers(0, 256, (n, 3, 32, 32), np.uint8)
    return x, y, b"".join(bytes([label]) + image.tobytes() for label, image in zip(y, x, strict=True))


def test_the_binary_version_and_the_archive_of_cifar10_give_the_same_samples(tmp_path):
    parts = [cifar_records(8, seed) for seed in range(3)]
    for name, (_, _, content) in zip(("data_batch_1", "data_batch_2", "test_batch"), parts, strict=True):
        (tmp_path / f"{name}.bin").write_bytes(content)
    x, y = np.concatenate([parts[0][0], parts[1][0]]), np.concatenate([parts[0][1], parts[1][1]])
    last = (0, 2, 3, 1)
    np.savez(
        tmp_path / "c.npz", x_train=x.transpose(last), y_train=y, x_test=parts[2][0].transpose(last), y_test=parts[2][1]
    )
    binary, archive = load(Cifar10(path=tmp_path)), load(Cifar10(path=tmp_path / "c.npz"))
    assert np.array_equal(all_of(binary.x), (x / 255).astype(np.float32))
    assert np.array_equal(all_of(binary.x), all_of(archive.x)) and np.array_equal(binary.y, archive.y)
    assert np.array_equal(all_of(binary.test_x), all_of(archive.test_x))
    # Any order of reading gives the same rows, across the borders of the files.
    order = np.array([15, 0, 8, 7])
    assert np.array_equal(binary.x.read(order), (x[order] / 255).astype(np.float32))


def test_the_subset_of_cifar10_has_its_published_channel_means(real):
    samples = load(Cifar10(path=real("cifar10/cifar10_subset.npz")))
    means = np.mean([chunk.mean((0, 2, 3), dtype=np.float64) for chunk in samples.x.chunks(1000)], axis=0)
    assert means == pytest.approx([0.4936, 0.4832, 0.4473], abs=1e-4)
    assert np.bincount(samples.test_y).tolist() == [200] * 10


def test_what_is_wrong_with_cifar10_is_said(tmp_path):
    _, _, content = cifar_records(4, 0)
    with pytest.raises(Refused, match=r"has no data_batch_1.bin"):
        load(Cifar10(path=tmp_path))
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(Refused, match=r"has no test_batch.bin"):
        load(Cifar10(path=tmp_path))
    (tmp_path / "test_batch.bin").write_bytes(content[:-10])
    with pytest.raises(Refused, match="not a whole number of records of 3073 bytes"):
        load(Cifar10(path=tmp_path))
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" + content[1:])
    with pytest.raises(Refused, match="holds the label 11"):
        load(Cifar10(path=tmp_path))


ADULT = """39, State-gov, 77516, Bachelors, 13, Never-married, ?, Not-in-family, White, Male, 2174, 0, 40, Cuba, <=50K
50, Private, 83311, Masters, 14, Divorced, Sales, Husband, Black, Female, 0, 0, 13, ?, >50K
28, Private, 10000, Masters, 14, Divorced, Sales, Wife, White, Female, 0, 5, 30, Cuba, <=50K
"""


def test_adult_as_published(real):
    samples = load(Adult(path=real("adult")))
    assert len(samples.y) == 32561 and samples.y.sum() == 7841
    assert len(samples.test_y) == 16281 and samples.test_y.sum() == 3846
    # Every row has exactly one value of each of the eight text columns; six columns are numbers.
    x = samples.x.read(samples.x.index[:2000])
    assert np.array_equal(x[:, [name.count("=") == 1 for name in samples.features]].sum(1), np.full(2000, 8.0))
    assert sum("=" not in name for name in samples.features) == 6
    assert (samples.columns["workclass"] == "?").sum() == 1836
    assert sorted(np.unique(samples.columns["sex"])) == ["Female", "Male"] and samples.group == "sex"


def test_adult_keeps_missing_values_as_a_category_and_ignores_what_training_never_saw(tmp_path):
    (tmp_path / "adult.data").write_text(ADULT)
    test = "|1x3 Cross validator\n" + ADULT.replace("Cuba", "Peru").replace("K\n", "K.\n")
    (tmp_path / "adult.test").write_text(test)
    samples = load(Adult(path=tmp_path, group="race"))
    names = list(samples.features)
    x, test_x = all_of(samples.x), all_of(samples.test_x)
    assert x[:, names.index("occupation=?")].tolist() == [1, 0, 0]
    assert test_x[0, [n.startswith("native-country=") for n in names]].sum() == 0
    assert samples.test_y.tolist() == samples.y.tolist() == [0, 1, 0]
    assert samples.columns["race"].tolist() == ["White", "Black", "White"]
    blind = load(Adult(path=tmp_path, exclude=("sex", "fnlwgt")))
    assert not [name for name in blind.features if name.startswith("sex=") or name == "fnlwgt"]
    assert blind.group == "sex" and len(blind.columns["sex"]) == 3
    (tmp_path / "adult.data").write_text(ADULT + "1, 2, 3\n")
    with pytest.raises(Refused, match="line 4 is not 14 attributes"):
        load(Adult(path=tmp_path))
    (tmp_path / "adult.data").write_text(ADULT.replace("50, Private", "fifty, Private"))
    with pytest.raises(Refused, match=r"column age: .*fifty"):
        load(Adult(path=tmp_path))


def test_an_archive_is_read_the_same_stored_or_compressed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 256, (30, 4, 4, 3), np.uint8), "y": np.array(["dog", "cat", "dog"] * 10)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    stored, packed = load(Npz(path=tmp_path / "a.npz")), load(Npz(path=tmp_path / "b.npz"))
    assert stored.class_names == ("cat", "dog") and stored.shape == (3, 4, 4)
    assert np.array_equal(all_of(stored.x), all_of(packed.x)) and np.array_equal(stored.y, packed.y)
    assert np.array_equal(
        all_of(stored.x), (arrays["x"][stored.x.index] / 255).astype(np.float32).transpose(0, 3, 1, 2)
    )
    assert np.array_equal(stored.y, (arrays["y"][stored.x.index] == "dog"))


def test_a_table_of_arrays_with_its_own_test_set_groups_and_columns(tmp_path):
    rng = np.random.default_rng(0)
    x, site = rng.normal(5, 3, (40, 3)), np.array(["n", "s"] * 20)
    np.savez(tmp_path / "a.npz", features=x, label=np.arange(40) % 2, site=site)
    samples = load(Npz(path=tmp_path / "a.npz", x="features", y="label", keep=("site",), group="site"))
    train = samples.x.index
    expected = (x[train] - x[train].mean(0)) / x[train].std(0)
    assert np.allclose(all_of(samples.x), expected, atol=1e-6)
    assert np.array_equal(samples.columns["site"], site[train])
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(40) % 2, test_x=x[:5] + 1, test_y=[0, 1, 0, 1, 0])
    own = load(Npz(path=tmp_path / "b.npz"))
    assert np.allclose(all_of(own.test_x), (x[:5] + 1 - x.mean(0)) / x.std(0), atol=1e-6)


def test_what_is_wrong_with_an_archive_is_said(tmp_path):
    path = tmp_path / "a.npz"

    def refused(problem: str, **settings):
        with pytest.raises(Refused, match=problem):
            all_of(load(Npz(path=path, **settings)).x)

    np.savez(path, x=np.zeros((6, 2)), labels=np.arange(6) % 2)
    refused("has no array 'y'. It holds: x, labels")
    refused("must be one of `keep`", y="labels", group="site")
    np.savez(path, x=np.zeros((6, 2)), y=np.arange(5) % 2)
    refused(r"\[6, 2\] with 5 labels")
    np.savez(path, x=np.array([{}] * 6), y=np.arange(6) % 2)
    refused("pickled Python objects, which are never opened")
    np.savez(path, x=np.full((6, 2), np.nan), y=np.arange(6) % 2)
    refused("column 0 holds NaN")
    np.savez(path, x=np.full((6, 4, 4), 17.0), y=np.arange(6) % 2)
    refused(r"17.0..17.0.*must be in \[0, 1\]")
    np.savez(path, x=np.zeros((6, 4, 4), np.int32), y=np.arange(6) % 2)
    refused("images must be uint8")
    np.savez(path, x=np.zeros((6, 2)), y=np.zeros(6, int))
    refused("must hold two classes")
    np.savez(path, x=np.zeros((6, 2)), y=np.linspace(0, 1, 6))
    refused("fractional")
    np.savez(path, x=np.zeros((6, 2)), y=np.arange(6) % 2, test_x=np.zeros((3, 5)), test_y=[0, 1, 0])
    refused(r"must be \[m, 2\] with m labels")
    np.savez_compressed(path, x=np.random.default_rng(0).random((500, 20)), y=np.arange(500) % 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("is not a complete .npz archive")
    # A bit flipped in the middle of the compressed samples.
    path.write_bytes(whole[:20000] + bytes([whole[20000] ^ 255]) + whole[20001:])
    refused("array 'x' cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
        archive.writestr("y.npy", b"")
    refused("cannot be read")


CSV = """id,age,town,rank,label
1,20,Ulm,3,yes
2,30,Bonn,1,no
3,40,Ulm,2,yes
4,50,Jena,1,no
5,60,Bonn,2,yes
6,70,Ulm,3,no
"""


def test_a_csv_and_the_same_parquet_are_encoded_alike(tmp_path):
    from pyarrow import csv, parquet

    (tmp_path / "t.csv").write_text(CSV)
    parquet.write_table(csv.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    fields = {"target": "label", "ignore": ("id",), "categorical": ("rank",), "keep": ("town", "id"), "group": "town"}
    text, columnar = (load(Table(path=tmp_path / name, **fields)) for name in ("t.csv", "t.parquet"))
    assert np.array_equal(all_of(text.x), all_of(columnar.x)) and text.features == columnar.features
    assert text.class_names == ("no", "yes") and "id" not in text.features
    train = text.x.index
    age = np.array([20, 30, 40, 50, 60, 70.0])
    expected = (age - age[train].mean()) / age[train].std()
    assert np.allclose(all_of(text.x)[:, 0], expected[train], atol=1e-6)
    towns = np.array(["Ulm", "Bonn", "Ulm", "Jena", "Bonn", "Ulm"])
    assert np.array_equal(text.columns["town"], towns[train]) and np.array_equal(
        text.columns["id"].astype(int) - 1, train
    )
    for k, name in enumerate(text.features[1:], 1):
        column, value = name.split("=")
        truth = towns == value if column == "town" else np.array([3, 1, 2, 1, 2, 3]) == int(value)
        assert np.array_equal(all_of(text.x)[:, k], truth[train])


def test_missing_values_are_refused_filled_or_dropped_as_asked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV.replace("3,40,Ulm", "3,?,Ulm").replace("4,50,Jena", "4,50,"))
    with pytest.raises(
        Refused, match=r"partition.dataset.missing = 'refuse': .*lacks values in age \(1\), town \(1\).*fill"
    ):
        load(Table(path=path, target="label"))
    filled = load(Table(path=path, target="label", ignore=("id",), keep=("id", "town"), missing="fill"))
    numbers = np.concatenate([filled.columns["id"], filled.test_columns["id"]]).astype(int)
    x = np.concatenate([all_of(filled.x), all_of(filled.test_x)])
    # The training mean, standardised, is zero.
    assert x[numbers == 3, 0] == pytest.approx(0, abs=1e-6)
    towns = np.concatenate([filled.columns["town"], filled.test_columns["town"]])
    assert towns[numbers == 4] == "missing"
    dropped = load(Table(path=path, target="label", keep=("id",), missing="drop"))
    assert sorted(np.concatenate([dropped.columns["id"], dropped.test_columns["id"]])) == ["1", "2", "5", "6"]
    path.write_text(CSV.replace("1,no", "1,"))
    with pytest.raises(Refused, match=r"2 rows of .* have no label"):
        load(Table(path=path, target="label", missing="fill"))


def test_a_table_with_a_test_file_and_levels_that_training_lacks(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    (tmp_path / "u.csv").write_text("label,town,age,rank,id\nyes,Kiel,45,2,9\n")
    samples = load(Table(path=tmp_path / "t.csv", test_path=tmp_path / "u.csv", target="label", ignore=("id", "rank")))
    assert len(samples.y) == 6 and samples.test_y.tolist() == [1]
    assert all_of(samples.test_x)[0].tolist() == pytest.approx([0, 0, 0, 0])
    (tmp_path / "u.csv").write_text("label,age\nyes,45\n")
    with pytest.raises(Refused, match=r"lacks the columns id, town, rank of t.csv"):
        load(Table(path=tmp_path / "t.csv", test_path=tmp_path / "u.csv", target="label"))


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    path = tmp_path / "t.csv"

    def refused(problem: str, **settings):
        with pytest.raises(Refused, match=problem):
            load(Table(**{"path": path, "target": "label", **settings}))

    path.write_text(CSV)
    refused(r"partition.dataset.target = 'income': is no column of .*It has id, age, town", target="income")
    refused("leaves no feature", ignore=("id", "age", "town", "rank"))
    refused(r"partition.dataset.test_path = '.*none.csv': does not exist", test_path=tmp_path / "none.csv")
    path.write_text(CSV + "7,80\n")
    refused("cannot be read .*Expected 5 columns, got 2")
    path.write_text(CSV.splitlines()[0] + "\n")
    refused("holds no row")
    path.write_text("")
    refused("cannot be read")
    path.write_text("name,label\n" + "".join(f"p{i},{i % 2}\n" for i in range(1200)))
    refused("column name holds 1200 different texts, above 1000")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    refused("cannot be read", path=tmp_path / "t.parquet")


def write_clients(folder: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """A file a client; the first rows of a file are the same however long it is."""
    folder.mkdir(exist_ok=True)
    for name, rows in sizes.items():
        rng = np.random.default_rng([seed, *name.encode()])
        lines = [f"{name}{i},{rng.normal()},{'ab'[rng.integers(2)]},{['no', 'yes'][i % 2]}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["id,age,town,label", *lines]))


def test_files_of_a_folder_are_clients_and_rows_once_tested_on_are_never_trained_on(tmp_path):
    table = Table(path=tmp_path / "sites", target="label", ignore=("id",), keep=("id",))
    write_clients(tmp_path / "sites", {"north": 90, "south": 110})
    (tmp_path / "sites" / "README.md").write_text("Not data.")
    before = load(table)
    assert set(before.columns["client"]) == set(before.test_columns["client"]) == {"north", "south"}
    assert all(id_.startswith(site) for id_, site in zip(before.columns["id"], before.columns["client"], strict=True))
    assert 0.1 < len(before.test_y) / 200 < 0.3
    # A file comes, and one grows.
    write_clients(tmp_path / "sites", {"east": 50, "south": 150})
    after = load(table)
    assert set(after.columns["client"]) == {"north", "south", "east"}
    assert set(before.test_columns["id"]) < set(after.test_columns["id"])
    assert set(before.columns["id"]) < set(after.columns["id"])
    assert not set(before.test_columns["id"]) & set(after.columns["id"])


def test_with_a_reference_features_and_classes_stay_what_they_are(tmp_path):
    table = Table(path=tmp_path / "sites", reference=tmp_path / "r.csv", target="label", ignore=("id",), keep=("id",))
    write_clients(tmp_path / "sites", {"north": 90})
    (tmp_path / "r.csv").write_text("id,age,town,label\nr1,1,a,no\nr2,3,b,yes\nr3,2,a,maybe\n")
    before = load(table)
    assert before.features == ("age", "town=a", "town=b") and before.class_names == ("maybe", "no", "yes")
    (tmp_path / "sites" / "west.csv").write_text("id,age,town,label\n" + "w1,900,c,yes\n" * 40)
    after = load(table)
    assert after.features == before.features and after.class_names == before.class_names
    ages = dict(zip(after.columns["id"], all_of(after.x)[:, 0], strict=True))
    assert all(ages[i] == x for i, x in zip(before.columns["id"], all_of(before.x)[:, 0], strict=True))
    assert ages["w1"] == pytest.approx((900 - 2) / np.std([1, 2, 3]))
    assert not {"r1", "r2", "r3"} & {*after.columns["id"], *after.test_columns["id"]}
    (tmp_path / "sites" / "west.csv").write_text("id,age,town,label\nw1,900,c,perhaps\n")
    with pytest.raises(Refused, match=r"perhaps.*is no class of the reference"):
        load(table)


def test_what_is_wrong_with_a_folder_of_tables_is_said(tmp_path):
    folder = tmp_path / "sites"
    folder.mkdir()
    with pytest.raises(Refused, match=r"has no file that ends in \.csv"):
        load(Table(path=folder, target="label"))
    write_clients(folder, {"north": 30})
    (folder / "south.csv").write_text("id,age,label\n1,2,no\n")
    with pytest.raises(Refused, match=r"south\.csv: lacks the columns town of north\.csv"):
        load(Table(path=folder, target="label"))
    (folder / "south.csv").write_text("id,age,town,label\n1,old,a,no\n")
    with pytest.raises(Refused, match=r"south\.csv: has other types than north\.csv"):
        load(Table(path=folder, target="label"))
    with pytest.raises(Refused, match="client"):
        load(Table(path=folder, target="label", keep=("client",)))


def write_pictures(root: Path, names: tuple[str, ...], count: int, start: int = 0) -> None:
    from PIL import Image

    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = (20 * k + start, 10 * i, 200)
            Image.new("RGB", (12, 9), colour).save(root / name / f"{i}.png")


def test_folders_of_pictures_become_classes_in_alphabetical_order(tmp_path):
    write_pictures(tmp_path, ("dog", "cat"), 4)
    (tmp_path / ".cache").mkdir()
    samples = load(ImageFolder(path=tmp_path, size=8))
    assert samples.class_names == ("cat", "dog") and samples.shape == (3, 8, 8)
    # One colour all over, and cats (written second) are 20 redder than dogs.
    x = all_of(samples.x)
    assert np.allclose(x[:, 0], np.where(samples.y == 0, 20, 0)[:, None, None] / 255) and np.allclose(
        x[:, 2], 200 / 255
    )
    grey = all_of(load(ImageFolder(path=tmp_path, size=8, grayscale=True)).x)
    weights = np.array([0.299, 0.587, 0.114])
    assert np.allclose(grey[:, 0], np.tensordot(weights, x, (0, 1)), atol=1.01 / 255)


def test_train_and_test_folders_are_kept_apart(tmp_path):
    write_pictures(tmp_path / "train", ("a", "b"), 3)
    write_pictures(tmp_path / "test", ("a", "b"), 2, start=100)
    samples = load(ImageFolder(path=tmp_path))
    assert len(samples.y) == 6 and len(samples.test_y) == 4
    assert all_of(samples.x)[:, 0].max() < 100 / 255 <= all_of(samples.test_x)[:, 0].min() + 1e-6


def test_what_is_wrong_with_pictures_is_said(tmp_path):
    def refused(problem: str):
        with pytest.raises(Refused, match=problem):
            all_of(load(ImageFolder(path=tmp_path)).x)

    refused("has 0 folders, but every class needs one")
    write_pictures(tmp_path, ("a", "b"), 4)
    for picture in (tmp_path / "a").iterdir():
        picture.write_bytes(picture.read_bytes()[:40])
    refused("a/[0-3].png: is not a picture that can be opened")
    for picture in (tmp_path / "a").iterdir():
        picture.unlink()
    refused("holds no picture. Pictures end in .bmp")


def test_one_linear_model_fits_each_synthetic_client_but_fits_all_only_when_iid():
    from sklearn.linear_model import LogisticRegression

    def fits(iid: bool) -> tuple[float, float]:
        """The accuracy of a linear model of its own for each client, and of one model for all."""
        sizes = {"size_mean": 4.0, "size_deviation": 0.1}
        samples = load(Synthetic(alpha=1.0, beta=0.0, iid=iid, sources=30, dimension=20, classes=5, **sizes))
        x, y, client = all_of(samples.x), samples.y, samples.columns["client"]

        def fit(rows: np.ndarray) -> float:
            return LogisticRegression(C=100, max_iter=300).fit(x[rows], y[rows]).score(x[rows], y[rows])

        return np.mean([fit(client == k) for k in range(30) if len(np.unique(y[client == k])) > 1]), fit(client >= 0)

    assert min(fits(iid=True)) > 0.95
    own, shared = fits(iid=False)
    assert own > 0.97 and shared < 0.85


def test_synthetic_inputs_have_the_variances_of_the_paper():
    iid = load(Synthetic(iid=True, sources=30, dimension=10))
    x = all_of(iid.x).astype(np.float64)
    assert x.var(0) == pytest.approx(np.arange(1, 11) ** -1.2, rel=0.1)
    # Means v ~ N(B, 1), B ~ N(0, beta): over a client's inputs their variance is 1, that of B over clients is beta.
    wide = load(Synthetic(beta=25.0, sources=400, dimension=50, size_mean=0.0, size_deviation=0.1))
    x, client = all_of(wide.x).astype(np.float64), wide.columns["client"]
    means = np.stack([x[client == k].mean(0) for k in range(400)])
    assert means.mean(1).var() == pytest.approx(25.0, rel=0.25)
    assert means.var(1).mean() == pytest.approx(1.0, rel=0.1)


def test_synthetic_sizes_are_lognormal_and_a_client_does_not_depend_on_how_many_there_are():
    few, many = load(Synthetic(sources=5), 0.01), load(Synthetic(sources=200), 0.01)
    sizes = np.bincount(np.concatenate([many.columns["client"], many.test_columns["client"]]))
    assert sizes.min() >= 50
    logs = np.log(sizes - 50 + 0.5)
    assert logs.mean() == pytest.approx(4.0, abs=0.5) and logs.std() == pytest.approx(2.0, abs=0.4)
    x, y = all_of(few.x), all_of(many.x)
    first = few.columns["client"] == 0, many.columns["client"] == 0
    shared = set(map(bytes, x[first[0]])) & set(map(bytes, y[first[1]]))
    assert len(shared) > 0.9 * first[0].sum()
