"""The small datasets that come with scikit-learn, for a run without a download."""

from typing import Any, ClassVar, Literal

import numpy as np

from tasks.keys import generator
from tasks.partition.encoding import Standard
from tasks.partition.federation import Kind
from tasks.partition.samples import Rows, Samples, Source, hold_out


class Digits(Source):
    """1797 handwritten digits of 8 x 8 grey pixels, in [0, 1].

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998; bundled with scikit-learn.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    name: Literal["digits"] = "digits"

    def load(self, seed: int, test_fraction: float) -> Samples:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        y = bunch.target.astype(np.int64)
        train, test = hold_out(y, test_fraction, generator(seed, "test set"))
        images = (bunch.images / 16.0).astype(np.float32)[:, None]
        return Samples(
            x=Rows(train, images.__getitem__),
            y=y[train],
            test_x=Rows(test, images.__getitem__),
            test_y=y[test],
            kind="image",
            shape=(1, 8, 8),
            class_names=tuple(str(digit) for digit in range(10)),
            range=(0.0, 1.0),
        )


class BreastCancer(Source):
    """569 tumours with 30 measurements each, benign or malignant, standardised.

    Source: Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", UCI, 1995; bundled with scikit-learn.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    name: Literal["breast_cancer"] = "breast_cancer"

    def load(self, seed: int, test_fraction: float) -> Samples:
        from sklearn.datasets import load_breast_cancer

        return _table(load_breast_cancer(), seed, test_fraction)


class Wine(Source):
    """178 wines of three cultivars with 13 chemical measurements each, standardised.

    Source: Aeberhard and Forina, "Wine", UCI, 1992; bundled with scikit-learn.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    name: Literal["wine"] = "wine"

    def load(self, seed: int, test_fraction: float) -> Samples:
        from sklearn.datasets import load_wine

        return _table(load_wine(), seed, test_fraction)


def _table(bunch: Any, seed: int, test_fraction: float) -> Samples:
    y = bunch.target.astype(np.int64)
    train, test = hold_out(y, test_fraction, generator(seed, "test set"))
    read = Standard.fit(bunch.data, train, "scikit-learn").reader(bunch.data)
    return Samples(
        x=Rows(train, read),
        y=y[train],
        test_x=Rows(test, read),
        test_y=y[test],
        kind="table",
        shape=(bunch.data.shape[1],),
        class_names=tuple(str(name) for name in bunch.target_names),
        features=tuple(str(name) for name in bunch.feature_names),
    )
