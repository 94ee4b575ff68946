"""The transformer block that the networks here are made of."""

import math

import torch
from torch import Tensor, nn


def attention(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """softmax(q k' / sqrt(d)) v over the positions, of which each sees those before it and itself alone if ``causal``.

    All are ``[..., positions, d]``. Written out, as the kernels of ``scaled_dot_product_attention`` for a CPU can be
    differentiated once alone, which no attack on gradients can do with, and run a stack's clients one after another.
    """
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~past, -math.inf)
    return scores.softmax(-1) @ values


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then a two-layer network, each added to its input.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; pre-norm after Xiong et al., "On Layer
    Normalization in the Transformer Architecture", ICML 2020, figure 1b.
    """

    def __init__(self, width: int, heads: int, ratio: int = 4, causal: bool = True):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [batch, positions, 3 * width] -> three of [batch, heads, positions, width / heads]
        parts = self.project(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attention(*parts, self.causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm_2(x))))
