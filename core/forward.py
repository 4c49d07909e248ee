"""The way into noise, and one look back: a picture's latents noised to any time, and what the UNet makes of them in a single call.

    x_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps        (Ho et al. 2020, eq. 4)

This is what the UNet was trained on. Here, unlike in a run, the noise that it should find is known.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import latents, schedulers, text
from core.models import StableDiffusion
from core.sampling import Request, predict


@dataclass(frozen=True)
class Guess:
    """One prediction beside the truth. All tensors (1, 4, h, w)."""

    t: float  # the time that the UNet was told
    alpha_bar: float  # the picture's share of the variance
    z: Tensor  # the picture's latents
    true: Tensor  # the noise that was put in
    x: Tensor  # the noisy latents
    eps: Tensor  # the noise that the UNet finds, guided
    x0: Tensor  # the clean latents that this points to


def noised(z: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Latents with as much noise as leaves the picture alpha_bar of the variance, 0 .. 1."""
    return alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * noise


@torch.no_grad()
def guess(sd: StableDiffusion, request: Request, z: Tensor, t: float, alpha_bar: float) -> Guess:
    """One UNet prediction: z (1, 4, h, w) noised by the request's seed and looked at with its words and guidance; its steps, size and
    guidance interval play no part. Raises ValueError if the prediction is not finite, or the model sees more than latents."""
    if sd.unet.config.in_channels != z.shape[1]:
        raise ValueError(
            f"The model {sd.name} sees more than latents, and there is nothing else here; look at a run of a plain model."
        )
    noise = torch.randn(z.shape, generator=latents.generator(request.seed)).to(z)
    x = noised(z, noise, alpha_bar)
    words = {w: text.encode(sd, *w) for w in (request.words, request.no_words)}
    time = torch.tensor(t, device=sd.device, dtype=torch.float32)
    (said,) = predict(sd, [replace(request, interval=None, source=None)], 0, time, x.to(sd.dtype), [None], words, {}, None)
    eps = schedulers.eps_of(said.guided, x, alpha_bar, sd.prediction_type)
    return Guess(t, alpha_bar, z, noise, x, eps, schedulers.x0_of(x, eps, alpha_bar))
