"""The transformer block that the networks here are made of."""

from torch import Tensor, nn


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
        attended = nn.functional.scaled_dot_product_attention(*parts, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm_2(x))))
