"""Structural similarity by complex wavelets, which forgives small shifts."""

import math

import torch
from torch import Tensor

ORIENTATIONS = 6
LEAST = 4
"""Side of the smallest image, in pixels, that a scale is taken of."""


def cw_ssim(a: Tensor, b: Tensor) -> Tensor:
    """The similarity of each pair of images ``[pairs, channels, height, width]``, from 0 to 1; ``[pairs]``.

    2 |sum c_a conj(c_b)| / sum (|c_a|^2 + |c_b|^2), with c the coefficients of one channel, scale and orientation over
    the whole image, and the mean over these. Coefficients come from oriented analytic filters one octave wide, cut out
    of the spectrum: six orientations, and as many octaves as leave four pixels of the smaller side.

    It is not the windowed SSIM, and the wavelets are not the dual-tree ones of other benches: compare no numbers.

    Source: Sampat et al., "Complex Wavelet Structural Similarity: A New Image Similarity Index", IEEE TIP 2009, eq. (8)
    with one window and K = 0.
    """
    if not len(a):
        return torch.zeros(0)
    filters = _filters(*a.shape[-2:])
    c_a, c_b = (torch.fft.ifft2(torch.fft.fft2(x.double())[:, :, None] * filters) for x in (a, b))
    shared = (c_a * c_b.conj()).sum((-2, -1)).abs()
    energy = (c_a.abs().square() + c_b.abs().square()).sum((-2, -1))
    # Where neither image has anything at a scale and orientation, they do not differ in it.
    similar = torch.where(energy > 1e-12 * energy.amax(2, keepdim=True).clamp(min=1e-300), 2 * shared / energy, 1.0)
    return similar.flatten(1).mean(1)


def _filters(height: int, width: int) -> Tensor:
    """``[filters, height, width]`` over the frequencies of an FFT: cosine bumps, in octaves and in angle."""
    v, u = torch.meshgrid(torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double(), indexing="ij")
    octave, angle = torch.log2((u**2 + v**2).sqrt().clamp(min=1e-9)), torch.atan2(v, u)
    scales = max(1, int(math.log2(min(height, width) / LEAST)) + 1)
    found = []
    for scale in range(scales):
        ring = _bump(octave - math.log2(0.25 / 2**scale))
        for k in range(ORIENTATIONS):
            away = torch.remainder(angle - k * math.pi / ORIENTATIONS + math.pi, 2 * math.pi) - math.pi
            found.append(ring * _bump(away / (math.pi / ORIENTATIONS)))
    return torch.stack(found)


def _bump(x: Tensor) -> Tensor:
    """A cosine that is 1 at 0 and falls to 0 at -1 and 1."""
    return torch.where(x.abs() < 1, torch.cos(0.5 * math.pi * x), 0.0)
