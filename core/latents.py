"""Latents: the small picture of numbers that Stable Diffusion paints in, and the ways in and out of it.

Shapes: pictures (B, 3, H, W) in [-1, 1]; latents (B, 4, h, w) of about unit variance, h = H / 8.
"""

import torch
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
