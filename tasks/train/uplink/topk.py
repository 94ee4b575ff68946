"""The largest entries, each with its index."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.train.uplink.sparse import Sparse, narrow, scatter, widen
from tasks.tree import Tree


class TopK(Sparse):
    """Sends the k entries of largest magnitude with their indices; what is left out waits for the next upload.

    C(u)_i = u_i if |u_i| is among the k largest, else 0;   ||u - C(u)||^2 <= (1 - k/d) ||u||^2

    With density 1 it is the identity. An index takes 1 byte in a tensor of up to 256 entries, 2 up to 65 536, else 4.

    Source: Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1 and algorithm 1.
    """

    name: Literal["topk"] = "topk"
    scope: Literal["tensor", "upload"] = Field(
        "tensor", description="what the entries are ranked within: each tensor, or the upload as a whole"
    )

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        thinned, whole = self.split(values)
        flat = self._ranked(thinned)
        # In ascending order a set of entries has one message, whichever way a device's sort breaks ties.
        index = tree.map(lambda v: v.abs().topk(self.kept(v.numel())).indices.sort().values, flat)
        carried = whole | tree.map(lambda v, i: v.gather(0, i), flat, index)
        return carried, tree.map(lambda i, v: narrow(i, v.numel()), index, flat)

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        thinned, whole = self.split(like)
        flat = {name: scatter(carried[name], widen(side[name]), v) for name, v in self._ranked(thinned).items()}
        if self.scope == "upload" and flat:
            found = tree.like(flat["upload"], thinned)
        else:
            found = tree.map(lambda v, shape: v.reshape(shape.shape), flat, thinned)
        return {name: carried[name] if name in whole else found[name] for name in like}

    def _ranked(self, values: Tree) -> Tree:
        """The vectors within which entries are ranked."""
        if self.scope == "upload" and values:
            return {"upload": tree.vector(values)}
        return tree.map(lambda v: v.reshape(-1), values)
