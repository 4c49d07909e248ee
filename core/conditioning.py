"""What a run starts from, and what the UNet sees beside latents and words: the whole difference between text-to-image, img2img,
inpainting, depth-to-image and super-resolution. The loop is the same (core/sampling.py).

                    start latents x                            extra channels of the UNet's input
text-to-image       noise                                      none
img2img             the picture's latents, noised              none
inpainting          the same; noise at strength 1              1 mask + 4 latents of the picture without the masked part
  (plain UNet)      the same; after each step the part that    none
                    is not masked is put back, noised
depth-to-image      the picture's latents, noised              1 depth map
super-resolution    noise                                      3 of the small picture, noised by noise_level

Sources: Meng et al. 2021 (SDEdit: img2img), Rombach et al. 2022, sections 4.4 and 4.5 (super-resolution, inpainting); the order in which
random numbers are drawn is that of diffusers' pipelines, so the same seed gives the same picture.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import depth, latents, schedulers
from core.catalog import ROLES
from core.models import StableDiffusion

FILLS = ("original", "noise", "blur")  # what the hole of an inpainting starts from
MAX_NOISE_LEVEL = 350  # of the real x4 upscaler's training


def shown(value: object) -> str:
    """A wrong value, as it stands in the sentence about it."""
    return "empty" if value is None or value == "" else str(value)[:40]


@dataclass(frozen=True)
class Pixels:
    """Numbers of a picture that a request carries: they cannot change, and are equal if every one of them is."""

    data: bytes
    shape: tuple[int, ...]  # (H, W, 3) or (H, W)
    kind: str = "uint8"  # or "float32"

    @classmethod
    def of(cls, picture: Image.Image | np.ndarray | Tensor) -> "Pixels":
        """An RGB or grey picture (8 bits), or an array (H, W) or (H, W, 3) of uint8 or float32."""
        array = np.ascontiguousarray(picture if isinstance(picture, np.ndarray) else np.array(picture))
        kind = "uint8" if array.dtype == np.uint8 else "float32"
        return cls(array.astype(kind).tobytes(), array.shape, kind)

    @cached_property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.kind).reshape(self.shape)

    @property
    def height(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[1]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.array)

    @property
    def name(self) -> str:
        """By which two pictures can be told apart: the sha256 of their numbers, cut."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    def tensor(self) -> Tensor:
        """(1, 3, H, W) in [-1, 1] of a picture of bytes, in diffusers' own arithmetic; (1, 1, H, W) of anything else, as it is."""
        if len(self.shape) == 3:
            # Laid out in memory as diffusers does it too: another order of the same numbers would round otherwise.
            return 2 * torch.from_numpy((self.array[None].astype(np.float32) / 255).transpose(0, 3, 1, 2)) - 1
        scale = 255 if self.kind == "uint8" else 1
        return torch.from_numpy(self.array.astype(np.float32) / scale)[None, None]


@dataclass(frozen=True)
class Source:
    """A picture that a run starts from: img2img, and what all kinds share."""

    picture: Pixels  # (H, W, 3) uint8; each side a multiple of the VAE's factor, 64 .. 1024
    strength: float = 0.8  # share of the noise that the picture gets, and of the steps that run: above 0 .. 1

    KIND = "img2img"

    def __post_init__(self) -> None:
        if not isinstance(self.picture, Pixels) or len(self.picture.shape) != 3 or self.picture.shape[2] != 3:
            raise ValueError("There is no picture to start from; choose one first.")
        if self.picture.kind != "uint8":
            raise ValueError("The picture's numbers are not whole ones from 0 to 255; open it by images.open_picture first.")
        if not isinstance(self.strength, int | float) or isinstance(self.strength, bool) or not 0 < self.strength <= 1:
            raise ValueError(f"The strength is {shown(self.strength)}; it must be a number above 0, up to 1.")
        low, high = (16, 512) if self.KIND == "upscale" else (64, 1024)
        for name, side in (("width", self.picture.width), ("height", self.picture.height)):
            if not low <= side <= high or (side % 8 and self.KIND != "upscale"):
                raise ValueError(
                    f"The picture's {name} is {side} pixels; it must be a multiple of 8 from {low} to {high}: fit it."
                )

    @property
    def whole(self) -> Pixels:
        """The picture as it was before any of it was taken out or made smaller for the model."""
        return self.picture

    def facts(self) -> dict:
        """Plain values, pictures by their name: what a PNG carries and the API answers."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": self.KIND, **{n: v.name if isinstance(v, Pixels) else v for n, v in values.items()}}


@dataclass(frozen=True)
class Inpaint(Source):
    """A picture of which a part is made anew. `inpainting` makes one of a picture of any size."""

    strength: float = 1.0
    mask: Pixels | None = None  # (H, W), white (0.5 and above) = make anew
    fill: str = "original"  # one of FILLS: what the hole holds at the start, which shows below strength 1
    # Where the result goes: into a larger picture, of which `picture` is a smaller copy, or one of its part around the mask.
    canvas: Pixels | None = None  # (H', W', 3) uint8; None: the picture itself
    painted: Pixels | None = None  # (H', W') uint8, the mask at the canvas' size; None: the mask itself
    padding: int | None = None  # pixels of the canvas around the mask that the part takes in; None: the whole canvas
    blur: float = 0.0  # 0 .. 64 pixels of the canvas: how soft the mask's edge is when the result is put back

    KIND = "inpaint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mask, Pixels) or not (self.mask.tensor() >= 0.5).any():
            raise ValueError("Nothing is painted; paint the part to change first.")
        for mask, picture in ((self.mask, self.picture), (self.painted or self.mask, self.whole)):
            if mask.shape != picture.shape[:2]:
                raise ValueError(
                    f"The mask has {mask.width} x {mask.height} pixels and the picture {picture.width} x "
                    f"{picture.height}; both must be of one size: fit the mask."
                )
        if self.fill not in FILLS:
            raise ValueError(f"There is no fill {str(self.fill)[:40]!r}; choose one of {', '.join(FILLS)}.")
        check_blur(self.blur)

    @property
    def whole(self) -> Pixels:  # which the result is put into
        return self.canvas or self.picture

    @cached_property
    def hard(self) -> np.ndarray:
        """The mask at the whole picture's size, (H', W') bool."""
        mask = self.painted or self.mask
        assert mask is not None
        return mask.tensor()[0, 0].numpy() >= 0.5

    @cached_property
    def box(self) -> "Box":
        """The part of the whole picture that is drawn."""
        if self.padding is None:
            return 0, 0, self.whole.width, self.whole.height
        return crop_region(self.hard, self.picture.width, self.picture.height, self.padding)

    def put_back(self, made: np.ndarray) -> np.ndarray:
        """What was made (H, W, 3) uint8 in its place in the whole picture, raw: with all that the VAE changed around the mask."""
        return put_back(self.whole.array, made, self.box)

    def composited(self, made: np.ndarray) -> np.ndarray:
        """The same, but the whole picture to the bit outside the blurred mask, (H', W', 3) uint8."""
        return composite(self.whole.array, self.put_back(made), soft(self.hard, self.blur))


@dataclass(frozen=True)
class Depth(Source):
    """A picture whose depth is kept."""

    depth: Pixels | None = None  # (H', W') of any size and scale, larger = nearer; None: estimated from the picture

    KIND = "depth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and (not isinstance(self.depth, Pixels) or len(self.depth.shape) != 2):
            raise ValueError("The depth map is no map of one number a pixel; give a grey picture, or none.")


@dataclass(frozen=True)
class Upscale(Source):
    """A small picture, made four times as wide and high."""

    strength: float = 1.0  # super-resolution begins with noise alone
    noise_level: int = 20  # 0 .. 350, a time of the low-resolution picture's own noise schedule: more invents more

    KIND = "upscale"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength != 1:
            raise ValueError(f"The strength is {self.strength}; super-resolution always starts from noise: leave it at 1.")
        level = self.noise_level
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= MAX_NOISE_LEVEL:
            raise ValueError(f"The noise level is {shown(level)}; it must be a whole number from 0 to {MAX_NOISE_LEVEL}.")


KINDS: dict[str, type[Source]] = {kind.KIND: kind for kind in (Source, Inpaint, Depth, Upscale)}


# --- how much of a run a strength leaves ------------------------------------------------------------------------------------------


def skipped(steps: int, strength: float) -> int:
    """How many of the asked steps do not run, because the picture is never as noisy as they are: int(steps * strength) do."""
    return steps - min(int(steps * strength), steps)


def steps_for(count: int, strength: float) -> int:
    """The steps to ask for so that exactly `count` run at this strength.

    Raises ValueError if that takes more than 100.
    """
    steps = next((n for n in range(count, 101) if n - skipped(n, strength) == count), None)
    if steps is None:
        raise ValueError(
            f"To run exactly {count} steps at strength {strength:g} takes a schedule of over 100; raise the strength."
        )
    return steps


def first_turn(scheduler: Any, steps: int, strength: float) -> int:
    """The turn of the schedule that a run of this strength begins with; a second-order scheduler makes two turns a step.

    Raises ValueError if none would be left.
    """
    first = skipped(steps, strength) * scheduler.order
    if skipped(steps, strength) >= steps:  # PNDM has a turn more than steps, so its turns do not tell
        raise ValueError(
            f"At strength {strength:g} none of {steps} steps runs; raise the strength to at least "
            f"{math.ceil(1000 / steps) / 1000:g}, or ask for more steps."
        )
    return first


# --- the start of a run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where the loop begins, and what it takes along."""

    x: Tensor  # latents in the scheduler's coordinates, (1, 4, h, w)
    first: int = 0  # the turn of the schedule that comes first
    channels: Tensor | None = None  # what the UNet sees beside the latents at every step, (1, C, h, w)
    # After each step: (x_next, time of the next step, or None after the last) -> latents with the kept part put back.
    restore: Callable[[Tensor, Tensor | None], Tensor] | None = None


def start(
    sd: StableDiffusion, source: Source | None, scheduler: Any, steps: int, height: int, width: int, random: torch.Generator
) -> Start:
    """The start of one picture of height x width pixels. Draws from `random` in the order of diffusers' pipelines.

    Raises ValueError if the model was not trained for this, or no step would run.
    """
    check_model(sd, source)
    if source is None:
        return Start(latents.noise(sd, height, width, random) * scheduler.init_noise_sigma)
    if isinstance(source, Upscale):
        small = noised(sd, source, random)
        return Start(latents.noise(sd, height, width, random) * scheduler.init_noise_sigma, channels=small)

    first = first_turn(scheduler, steps, source.strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    t = scheduler.timesteps[first : first + 1]
    if isinstance(source, Inpaint):
        return start_inpaint(sd, source, scheduler, first, t, random)
    z = latents.encode(sd, source.picture.tensor(), random)  # a sample of the posterior, as the pipelines take
    x = scheduler.add_noise(z, latents.noise(sd, height, width, random), t)
    return Start(x, first, depth_channel(sd, source) if isinstance(source, Depth) else None)


def start_inpaint(sd: StableDiffusion, source: Inpaint, scheduler: Any, first: int, t: Tensor, random: torch.Generator) -> Start:
    """Inpainting by a UNet that was trained for it (9 channels), or by any (4), which is told nothing of the mask: what must stay is put
    back after each step, as noisy as the next step expects it."""
    plain = sd.unet.config.in_channels == 4
    mask = latent_mask(sd, source)
    everything = source.strength == 1
    z = None
    if plain or not everything:
        # Contiguous, as the pipeline repeats it: in another layout the UNet rounds otherwise, by 2e-5 after seven steps.
        z = latents.encode(sd, filled(source), random).contiguous()
    noise = latents.noise(sd, source.picture.height, source.picture.width, random)
    seen = torch.cat([mask, latents.encode(sd, without(source), random)], dim=1)  # (1, 5, h, w); drawn for a plain UNet too

    if everything:
        x = noise * scheduler.init_noise_sigma
    else:
        assert z is not None
        hole = latents.noise(sd, source.picture.height, source.picture.width, random) if source.fill == "noise" else z
        x = scheduler.add_noise(torch.where(mask > 0, hole, z), noise, t)

    def restore(x_next: Tensor, t_next: Tensor | None) -> Tensor:
        assert z is not None  # a plain UNet's always is
        kept = z if t_next is None else scheduler.add_noise(z, noise, t_next[None])
        return (1 - mask) * kept + mask * x_next

    return Start(x, first, None if plain else seen, restore if plain else None)


def check_model(sd: StableDiffusion, source: Source | None) -> None:
    role = ROLES.get(sd.unet.config.in_channels, "something else")
    kind = "words alone" if source is None else source.KIND
    roles = {"words alone": ("base",), "img2img": ("base",), "inpaint": ("inpaint", "base")}  # a plain UNet can, the legacy way
    if role not in roles.get(kind, (kind,)):
        made_for = "words and img2img" if role == "base" else role
        raise ValueError(f"The model {sd.name} was made for {made_for}, not for {kind}; choose another in this tab's menu.")


def latent_mask(sd: StableDiffusion, source: Inpaint) -> Tensor:
    """The mask as the UNet sees it, (1, 1, h, w)."""
    return mask_on_grid(source, sd.factor).to(sd.device, sd.dtype)


def mask_on_grid(source: Inpaint, factor: int) -> Tensor:
    """The mask with one number a latent, 1 = make anew, (1, 1, h, w). A latent takes the pixel in its left upper corner, as in diffusers'
    pipeline, so what is thinner than `factor` pixels may be lost."""
    assert source.mask is not None
    hard = (source.mask.tensor() >= 0.5).float()
    size = source.picture.height // factor, source.picture.width // factor
    return torch.nn.functional.interpolate(hard, size=size)


def without(source: Inpaint) -> Tensor:
    """The picture with its masked part grey (0), (1, 3, H, W) in [-1, 1]."""
    assert source.mask is not None
    return source.picture.tensor() * (source.mask.tensor() < 0.5)


def filled(source: Inpaint) -> Tensor:
    """The picture that an inpainting starts from, (1, 3, H, W): as it is, or its hole filled with its blurred surroundings."""
    picture = source.picture.tensor()
    if source.fill != "blur":
        return picture
    assert source.mask is not None
    known = (source.mask.tensor() < 0.5).float()
    if not known.any():  # no surroundings
        return torch.zeros_like(picture)
    side = max(picture.shape[-2:])
    sigma = side / 16
    amount = latents.blurred(known, sigma)
    while (amount < 1e-3).any() and sigma < side / 2:  # a hole so wide that nothing known is near its middle; from half, all is
        sigma *= 2
        amount = latents.blurred(known, sigma)
    return torch.where(known > 0, picture, latents.blurred(picture * known, sigma) / amount)


def depth_channel(sd: StableDiffusion, source: Depth) -> Tensor:
    """The depth map at the latents' size, its range stretched to [-1, 1], (1, 1, h, w).

    Raises ValueError if the map is flat, which leaves no range to stretch.
    """
    known = depth.estimate(sd, source.picture.tensor()) if source.depth is None else source.depth.tensor()[0]
    size = source.picture.height // sd.factor, source.picture.width // sd.factor
    known = known[None].to(sd.device).float()  # halves would end at 65,504, and round a narrow range
    small = torch.nn.functional.interpolate(known, size=size, mode="bicubic", align_corners=False)
    low, high = small.amin(), small.amax()
    if not high > low:
        raise ValueError("The depth map is the same everywhere, so it tells nothing; choose one with near and far in it.")
    return (2 * (small - low) / (high - low) - 1).to(sd.dtype)


def noised(sd: StableDiffusion, source: Upscale, random: torch.Generator) -> Tensor:
    """The small picture with the noise of its noise_level, (1, 3, h, w): what the upscaler is told of it."""
    if sd.low_res_config is None:
        raise ValueError(f"The model {sd.name} has no low_res_scheduler, so no noise for the small picture; choose an upscaler.")
    small = source.picture.tensor()
    noise = torch.randn(small.shape, generator=random)
    scheduler = schedulers.make("DDPM", sd.low_res_config, 1)
    noisy = scheduler.add_noise(small, noise, torch.tensor([source.noise_level]))
    return noisy.to(sd.device, sd.dtype)


def label(source: Source | None) -> int | None:
    """What an upscaler's UNet is told beside the time: the noise level of its small picture."""
    return source.noise_level if isinstance(source, Upscale) else None


@torch.no_grad()
def noised_start(
    sd: StableDiffusion, steps: int, scheduler: str, seed: int, source: Source
) -> tuple[int, int, schedulers.Level, Tensor]:
    """What a strength means, before anything runs: how many turns of the schedule run, of how many; the noise that the first one meets;
    and the latents that it meets, (1, 4, h, w), variance preserving: sqrt(alpha_bar) picture + sqrt(1 - alpha_bar) noise.

    Raises ValueError as `start` does.
    """
    made = schedulers.make(scheduler, sd.scheduler_config, steps, sd.device)
    level = schedulers.levels(made)
    begin = start(sd, source, made, steps, source.picture.height, source.picture.width, latents.generator(seed))
    x_in = made.scale_model_input(begin.x, made.timesteps[begin.first])
    return len(made.timesteps) - begin.first, len(made.timesteps), level[begin.first], x_in


# --- around an inpainting ---------------------------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; the last two lie outside


def inpainting(
    canvas: Pixels, painted: np.ndarray, width: int, height: int, *, padding: int | None = None, **how: Any
) -> Inpaint:
    """An inpainting of a picture of any size, drawn at width x height pixels: of all of it, or (padding: 0 .. 1024 pixels) of its part
    around the mask. painted: (H', W') bool, of the canvas' size. how: strength, fill and blur.

    A pixel of the run is made anew if any of the canvas under it is painted. Raises ValueError if nothing is, or for a wrong value.
    """
    if painted.shape != canvas.shape[:2]:
        raise ValueError(
            f"The mask has {painted.shape[1]} x {painted.shape[0]} pixels and the picture {canvas.width} x {canvas.height}; "
            "both must be of one size: fit the mask."
        )
    box = (0, 0, canvas.width, canvas.height) if padding is None else crop_region(painted, width, height, padding)
    marked = Image.fromarray(painted.astype(np.uint8) * 255)
    small = marked.resize((width, height), Image.Resampling.BOX, box).point([0] + [255] * 255)
    picture = canvas.image.resize((width, height), Image.Resampling.LANCZOS, box)
    return Inpaint(Pixels.of(picture), mask=Pixels.of(small), canvas=canvas, painted=Pixels.of(marked), padding=padding, **how)


def crop_region(mask: np.ndarray, width: int, height: int, padding: int) -> Box:
    """The part of a picture around a mask (H, W) of bool, for an inpainting of the masked part alone: the mask's bounding box, `padding`
    pixels more on each side, then longer on one side until it has the shape of width x height, as far as the picture goes. The same as
    diffusers' `get_crop_region`.

    Raises ValueError if nothing is masked, or for a padding that is no whole number from 0 to 1024.
    """
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding <= 1024:
        raise ValueError(f"The padding is {shown(padding)}; it must be a whole number from 0 to 1024.")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("Nothing is painted; paint the part to change first.")
    h, w = mask.shape
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, w)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, h)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _longer(top, bottom, int((right - left) / (width / height)), h)
    else:
        left, right = _longer(left, right, int((bottom - top) * (width / height)), w)
    return left, top, right, bottom


def _longer(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """A stretch made `length` long around its middle, moved until it lies within 0 .. limit."""
    low = max(min(low - (length - (high - low)) // 2, limit - length), 0)
    return low, min(low + length, limit)


def put_back(original: np.ndarray, made: np.ndarray, box: Box) -> np.ndarray:
    """The original (H, W, 3) uint8 with what was made (h, w, 3) in place of its part `box`, at that part's size."""
    left, top, right, bottom = box
    whole = original.copy()
    part = Image.fromarray(made).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    whole[top:bottom, left:right] = np.asarray(part)
    return whole


def soft(mask: np.ndarray, blur: float) -> np.ndarray:
    """A mask (H, W) of bool with soft edges, float32 in [0, 1]: a Gaussian of standard deviation `blur` pixels, 0 .. 64, cut off at three
    of them. Beyond that distance from the mask it is 0, exactly.

    Raises ValueError for another blur.
    """
    check_blur(blur)
    return latents.blurred(torch.from_numpy(mask.astype(np.float32))[None, None], blur)[0, 0].clamp(0, 1).numpy()


def check_blur(blur: object) -> None:
    if isinstance(blur, bool) or not isinstance(blur, int | float) or not 0 <= blur <= 64:
        raise ValueError(f"The mask blur is {shown(blur)}; it must be a number from 0 to 64.")


def composite(original: np.ndarray, made: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The result inside the mask, the original outside, (H, W, 3) uint8: where the mask (H, W) in [0, 1] is 0, not a bit differs.
    The VAE alone would change every pixel."""
    share = mask[..., None].astype(np.float32)
    mixed = original + share * (made.astype(np.float32) - original)
    return mixed.round().clip(0, 255).astype(np.uint8)


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far two pictures (H, W, 3) uint8 lie apart at each pixel, (H, W) uint8: of red, green and blue, what differs most."""
    return np.abs(before.astype(np.int16) - after).max(2).astype(np.uint8)
