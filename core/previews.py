"""What a model in training draws: always the same prompts from the same seeds, and what is measured of them (core/likeness.py).

Watch.look(step, model) -> Preview. The class pictures of prior preservation are drawn here too, by the base model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import attention, images, latents, likeness, models, text
from core.models import StableDiffusion
from core.recipe import MAX_PROMPTS, Recipe
from core.sampling import Request, denoise_many
from core.trace import to_uint8

CLASS_SEED = 2**31  # of the first class picture: none that a preview draws
GUIDANCE = 4.0  # of class pictures and previews: at 7.5, drawn, learned and drawn again, the class came back garish


@dataclass(frozen=True)
class Picture:
    """One picture of a preview."""

    prompt: str
    seed: int
    kind: str  # "subject", or "class": the class prompt alone
    image: Tensor  # (3, H, W) in [-1, 1], on the CPU
    likeness: float | None  # to the photos, mean cosine of embeddings; None without an embedder
    nearest: int  # the photo that it resembles most
    distance: float  # and how far that is, in grey levels of 255


@dataclass(frozen=True)
class Preview:
    """What the model draws now. Means are over the pictures of one kind."""

    step: int  # 0 = the base model
    pictures: tuple[Picture, ...]
    likeness: float | None  # of the subject's pictures to the photos
    distance: float  # of the subject's pictures to their nearest photos
    drift: float | None  # of the class pictures from what the base model drew: 0 = nothing forgotten
    attention: Tensor | None  # (h, w): where the first subject picture looked for the rare word; None without one


@dataclass
class Watch:
    """Draws the same prompts from the same seeds at every look, and measures: learning, memorising, forgetting (core/likeness.py)."""

    sd: StableDiffusion  # the base model
    recipe: Recipe
    photos: Sequence[Image.Image]
    device: torch.device | None = None  # where pictures are drawn; None: where sd is
    embedder: Callable[[Tensor], Tensor] | None = field(init=False)
    measure: str | None = field(init=False)  # what embeds

    def __post_init__(self) -> None:
        self.embedder, self.measure = likeness.embedder_for(self.sd) or (None, None)

    @cached_property
    def pixels(self) -> Tensor:
        return pixels_of(self.sd, self.photos)  # (N, 3, H, W)

    @cached_property
    def embedded(self) -> Tensor | None:
        return self.embedder(self.pixels) if self.embedder else None  # (N, D)

    @cached_property
    def spread(self) -> list[float]:
        """How far each photo is from the nearest other one."""
        return likeness.spread(self.pixels)

    @cached_property
    def alike(self) -> float | None:
        """How alike the photos are among themselves: as good as a preview can be expected to be."""
        if self.embedded is None:
            return None
        n = len(self.embedded)
        return float(((self.embedded @ self.embedded.T).sum() - n) / (n * (n - 1)))

    @cached_property
    def before(self) -> Tensor | None:
        """The class pictures of the base model, embedded."""
        base = models.on(self.sd, self.device or self.sd.device)
        return self.embedder(drawn(base, self.asked[len(self.recipe.shown) :])[0]) if self.embedder else None

    @property
    def asked(self) -> list[Request]:
        """The subject's prompts, and the class prompt from the seeds of the first two."""
        recipe, seeds = self.recipe, [(self.recipe.seed + k) % 2**32 for k in range(MAX_PROMPTS)]
        own = [
            Request(prompt, seed=seed, guidance=GUIDANCE, model=self.sd.name)
            for prompt, seed in zip(recipe.shown, seeds, strict=False)
        ]
        return own + [Request(recipe.class_prompt, seed=seed, guidance=GUIDANCE, model=self.sd.name) for seed in seeds[:2]]

    def look(self, step: int, now: StableDiffusion) -> Preview:
        """What the model of this step draws."""
        own, count = len(self.recipe.shown), len(self.asked)
        pictures, maps = drawn(now, self.asked, attention.Record())
        alike: list[float | None] = [None] * count
        mean = drift = None
        if self.embedder and self.embedded is not None:
            embedded = self.embedder(pictures)
            if step == 0:
                self.__dict__["before"] = embedded[own:]  # so that they are not drawn again
            near = likeness.likeness(embedded, self.embedded).tolist()
            alike, mean = near, float(np.mean(near[:own]))
            if self.before is not None:
                drift = likeness.drift(embedded[own:], self.before)
        found = likeness.nearest(pictures, self.pixels)
        kinds = ["subject"] * own + ["class"] * (count - own)
        made = [
            Picture(r.prompt, r.seed, kind, image, like, which, far)
            for r, kind, image, like, (which, far) in zip(self.asked, kinds, pictures, alike, found, strict=True)
        ]
        distance = float(np.mean([far for _, far in found[:own]]))
        return Preview(step, tuple(made), mean, distance, drift, self.looked(now, maps))

    def looked(self, now: StableDiffusion, maps: list) -> Tensor | None:
        """Where the first picture looked for the rare word, (h, w)."""
        places = places_of(now, self.recipe.identifier, self.recipe.shown[0])
        size = now.size // now.factor
        return attention.heat_map(maps, places, size=(size, size)) if places else None


def places_of(sd: StableDiffusion, name: str, prompt: str) -> tuple[int, ...]:
    """Which of a prompt's 77 positions say a name (recipe.name_in)."""
    wanted = {word.strip().lower() for word, _ in text.tokenize(sd, name).words}
    return tuple(at for word, places in text.tokenize(sd, prompt).words if word.strip().lower() in wanted for at in places)


# --- pictures in and out --------------------------------------------------------------------------------------------------------------


def pixels_of(sd: StableDiffusion, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures at the model's own size, the middle of each, (N, 3, H, W) in [-1, 1]."""
    return torch.cat([latents.pixels_of(images.cover(picture, sd.size, sd.size)) for picture in pictures])


def class_pictures(sd: StableDiffusion, recipe: Recipe, first: int, count: int) -> Iterator[Image.Image]:
    """What the base model draws of the class, for prior preservation: the pictures number first .. count - 1."""
    for start in range(first, count, 8):
        asked = [
            Request(recipe.class_prompt, seed=CLASS_SEED + k, guidance=GUIDANCE, model=sd.name)
            for k in range(start, min(start + 8, count))
        ]
        for picture in drawn(sd, asked)[0]:
            yield image_of(picture)


def class_name(sd: StableDiffusion, recipe: Recipe) -> str:
    """What the class pictures depend on, in sixteen signs."""
    about = Request(recipe.class_prompt, seed=CLASS_SEED, guidance=GUIDANCE, model=sd.source).facts()
    return hashlib.sha256(json.dumps([sd.revision, about], sort_keys=True).encode()).hexdigest()[:16]


def image_of(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB."""
    return Image.fromarray(to_uint8(picture).movedim(0, -1).cpu().numpy())


def drawn(sd: StableDiffusion, asked: list[Request], record: attention.Record | None = None) -> tuple[Tensor, list]:
    """Pictures (N, 3, H, W) in [-1, 1] on the CPU, and the attention that was recorded of the first one's steps."""
    maps, last = [], []
    for last in denoise_many(sd, asked, record):
        maps.append({layer: p[-1:].cpu() for layer, p in last[0].attention.items()})
    return torch.cat([latents.decode(sd, step.x_next).float().cpu() for step in last]), maps
