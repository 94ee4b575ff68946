"""CI-Net: an untrained generator in place of pixels."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad

from tasks import tree
from tasks.attack import label_leak
from tasks.attack.attacks.attack import Family, Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.attack.matching import signed_adam, turn

SMALLEST = 4
"""Side of the generator's first image, in pixels; every stage doubles it."""


class CINet(Inversion):
    """Searches the weights of a random generator for which its images' update points the way of the one received.

    min over W of 1 - <u(G_W(z)), u> / (||u(G_W(z))|| ||u||),  z fixed noise, one a sample

    The generator is never trained on anything: that it is convolutional and has more weights than the batch has pixels
    is its whole prior. Its channels double until it has. The last iterate is the guess, never the best one.

    Source: Zhang et al., "Generative Gradient Inversion via Over-Parameterized Networks in Federated Learning", ICCV
    2023, with instance norm in place of batch and spectral norm, which a batch of one sample leaves undefined.
    """

    name: Literal["ci_net"] = "ci_net"
    family: ClassVar[Family] = "generation"
    assumes: ClassVar[str] = "the number of samples and of local steps"
    lr: float = Field(1e-3, gt=0, description="first step of Adam, on the sign of the gradient")
    channels: int = Field(32, ge=1, description="least channels of the generator")
    noise: int = Field(128, ge=1, description="length of z")
    labels: Literal["inferred", "given"] = Field("inferred", description="read off the last layer, or assumed known")

    @property
    def told_labels(self) -> bool:
        return self.labels == "given"

    def obstacle(self, case: Case) -> str | None:
        if case.data.kind != "image":
            return "its samples are no images"
        found = label_leak.labels(case)
        return found if isinstance(found, str) else None

    def guess(self, case: Case) -> Reconstruction:
        y, order, samples = label_leak.labels(case), case.order, case.context.samples
        generator = self._generator(case)
        weights = {name: value.detach() for name, value in generator.named_parameters()}
        z = torch.from_numpy(case.generator(self.name, "z").standard_normal((samples, self.noise, 1, 1))).float()

        def images(vector: Tensor) -> Tensor:
            return functional_call(generator, tree.like(vector, weights), (z,))

        iterations = max(1, case.budget // len(order))
        slope = grad(lambda vector: turn(case, images(vector), y, order))
        found = signed_adam(slope, tree.vector(weights), self.lr, iterations)
        with torch.no_grad():
            x = images(found)
            return Reconstruction(case, x, y, iterations * len(order), float(turn(case, x, y, order)))

    def _generator(self, case: Case) -> nn.Module:
        """The first of the generators of twice as many channels each that has four weights for every pixel."""
        pixels, channels = case.context.samples * torch.Size(case.data.shape[1:]).numel(), self.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(case.generator(self.name, "weights").integers(1 << 62)))
            built = Generator(case.data.shape, case.data.range, channels, self.noise)
            while sum(value.numel() for value in built.parameters()) <= 4 * pixels:
                channels *= 2
                built = Generator(case.data.shape, case.data.range, channels, self.noise)
        return built


class Generator(nn.Module):
    """From noise ``[samples, noise, 1, 1]`` to images of ``shape``, within ``range_`` where there is one."""

    def __init__(self, shape: tuple[int, ...], range_: tuple[float, float] | None, channels: int, noise: int):
        super().__init__()
        self.side, self.range = shape[1:], range_
        stages: list[nn.Module] = [nn.ConvTranspose2d(noise, channels, SMALLEST), *_smooth(channels), *_block(channels)]
        side = SMALLEST
        while side < max(self.side):
            stages += [nn.Upsample(scale_factor=2), *_block(channels)]
            side *= 2
        self.stages = nn.Sequential(*stages, nn.Conv2d(channels, shape[0], 1))

    def forward(self, z: Tensor) -> Tensor:
        out = self.stages(z)
        trim = [(have - want) // 2 for have, want in zip(out.shape[2:], self.side, strict=True)]
        out = out[..., trim[0] : trim[0] + self.side[0], trim[1] : trim[1] + self.side[1]]
        if self.range is None:
            return out
        low, high = self.range
        return low + (high - low) * 0.5 * (torch.tanh(out) + 1)


def _block(channels: int) -> list[nn.Module]:
    pairs = ([nn.Conv2d(channels, channels, 3, padding=1), *_smooth(channels)] for _ in range(2))
    return [layer for pair in pairs for layer in pair]


def _smooth(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels, affine=True), nn.LeakyReLU(0.1)]
