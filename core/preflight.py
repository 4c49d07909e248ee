"""Before a training: are the pictures fit for it, and does it fit into memory, disk and patience? What is said is measured, not looked up.

found = preflight(sd, recipe, files, folder)    # of the files alone: sorted_out(sd, files)
"""

import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core import catalog, checkpoints, dreambooth, images, likeness, previews, room
from core.dreambooth import SIZES, Learner, has_adam8bit
from core.models import StableDiffusion, has_bfloat16
from core.recipe import PRESETS, TEXT_TARGETS, Recipe

SAME = 5.0  # grey levels of 255, at 64 px: two pictures that are nearer are one picture, saved twice
BLURRED = 0.012  # of `sharpness`: sharp samples have 0.026 and more, blurred by 3 px at 128 most have less
PLAIN_ADAM = "8-bit Adam needs an NVIDIA GPU and the package bitsandbytes; plain AdamW takes its place, with more memory."
PREVIEW_STEPS = 20  # of a Request
Shapes = Mapping[str, Mapping[str, Sequence[int]]]  # "unet" or "text_encoder" -> a weight's name -> its shape


@dataclass(frozen=True)
class Saving:
    """A way to need less memory."""

    changes: dict[str, Any]  # of the recipe
    sentence: str  # what it costs


@dataclass(frozen=True)
class Preflight:
    """What is known before Start. Pictures are counted from 0 in the order that they were given in."""

    accepted: int  # pictures
    refused: tuple[tuple[int, str], ...]  # which, and why, a sentence each
    steps: int  # recommended
    step_seconds: float | None  # of one step, measured; None where memory is too short for one
    seconds: float | None  # of the whole training, previews and class pictures counted
    memory: int  # bytes that it takes beside the app; where no step was measured, it takes more than these
    memory_free: int
    disk: int  # bytes
    disk_free: int
    savings: tuple[Saving, ...]  # where memory is short: what to try, the least harm first
    problems: tuple[str, ...]  # why it cannot start; none: it can
    notes: tuple[str, ...] = ()  # what will go otherwise than the recipe says


def preflight(sd: StableDiffusion, recipe: Recipe, sources: Sequence[images.Source], folder: Path) -> Preflight:
    """Looks at everything before a training of sd. folder: where all trainings lie (core/trainings.py). A few steps are really made, on
    a copy, so it takes as long as these: ask for it where a model may be used."""
    accepted, refused, _ = sorted_out(sd, sources)
    pictures = [picture for _, picture in accepted]
    shapes = shapes_of(sd)
    weights, state = bytes_of(recipe, shapes)
    disk, disk_free = disk_needed(recipe, shapes), shutil.disk_usage(existing(folder)).free
    fixed = weights + state + frozen_bytes(sd, recipe)  # what is trained, the optimizer's, what stays as it is
    memory_free = room.free(sd.device)
    step_seconds = seconds = None
    memory = fixed + weights  # the gradients
    if pictures and memory < memory_free:
        try:
            step_seconds, drawing, passing = warm_up(sd, recipe, pictures)
            memory = fixed + max(passing, preview_bytes(sd, recipe))
            looks = 1 + -(-recipe.steps // recipe.preview_every) if recipe.preview_every else 0
            there = len(list((folder / "class" / previews.class_name(sd, recipe)).glob("*.png")))  # from trainings before
            drawn = looks * (len(recipe.shown) + 2) + max(0, recipe.class_images - there) * recipe.prior
            seconds = recipe.steps * step_seconds + drawn * PREVIEW_STEPS * drawing
        except torch.OutOfMemoryError:
            memory = memory_free  # and more; how much, nobody knows
    low, high = SIZES
    problems = []
    if len(pictures) < low:
        problems.append(f"There are {len(pictures)} pictures; give {low} to {high} of one thing.")
    if disk > disk_free:
        problems.append(no_room(disk, disk_free))
    return Preflight(
        len(pictures),
        tuple(refused),
        recommended_steps(sd, recipe, len(pictures)),
        step_seconds,
        seconds,
        memory,
        memory_free,
        disk,
        disk_free,
        savings(sd, recipe) if memory >= memory_free else (),
        tuple(problems),
        (PLAIN_ADAM,) if recipe.adam8bit and not has_adam8bit(sd.device) else (),
    )


# --- pictures -------------------------------------------------------------------------------------------------------------------------


def sorted_out(sd: StableDiffusion, sources: Sequence[images.Source]) -> tuple[list, list, list]:
    """Pictures by their number: (accepted: RGB, upright, without metadata; refused, and why; warned: accepted, but a model may learn
    little from them)."""
    accepted: list[tuple[int, Image.Image]] = []
    refused: list[tuple[int, str]] = []
    warned: list[tuple[int, str]] = []
    for number, source in enumerate(sources):
        if len(accepted) == SIZES[1]:
            refused.append((number, f"{SIZES[1]} pictures are the most; leave out others to have this one."))
            continue
        try:
            accepted.append((number, images.open_picture(source)))
        except ValueError as error:
            refused.append((number, str(error)))
    pixels = previews.pixels_of(sd, [picture for _, picture in accepted]) if accepted else torch.zeros(0, 3, 1, 1)
    for at, (number, picture) in enumerate(accepted):
        if min(picture.size) < sd.size:
            warned.append(
                (number, f"The picture is {min(picture.size)} px small, and is enlarged to {sd.size}; a larger one shows more.")
            )
        if at and (twin := likeness.nearest(pixels[at : at + 1], pixels[:at])[0])[1] < SAME:
            warned.append(
                (number, f"The picture is nearly the same as number {accepted[twin[0]][0] + 1}; another view teaches more.")
            )
        if sharpness(pixels[at]) < BLURRED:
            warned.append((number, "The picture looks blurred; the model learns the blur too."))
    return accepted, refused, warned


def sharpness(picture: Tensor) -> float:
    """Of a picture (3, H, W), the variance of its Laplacian beside that of its brightness, from 0: low where nothing has an edge."""
    grey = picture.mean(0)
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(edges.var() / (grey.var() + 1e-4))


def recommended_steps(sd: StableDiffusion, recipe: Recipe, pictures: int) -> int:
    """For our own family, what was tuned. For others as in diffusers' README: 100 looks at each picture by LoRA and 80 by full training,
    twice that with class pictures, but 300 to 2000 looks in all."""
    if catalog.is_embedded(sd.source):
        return PRESETS["embedded"].steps
    looks = (100 if recipe.method == "lora" else 80) * pictures * (2 if recipe.prior else 1)
    return max(1, int(np.clip(looks, 300, 2000)) // (recipe.batch * recipe.accumulation))


# --- memory, time, disk ---------------------------------------------------------------------------------------------------------------


def shapes_of(sd: StableDiffusion) -> Shapes:
    parts = {"unet": sd.unet, "text_encoder": sd.text_encoder}
    return {part: {name: tuple(p.shape) for name, p in module.named_parameters()} for part, module in parts.items()}


def shapes_in(folder: Path) -> Shapes:
    """The same, of a model that is not loaded, from the headers of its files."""
    found: dict[str, dict[str, Sequence[int]]] = {"unet": {}, "text_encoder": {}}
    for part, shapes in found.items():
        for path in (folder / part).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, as this is no dict
    return found


def trained_count(recipe: Recipe, shapes: Shapes) -> int:
    """How many numbers are trained."""
    count = 0
    for part, targets in (("unet", recipe.targets), ("text_encoder", TEXT_TARGETS if recipe.text_encoder else ())):
        for name, shape in shapes[part].items():
            module, _, kind = name.rpartition(".")
            if recipe.method == "full":
                count += int(np.prod(shape)) if part == "unet" or recipe.text_encoder else 0
            elif kind == "weight" and any(module == t or module.endswith(f".{t}") for t in targets):
                count += recipe.rank * (int(shape[0]) + int(np.prod(shape[1:])))
    return count


def bytes_of(recipe: Recipe, shapes: Shapes) -> tuple[int, int]:
    """(weights, optimizer state) of a checkpoint; AdamW keeps two numbers beside each weight."""
    count = trained_count(recipe, shapes)
    return 4 * count, 8 * count


def frozen_bytes(sd: StableDiffusion, recipe: Recipe) -> int:
    """The copies that adapters are trained beside; and on a processor the base model, which the trainer opens for itself."""
    unet, text, vae = (sum(p.numel() for p in part.parameters()) for part in (sd.unet, sd.text_encoder, sd.vae))
    each = 2 if sd.device.type == "cuda" and recipe.precision_on(sd.device) != "fp32" else 4
    base = 4 * (unet + text + vae) if sd.device.type == "cpu" else 0
    return base + (0 if recipe.method == "full" else each * (unet + text * recipe.text_encoder))


def preview_bytes(sd: StableDiffusion, recipe: Recipe) -> int:
    """The copy that a preview is drawn with, when the activations have gone."""
    if not recipe.preview_every:
        return 0
    parts = [sd.unet, sd.text_encoder] if recipe.text_encoder or sd.device.type != "cpu" else [sd.unet]
    return sd.dtype.itemsize * sum(p.numel() for part in parts for p in part.parameters())


def disk_needed(recipe: Recipe, shapes: Shapes) -> int:
    """Of whole checkpoints those that are kept, and the new one beside them; and the weights of all, where they are small."""
    weights, state = bytes_of(recipe, shapes)
    whole = checkpoints.WITH_STATE + 1
    kept = max(whole, recipe.steps // recipe.checkpoint_every + 1) if weights <= checkpoints.SMALL else whole
    return kept * weights + whole * state + 20 * 2**20


def no_room(needed: int, free: int) -> str:
    return f"The training takes {size(needed)} of disk, and {size(free)} are free; make room, or train a LoRA."


def size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def existing(folder: Path) -> Path:
    return folder if folder.exists() else existing(folder.parent)


class Made(TorchDispatchMode):
    """Counts the bytes of tensors that are made in its `with` and are alive at once, also those that are computed again on the way back."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}  # address -> bytes
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        seen = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made) if isinstance(x, Tensor)):
            place = storage.data_ptr()
            if place not in seen and place not in self.alive:  # no view of what was there
                self.alive[place] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, place, None)
        self.most = max(self.most, sum(self.alive.values()))
        return made


def warm_up(sd: StableDiffusion, recipe: Recipe, pictures: Sequence[Image.Image]) -> tuple[float, float, int]:
    """Three real steps on a copy: (seconds of a step, seconds of drawing one picture for one step of a run, bytes that come and go in
    a step: activations and gradients)."""
    learner = Learner(sd, recipe)
    photos = dreambooth.moments(sd, pictures[: recipe.batch], False, learner.device)
    batch = photos[torch.arange(recipe.batch) % len(photos), 0]  # (B, 4, h, w)
    prior = batch if recipe.prior else None  # as large as the class pictures will be
    took, made = [], Made()
    for step in range(3):
        began = time.perf_counter()
        random = dreambooth.random_of(recipe.seed, step, 0)
        with nullcontext() if step else made:  # counting takes time
            for turn in range(recipe.accumulation):
                learner.backward(batch, prior, random, last=turn + 1 == recipe.accumulation)
        learner.update(step + 1, recipe.rate)
        settle(sd.device)
        took.append(time.perf_counter() - began)
        if took[0] > 20:  # a large model on a small machine: one is enough
            break
    return min(took[1:] or took), drawing_seconds(sd, batch[:1]), made.most


@torch.no_grad()
def drawing_seconds(sd: StableDiffusion, z: Tensor) -> float:
    """Of one step of one picture with guidance; a second call, as the first one sets up. z: any latents (1, 4, h, w)."""
    words = sd.text_encoder(torch.zeros(2, 77, dtype=torch.long, device=sd.device))[0]
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        sd.unet(z.to(sd.dtype).expand(2, -1, -1, -1), 500, words)
        settle(sd.device)
    return time.perf_counter() - began


def settle(device: torch.device) -> None:
    """Waits for what was asked of a GPU, which answers before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def savings(sd: StableDiffusion, recipe: Recipe) -> tuple[Saving, ...]:
    """What a recipe can still do to need less memory."""
    cuda, passes = sd.device.type == "cuda", recipe.batch * recipe.accumulation
    ladder = [
        (
            not recipe.gradient_checkpointing,
            {"gradient_checkpointing": True},
            "Gradient checkpointing keeps few activations and computes the others again: a third slower.",
        ),
        (
            cuda and recipe.precision_on(sd.device) == "fp32",
            {"precision": "bf16" if has_bfloat16(sd.device) else "fp16"},
            "Half precision halves the activations; the trained weights stay in float32.",
        ),
        (
            cuda and not recipe.adam8bit and recipe.method == "full",
            {"adam8bit": True},
            "8-bit Adam keeps its two numbers a weight in a quarter of the memory; it needs bitsandbytes.",
        ),
        (
            recipe.batch > 1 and passes <= 64,
            {"batch": 1, "accumulation": passes},
            "One picture a pass, and as many passes a step: the same step, slower.",
        ),
        (recipe.text_encoder, {"text_encoder": False}, "The text encoder stays as it is: less likeness, above all for faces."),
        (
            recipe.method == "full",
            {"method": "lora"},
            "LoRA trains small matrices beside the weights: a hundredth of the memory for them.",
        ),
    ]
    return tuple(Saving(changes, sentence) for possible, changes, sentence in ladder if possible)
