"""Whether a picture fits: how much memory super-resolution takes, by a formula that is known before anything runs, and what is free."""

from pathlib import Path

import psutil  # accelerate brings it
import torch

from core.conditioning import Upscale
from core.models import StableDiffusion
from core.sampling import Request, size_of
from core.schedulers import SCHEDULERS
from core.trace import MEGABYTES, TENSORS

CGROUP = Path("/sys/fs/cgroup")


def needed(sd: StableDiffusion, request: Request) -> int:
    """Bytes that a run takes at its peak, beside the model's weights: max(decoder, attention) + kept.

    decoder    4 maps of C channels at the picture's full size, C H W x 4 bytes each: what the VAE's last levels read, normalise, convolve,
               and a copy in the layout of the convolution. C = block_out_channels[1], float32. The UNet takes less: it works in latents.
    attention  (h w)^2 x 4 bytes, if the decoder's middle looks from every latent at every other, and the device writes that table down:
               it grows with the fourth power of a side, 15 GB at 248 px, 275 GB at 512 px. A CPU never writes it (torch's kernel goes
               through it in blocks: 16 MB were measured where the table has 256); of other devices the worst is assumed.
    kept       where the device's memory is the machine's: the Trace, 7 latents a turn at most, and MEGABYTES of attention maps.

    Measured on a CPU, the embedded upscaler's decoder took 244 MB at 512 px and 1,024 MB at 1,024 px; this says 268 and 1,074.
    """
    height, width = size_of(sd, request)
    latents = height * width // sd.factor**2
    config, on_cpu = sd.vae.config, sd.device.type == "cpu"
    decoder = 4 * config.block_out_channels[1] * height * width * 4
    attention = latents**2 * 4 if config.mid_block_add_attention and not on_cpu else 0
    turns = request.steps * SCHEDULERS[request.scheduler][0].order  # a second-order scheduler makes two a step
    kept = len(TENSORS) * config.latent_channels * latents * 4 * turns + MEGABYTES * 2**20 if on_cpu else 0
    return max(decoder, attention) + kept


def free(device: torch.device) -> int:
    """Bytes that the device still has for us."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    there = psutil.virtual_memory().available
    try:  # a container may have less than its machine; what it caches of files can be had back
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
        return min(there, int((CGROUP / "memory.max").read_text()) - used)
    except (OSError, ValueError, KeyError):  # no container, or one without a limit
        return there


def check(sd: StableDiffusion, request: Request, instead: str = "draw them in tiles, or give a smaller picture") -> None:
    """Raises ValueError, which says what to do instead, if a super-resolution would not fit into the memory that is free now."""
    if not isinstance(request.source, Upscale):
        return
    need, there = needed(sd, request), free(sd.device)
    if need > there:
        height, width = size_of(sd, request)
        raise ValueError(
            f"{width} x {height} pixels take about {need / 1e9:.1f} GB of memory at once, and {there / 1e9:.1f} GB are free; "
            f"{instead}."
        )
