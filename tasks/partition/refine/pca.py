"""Principal components as the frozen encoder."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from tasks.partition.refine.encoder import Encode, Encoder


class PCA(Encoder):
    """The first principal components of the training samples, all divided by one number, stand in for an encoder.

    z = V^T (x - mean) / s, with V the eigenvectors of the largest eigenvalues of the covariance of all training samples
    and s^2 the mean of these eigenvalues, so that the features as a whole have a variance of 1

    With all components it turns and scales the samples, which keeps their geometry. It is fitted on the training
    samples of all clients in one place: it stands for an encoder that everybody was given before, so that nothing is
    counted as sent, and nothing validates or tests what it was fitted on.

    Source: Pearson, "On Lines and Planes of Closest Fit to Systems of Points in Space", Philosophical Magazine 2(11),
    1901.
    """

    name: Literal["pca"] = "pca"

    def fit(self, blocks: Callable[[], Iterator[np.ndarray]], inputs: int, key: int) -> Encode:
        if self.components > inputs:
            raise self._refused(f"a sample has {inputs} values", "Take fewer components", "components")
        count = sum(len(block) for block in blocks())
        mean = sum(block.sum(0) for block in blocks()) / count
        covariance = sum((block - mean).T @ (block - mean) for block in blocks()) / count
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1][: self.components], vectors[:, ::-1][:, : self.components]
        # An eigenvector's sign is left open, and one library's choice is not another's.
        largest = vectors[np.abs(vectors).argmax(0), np.arange(self.components)]
        scale = np.sqrt(max(values.mean(), 0.0)) or 1.0
        projection = vectors * np.sign(largest) / scale
        return lambda x: (x - mean) @ projection
