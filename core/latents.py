"""Latents: the small picture of numbers that Stable Diffusion paints in, and the ways in and out of it.

Shapes: pictures (B, 3, H, W) in [-1, 1]; latents (B, 4, h, w) of about unit variance, h = H / 8.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.models import StableDiffusion


def generator(seed: int) -> torch.Generator:
    """The one source of randomness of a picture: on the CPU whatever the device, so a seed means the same noise everywhere."""
    return torch.Generator("cpu").manual_seed(seed)


def noise(sd: StableDiffusion, height: int, width: int, source: torch.Generator) -> Tensor:
    """Standard normal latents (1, 4, H / 8, W / 8) on the model's device."""
    f = sd.factor
    x = torch.randn(
        (1, sd.vae.config.latent_channels, height // f, width // f), generator=source
    )  # float32: halves draw otherwise
    return x.to(sd.device, sd.dtype)


@torch.no_grad()
def decode(sd: StableDiffusion, latents: Tensor) -> Tensor:
    """Latents -> pictures (B, 3, H, W) in [-1, 1], by the VAE's decoder.

    Raises ValueError if the result has numbers that are not finite, instead of handing out a black picture.
    """
    pictures = sd.vae.decode(latents.to(sd.vae.dtype) / sd.vae.config.scaling_factor).sample
    if not pictures.isfinite().all():
        where = "latents" if not latents.isfinite().all() else "decoder's output"
        raise ValueError(
            f"The {where} hold NaN or infinite numbers, so there is no picture; try a lower guidance or another scheduler."
        )
    return pictures.clamp(-1, 1)


@torch.no_grad()
def encode(sd: StableDiffusion, pictures: Tensor, source: torch.Generator | None = None) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> latents: the posterior's mean, or a sample of it if a generator is given."""
    posterior = sd.vae.encode(pictures.to(sd.device, sd.vae.dtype)).latent_dist
    z = posterior.mode() if source is None else posterior.sample(source)
    return (z * sd.vae.config.scaling_factor).to(sd.dtype)


def preview(sd: StableDiffusion, latents: Tensor) -> Tensor:
    """Latents -> small pictures (B, 3, h, w) in [-1, 1] by one linear map: no VAE, microseconds, right in colour and place."""
    rgb = torch.einsum("bchw,cr->brhw", latents.float(), sd.preview[:4]) + sd.preview[4][None, :, None, None]
    return rgb.clamp(-1, 1)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation, share 0 = a, 1 = b: between two draws of noise it stays as long as noise is, unlike a straight line."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-4:  # as good as parallel
        return (1 - share) * a + share * b
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


# --- pictures and their loss ------------------------------------------------------------------------------------------------------


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB picture -> (1, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two pictures in [-1, 1], in decibels: 10 log10(peak^2 / mean squared error); inf if they are equal."""
    error = float((a.double() - b.double()).square().mean())
    return float("inf") if error == 0 else 10 * float(np.log10(2**2 / error))


# --- edits ------------------------------------------------------------------------------------------------------------------------


def blurred(z: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` latents, each channel for itself; the edge is repeated outwards. 0 leaves z as it is."""
    if sigma == 0:
        return z
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=z.device, dtype=torch.float32).square() / (2 * sigma**2))
    weights /= weights.sum()
    channels = z.shape[1]
    wide = torch.nn.functional.pad(z.float(), (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(wide, weights.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
    return torch.nn.functional.conv2d(across, weights.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels).to(z)


# What can be done to latents before they are decoded: (z, amount, source of noise) -> z. The ranges of amount are the page's.
EDITS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": lambda z, amount, source: z + amount * torch.randn(z.shape, generator=source).to(z),
    "blur": lambda z, amount, _: blurred(z, amount),
    "zero": lambda z, amount, _: torch.zeros_like(z),
    "shift": lambda z, amount, _: z + amount,
}


def edited(
    z: Tensor, edit: str, amount: float, *, channel: int | None = None, mask: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Latents (1, 4, h, w) with one edit of EDITS done to one channel (None: all four), where the mask (h, w) is true (None: everywhere).

    Raises ValueError for an edit that is not in EDITS, a channel that is not there or a mask of another size.
    """
    if edit not in EDITS:
        raise ValueError(f"There is no edit {str(edit)[:40]!r}; choose one of {', '.join(EDITS)}.")
    if channel is not None and channel not in range(z.shape[1]):
        raise ValueError(f"There is no channel {channel + 1}; latents have {z.shape[1]}.")
    here = torch.ones(z.shape[1:], dtype=torch.bool)
    if mask is not None:
        if mask.shape != z.shape[2:]:
            raise ValueError("The painted patch has another size than the latents; paint it anew.")
        here &= mask
    if channel is not None:
        here &= (torch.arange(z.shape[1]) == channel)[:, None, None]
    return torch.where(here.to(z.device), EDITS[edit](z, amount, generator(seed)), z)


def shifted(sd: StableDiffusion, z: Tensor, by: float) -> Iterator[Tensor]:
    """What each channel does: z decoded as it is, then with each channel alone raised by `by`. Pictures (1, 3, H, W), one at a time."""
    yield decode(sd, z)
    for channel in range(z.shape[1]):
        yield decode(sd, edited(z, "shift", by, channel=channel))
