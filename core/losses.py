"""Guidance by a loss: one number that says how far a picture is from what it should be, and which way its latents would lower it.

    bluer = Loss(losses.blue(0.9), scale=200, every=5)  # core.sampling.Loss; the settings of fast.ai's Deep Dive (2022)
    for step in denoise(sd, request, loss=bluer): print(step.i, step.loss)

A measure takes a picture (1, 3, H, W), 0 = black, 1 = white and a little beyond, and gives a number from 0, which is reached. Each is an
absolute difference on that scale, so that numbers of different measures can be compared.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.models import StableDiffusion

Measure = Callable[[Tensor], Tensor]

LUMA = (0.2126, 0.7152, 0.0722)  # how bright red, green and blue look (ITU-R BT.709)


def blue(level: float = 0.9) -> Measure:
    """The Deep Dive's blue_loss: how far the blue of each pixel is from `level`; red and green are free."""
    return lambda picture: (picture[:, 2] - level).abs().mean()


def colour(target: Sequence[float]) -> Measure:
    """How far each pixel is from one colour (red, green, blue)."""
    wanted = torch.tensor(target)[None, :, None, None]  # (1, 3, 1, 1)
    return lambda picture: (picture - wanted.to(picture)).abs().mean()


def brightness(level: float) -> Measure:
    """How far the picture as a whole is from a brightness: its lights and shadows stay as far apart as they were."""
    weights = torch.tensor(LUMA)[None, :, None, None]
    return lambda picture: ((picture * weights.to(picture)).sum(1).mean() - level).abs()


def symmetry() -> Measure:
    """How far the picture is from its mirror image, left for right."""
    return lambda picture: (picture - picture.flip(-1)).abs().mean()


def likeness(other: Tensor) -> Measure:
    """How far each pixel is from another picture's, (1, 3, H, W) of the same size, 0 .. 1."""
    return lambda picture: (picture - other.to(picture)).abs().mean()


def picture_of(sd: StableDiffusion, x0: Tensor) -> Tensor:
    """Decodes latents to (1, 3, H, W), 0 .. 1 and a little beyond: clipped values would have no slope."""
    return sd.vae.decode(x0.to(sd.device, sd.vae.dtype) / sd.vae.config.scaling_factor).sample / 2 + 0.5


@torch.no_grad()
def value(sd: StableDiffusion, measure: Measure, x0: Tensor) -> float:
    """What the measure says of the picture that x0 decodes to."""
    return float(measure(picture_of(sd, x0)))


def slope(sd: StableDiffusion, measure: Measure, x0: Tensor) -> tuple[float, Tensor]:
    """The measure's value, and how it changes with each latent, (1, 4, h, w): its gradient through the decoder."""
    with torch.enable_grad():
        z = x0.detach().to(sd.vae.dtype).requires_grad_()
        number = measure(picture_of(sd, z))
        (gradient,) = torch.autograd.grad(number, z)
    return float(number.detach()), gradient.to(x0.dtype)
