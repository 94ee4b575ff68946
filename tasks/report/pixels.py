"""Images as the page shows them: a PNG of their own pixels, which the browser enlarges without smoothing."""

import base64
import io
import math

from torch import Tensor

PSNR_CAP = 80.0
"""dB of a reconstruction that is as good as equal, as in the attack's scores."""


def pixels(image: Tensor, range_: tuple[float, float]) -> str:
    """``[channels, height, width]`` as a URI that holds all of it; ``range_`` becomes black and white.

    Three channels are shown in colour, others by their mean.
    """
    from PIL import Image

    low, high = range_
    scaled = ((image.double() - low) / max(high - low, 1e-12)).nan_to_num(nan=0.0).clamp(0, 1)
    whole = ((scaled if len(image) == 3 else scaled.mean(0, keepdim=True)) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(whole.transpose(1, 2, 0) if len(whole) == 3 else whole[0]).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def psnr(original: Tensor, made: Tensor, span: float) -> float:
    """10 log10(span^2 / mse) in dB, at most :data:`PSNR_CAP`."""
    error = float((original.double() - made.double()).square().mean())
    floor = span**2 * 10 ** (-PSNR_CAP / 10)
    return 10 * math.log10(span**2 / max(error, floor)) if math.isfinite(error) else -math.inf
