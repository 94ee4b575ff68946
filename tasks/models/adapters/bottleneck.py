"""A narrow network after each block's own."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.models.adapters.adapter import Adapter, with_head
from tasks.models.adapters.blocks import blocks


class Narrow(nn.Module):
    """h + U GELU(D h). U is 0 at the start; D is not, or neither would ever move."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        with torch.no_grad():
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(nn.functional.gelu(self.down(h)))


class Bottleneck(Adapter):
    """After the two-layer network of each transformer block, inside its residual branch: h <- h + U GELU(D h).

    At the start U = 0, so the network is what it was. The head trains too.

    Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, figure 2; one pair for all
    blocks as in FedPEFT's experiments.
    """

    name: Literal["bottleneck"] = "bottleneck"
    reduction: int = Field(8, ge=1, description="width of the network over the adapter's (rho)")
    shared: bool = Field(True, description="one adapter for all blocks, or one each")

    def fit(self, module: nn.Module) -> list[str]:
        found = blocks(module, self.name)
        width = found[0].narrow.out_features
        one = Narrow(width, max(width // self.reduction, 1))
        added = []
        for block in found:
            adapter = one if self.shared else Narrow(width, max(width // self.reduction, 1))
            block.narrow = nn.Sequential(block.narrow, adapter)
            added.append(adapter)
        own = {id(value) for adapter in added for value in adapter.parameters()}
        return with_head(module, [name for name, value in module.named_parameters() if id(value) in own])
