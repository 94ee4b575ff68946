"""GGEUR: every client's classes filled along the directions in which the class varies over all clients."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from tasks import tree
from tasks.keys import generator
from tasks.partition.federation import Kind
from tasks.partition.refine.moments import Moments, square, stacked
from tasks.partition.refine.preparation import Partitioned, Preparation, Wire

FEW = 10
"""Of a class with fewer samples than this a client may draw ten times as many around each."""
EXPOSED = 2
"""Of so many samples, mean and covariance give every single one away: mu, or mu plus and minus the root of S."""


class GGEUR(Preparation):
    """Clients share the mean and covariance of each of their classes; the covariance over all then shapes new samples.

    client k, up:  n_k, mu_k, S_k = sum (z - mu_k) (z - mu_k)^T / n_k, of each class
    server, down:  Sigma = sum_k n_k / n (S_k + (mu_k - mu) (mu_k - mu)^T)
    client k:      z' = z + sum_j e_j sqrt(lambda_j) xi_j,  e_j ~ N(0, 1)

    with mu = sum_k n_k / n mu_k and the eigenpairs (lambda_j, xi_j) of Sigma, until the class has `n_target` samples. z
    is a sample of the client's own, or a mean (prototype) that a client sent. With n_target = 1 around own samples
    nothing changes, to the last bit; with Sigma = 0 samples are duplicated. The noise is drawn as the symmetric root of
    Sigma times a normal vector: the same distribution, whatever signs a library gives to eigenvectors.

    What is sent counts towards the bytes of the run. Mean and covariance of one or two samples give these away exactly;
    see `min_count`.

    Source: Dai et al., "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning",
    CVPR 2025, and its repository.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    mend: ClassVar[str] = "put an encoder before it, as in refine: [{name: pca, components: 48}, {name: ggeur}]"
    name: Literal["ggeur"] = "ggeur"
    n_target: int = Field(50, ge=1, description="samples to which a client's class is filled; paper: 50 to 5000")
    around: Literal["own", "prototypes", "own_and_prototypes"] = Field(
        "own",
        description="what new samples lie around: own samples, in the classes that a client has (paper: one domain); "
        "the prototypes of all clients; own samples and the prototypes of the others (paper: several domains)",
    )
    draws: int = Field(500, ge=1, description="draws around a sample or prototype, of which those needed are kept")
    eig_scale: Literal["sqrt", "linear"] = Field(
        "sqrt", description="length along an eigenvector: the root of its eigenvalue (code), or that itself (paper)"
    )
    stretch: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (),
        description="factors of the largest eigenvalues, largest first; code for several domains: 5 to 1 over ten "
        "of them, but by an oversight the smallest",
    )
    top_q: int | None = Field(None, ge=1, description="eigenpairs that are sent, the largest; none for all of Sigma")
    guide_threshold: float = Field(
        1.0, gt=0, le=1, description="Sigma is of the largest holders with this share of the class; paper's code: 0.8"
    )
    min_count: int = Field(
        3, ge=1, description="samples of a class below which a client sends nothing of it; paper: 1, which exposes them"
    )
    noise: Literal["covariance", "isotropic", "none"] = Field(
        "covariance", description="shape of the noise; the other two, of the same total variance or none, are controls"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.around == "own" and self.n_target > FEW * self.draws:
            raise ValueError(f"n_target = {self.n_target} must be at most {FEW} x draws = {FEW * self.draws}")
        return self

    def refine(self, data: Partitioned, key: int, wire: Wire) -> Partitioned:
        if data.groups is not None and self.around != "own":
            mend = "Take around: own, or leave out `group` of the dataset"
            raise self._refused("a sample made around a prototype belongs to no group of the data", mend, "around")
        counts = np.zeros((data.clients, data.classes), np.int64)
        np.add.at(counts, (data.owner[data.trains], data.y[data.index.indices[data.trains]]), 1)
        sent = counts >= self.min_count
        message = self.server(self.messages(data, counts, sent, wire), counts, sent)
        wire.broadcast(message)
        wire.notes |= {
            "statistics": int(sent.sum()),
            "withheld_statistics": int(((counts > 0) & ~sent).sum()),
            "of_one_sample": int((sent & (counts == 1)).sum()),
            "of_two_samples": int((sent & (counts == 2)).sum()),
        }
        return self.filled(data, sent, message, key)

    def messages(
        self, data: Partitioned, counts: np.ndarray, sent: np.ndarray, wire: Wire
    ) -> Iterator[tuple[int, tree.Tree]]:
        """What each client sends: the numbers of samples, and in float32 the means and the upper triangles of S."""
        rows, columns = np.triu_indices(data.x.shape[1])
        for client in range(data.clients):
            mine = data.train(client)
            classes = np.flatnonzero(sent[client])
            found = [Moments.of(data.x[mine[data.y[mine] == c]]) for c in classes]
            message = {
                "count": torch.from_numpy(np.where(sent[client], counts[client], 0)),
                "mean": stacked([each.mean for each in found], len(classes), data.x.shape[1]),
                "covariance": stacked([each.covariance[rows, columns] for each in found], len(classes), len(rows)),
            }
            exposed = counts[client][sent[client] & (counts[client] <= EXPOSED)].sum()
            wire.upload(client, message, int(exposed))
            yield client, message

    def server(self, messages: Iterator[tuple[int, tree.Tree]], counts: np.ndarray, sent: np.ndarray) -> tree.Tree:
        """What the server sends to all: of every class Sigma or its largest eigenpairs, and the prototypes if needed.

        One sum a class is held, whatever the number of clients.
        """
        guides = guide(np.where(sent, counts, 0), self.guide_threshold)
        pooled: list[Moments | None] = [None] * counts.shape[1]
        prototypes: list[list[torch.Tensor]] = [[] for _ in pooled]
        for client, message in messages:
            for i, c in enumerate(np.flatnonzero(message["count"])):
                prototypes[c].append(message["mean"][i])
                if guides[client, c]:
                    mean, covariance = message["mean"][i].double().numpy(), square(message["covariance"][i])
                    part = Moments(int(message["count"][c]), mean, covariance)
                    pooled[c] = part if pooled[c] is None else pooled[c] | part
            p = message["mean"].shape[1]
        every = np.stack([np.zeros((p, p)) if of is None else of.covariance for of in pooled])
        if self.top_q is None:
            rows, columns = np.triu_indices(p)
            answer = {"sigma/covariance": torch.from_numpy(every[:, rows, columns]).float()}
        else:
            if self.top_q > p:
                raise self._refused(f"there are {p} features", "Take fewer, or none for all of Sigma", "top_q")
            values, vectors = np.linalg.eigh(every)
            largest = {"values": values[:, -self.top_q :], "vectors": vectors.transpose(0, 2, 1)[:, -self.top_q :]}
            answer = {f"sigma/{name}": torch.from_numpy(value.copy()).float() for name, value in largest.items()}
        if self.around != "own":
            answer["holders"] = torch.tensor([len(each) for each in prototypes])
            answer["prototypes"] = stacked([mean.numpy() for each in prototypes for mean in each], int(sent.sum()), p)
        return answer

    def filled(self, data: Partitioned, sent: np.ndarray, message: tree.Tree, key: int) -> Partitioned:
        """Every client's data with the new samples, drawn from the client's own key."""
        x, y, owner, source = [], [], [], []
        starts = np.cumsum([0, *message["holders"].tolist()]) if "holders" in message else None
        for c in range(data.classes):
            root = self.root(tree.take(tree.part(message, "sigma"), c))
            prototypes = message["prototypes"][starts[c] : starts[c + 1]].numpy() if starts is not None else None
            senders = np.flatnonzero(sent[:, c])
            for client in range(data.clients):
                rng = generator(key, "client", client, c)
                mine = data.train(client)
                mine = mine[data.y[mine] == c]
                missing = max(self.n_target - len(mine), 0)
                centres, rows = self.centres(data.x, mine, prototypes, senders == client, missing, rng)
                normal = rng.standard_normal(centres.shape, np.float32)
                x.append(centres + normal @ root)
                y.append(np.full(len(centres), c))
                owner.append(np.full(len(centres), client))
                source.append(rows)
        groups = None if data.groups is None else data.groups[np.concatenate(source)]
        return data.grown(np.concatenate(x), np.concatenate(y), np.concatenate(owner), groups)

    def centres(
        self,
        x: np.ndarray,
        mine: np.ndarray,
        prototypes: np.ndarray | None,
        own: np.ndarray,
        missing: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What ``missing`` new samples of a class lie around, [n, p], and of own samples their positions, else none.

        ``mine`` are the positions of the client's samples of the class; ``own`` marks the prototype that it sent.
        """
        nothing = np.zeros(0, np.int64)
        if self.around == "prototypes":
            chosen = rng.integers(0, len(prototypes), missing) if len(prototypes) else nothing
            return prototypes[chosen], nothing
        n = len(mine)
        if self.around == "own":
            if missing <= n:
                chosen = mine[rng.permutation(n)[:missing]]
            else:
                draws = self.draws * (FEW if n < FEW else 1)
                chosen = mine[rng.choice(n * draws, missing, replace=False) // draws] if n else nothing
            return x[chosen], chosen
        others = prototypes[~own]
        slots = self.draws * (len(others) + bool(n))
        block = rng.choice(slots, min(missing, slots), replace=False) // self.draws
        around = x[rng.choice(mine, len(block))] if n else np.zeros((len(block), x.shape[1]), x.dtype)
        far = block >= bool(n)
        around[far] = others[block[far] - bool(n)]
        return around, nothing

    def root(self, sigma: tree.Tree) -> np.ndarray:
        """The symmetric matrix [p, p] that shapes normal vectors: its square is the covariance of the noise."""
        if "covariance" in sigma:
            values, vectors = np.linalg.eigh(square(sigma["covariance"]))
        else:
            values, vectors = sigma["values"].double().numpy(), sigma["vectors"].double().numpy().T
        values = np.maximum(values, 0.0)
        # In ascending order.
        values[::-1][: len(self.stretch)] *= self.stretch[: len(values)]
        length = np.sqrt(values) if self.eig_scale == "sqrt" else values
        root = (vectors * length) @ vectors.T
        if self.noise != "covariance":
            total = np.square(length).sum() if self.noise == "isotropic" else 0.0
            root = np.sqrt(total / len(root)) * np.eye(len(root))
        return root.astype(np.float32)


def guide(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Whose statistics count: of each class the fewest clients that hold this share of it. bool [clients, classes]."""
    order = np.argsort(-counts, axis=0, kind="stable")
    held = np.take_along_axis(counts, order, 0)
    before = np.cumsum(held, 0) - held
    chosen = np.zeros(counts.shape, bool)
    np.put_along_axis(chosen, order, (before < threshold * counts.sum(0)) & (held > 0), 0)
    return chosen
