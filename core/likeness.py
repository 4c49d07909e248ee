"""Is it learning the subject, memorising the photos, or forgetting the class? Four measures of a training's previews.

likeness   how much like the subject: mean cosine of embeddings, each preview with each photo (DreamBooth, Ruiz et al. 2023, section 4.1,
           which calls it CLIP-I or DINO after the network that embeds)
nearest    how near a preview is to the photo that it resembles most, in pixels: a copy is at 0
spread     the same distance from each photo to the nearest other one: what "near" means among the photos themselves
drift      how far the pictures of the bare class have moved from what the base model drew for the same seeds
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from core import catalog
from core.judge import load_judge
from core.models import StableDiffusion

Embedder = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) in [-1, 1] -> (B, D) of length 1
SIDE = 64  # pixels a side at which pictures are held against each other: fine detail of a memorised photo is lost first
CLIP = "openai/clip-vit-large-patch14"  # whose text half Stable Diffusion 1.x reads
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures


def embedder_for(sd: StableDiffusion) -> tuple[Embedder, str] | None:
    """What embeds this model's pictures, and its name: the judge for our own family, CLIP's image encoder for others where it is on this
    machine (nothing is fetched), None where it is not."""
    if catalog.is_embedded(sd.source):
        judge = load_judge(device=sd.device)
        return torch.no_grad()(lambda pictures: F.normalize(judge(pictures.to(sd.device)).features, dim=1)), "judge"
    try:
        folder = Path(snapshot_download(CLIP, allow_patterns=["*.json", "*.safetensors"], local_files_only=True))
        clip: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (LocalEntryNotFoundError, OSError):
        return None
    clip.requires_grad_(False).eval().to(sd.device)

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures.to(sd.device), (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        return F.normalize(clip((x / 2 + 0.5 - mean) / std).image_embeds, dim=1)

    return embed, "CLIP ViT-L/14"


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """(N, D) and (M, D) of length 1 -> (N,) in [-1, 1]: of each of a, its mean cosine with all of b."""
    return (a @ b.T).mean(1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3, H, W) and (M, 3, H, W) in [-1, 1] -> (N, M): root of the mean squared difference at 64 px, in grey levels of 255."""
    one, other = (F.interpolate(x.float(), (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1) * 127.5 for x in (a, b))
    return torch.cdist(one, other) / one.shape[1] ** 0.5


def nearest(previews: Tensor, photos: Tensor) -> list[tuple[int, float]]:
    """(N, 3, H, W) and (M, 3, H, W) -> of each preview, which photo is nearest, and how far it is. Photos count flipped as well: a
    mirrored copy is a copy; the number is the photo's."""
    both = torch.minimum(distances(previews, photos), distances(previews, photos.flip(-1)))
    far, which = both.min(1)
    return list(zip(which.tolist(), far.tolist(), strict=True))


def spread(photos: Tensor) -> list[float]:
    """(M, 3, H, W) -> of each photo, how far the nearest other one is; M at least 2."""
    both = torch.minimum(distances(photos, photos), distances(photos, photos.flip(-1)))
    return (both + torch.eye(len(photos), device=both.device) * 1e9).min(1).values.tolist()


def drift(now: Tensor, before: Tensor) -> float:
    """(N, D) and (N, D) of length 1, same prompts and seeds -> 1 - mean cosine, in [0, 2]: 0 = unchanged."""
    return 1 - (now * before).sum(1).mean().item()
