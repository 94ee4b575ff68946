"""Datasets. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.partition.datasets.adult import Adult
from tasks.partition.datasets.bundled import BreastCancer, Digits, Wine
from tasks.partition.datasets.cifar10 import Cifar10
from tasks.partition.datasets.idx import Idx
from tasks.partition.datasets.image_folder import ImageFolder
from tasks.partition.datasets.npz import Npz
from tasks.partition.datasets.synthetic import Synthetic
from tasks.partition.datasets.table import Table
from tasks.partition.datasets.text import Text

Dataset = one_of(Digits, BreastCancer, Wine, Idx, Cifar10, Adult, Npz, Table, ImageFolder, Synthetic, Text)

__all__ = [
    "Adult", "BreastCancer", "Cifar10", "Dataset", "Digits", "Idx", "ImageFolder", "Npz", "Synthetic", "Table", "Text",
    "Wine",
]  # fmt: skip
