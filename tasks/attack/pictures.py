"""Originals above their reconstructions, as a picture that can be seen without a magnifying glass."""

from pathlib import Path

import numpy as np
from torch import Tensor

SIDE, GAP, MOST, PAPER = 96, 6, 16, 255
"""Least side of an image and gap between images, in pixels; most pairs in a picture; grey of the background."""


def save_pairs(path: Path, original: Tensor, reconstruction: Tensor, range_: tuple[float, float] | None) -> None:
    """Writes a PNG with the first pairs of ``original`` and ``reconstruction`` ``[pairs, channels, height, width]``.

    Pixels are enlarged, not smoothed. Three channels are shown in colour, others by their mean. ``range_`` maps to
    black and white; without one, the range of the originals does.
    """
    from PIL import Image

    low, high = range_ or (float(original.min()), float(original.max()))
    rows = [_tiles(part[:MOST], low, high) for part in (original, reconstruction)]
    height, width = rows[0].shape[1:3]
    columns = len(rows[0])
    canvas = np.full((2 * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            top, left = GAP + r * (height + GAP), GAP + c * (width + GAP)
            canvas[top : top + height, left : left + width] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path, optimize=True)


def _tiles(x: Tensor, low: float, high: float) -> np.ndarray:
    """uint8 ``[images, height, width, 3]``, enlarged by a whole factor."""
    scaled = ((x.double() - low) / max(high - low, 1e-12)).nan_to_num(nan=0.0).clamp(0, 1)
    colours = scaled if x.shape[1] == 3 else scaled.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    factor = max(1, -(-SIDE // min(x.shape[-2:])))
    pixels = (colours * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels.repeat(factor, 1).repeat(factor, 2)
