"""Measures the models that start from a picture: emoji-inpaint, emoji-depth and emoji-upscale, each in diffusers' own pipeline.

    python scripts/evaluate_conditioned.py                  # all three; some minutes on two cores
    python scripts/evaluate_conditioned.py --kind depth     # one of them

inpaint  Over one object of an unseen scene lies a mask, and the prompt names another object for it. Judged is the crop around the mask.
depth    The estimator's map of an unseen scene against the true one, and the estimated depth of a picture that was generated from the true
         map (strength 1, the scene's own caption) against that map: Spearman's rank correlation.
upscale  Unseen scenes of 512 px, made four times smaller, against themselves: PSNR beside bicubic enlargement.

Writes evaluation.json into each model's folder.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from scenes import OBJECTS, Spec, caption, compose, sample_spec, with_article
from train_vae import to_tensor
from training import MODELS, device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core.judge import load_judge

STEPS, GUIDANCE = 20, 4.0
MARGIN = 0.06  # of the side, that a mask is larger than the object under it


def opened(kind: type, name: str) -> StableDiffusionPipeline:
    pipe = kind.from_pretrained(MODELS / name, local_files_only=True).to(device())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_of(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is true, with a margin, within the picture."""
    side = len(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    out = round(MARGIN * side)
    return tuple(int(v) for v in np.clip([columns[0] - out, rows[0] - out, columns[-1] + out + 1, rows[-1] + out + 1], 0, side))


@torch.no_grad()
def inpaint(count: int, batch: int) -> dict:
    pipe, judge, rng = opened(StableDiffusionInpaintPipeline, "emoji-inpaint"), load_judge(device=device()), random.Random(41)
    side, jobs = pipe.unet.config.sample_size * pipe.vae_scale_factor, []
    while len(jobs) < count:
        spec = sample_spec(rng, "test", rng.choice(["alone", "left of", "above"]))
        scene, k = compose(spec, side), rng.randrange(len(spec.objects))
        new = rng.choice([name for name in OBJECTS if name not in spec.objects])
        left, top, right, bottom = box_around(scene.masks[k] > 0.5)
        mask = np.zeros((side, side), np.uint8)
        mask[top:bottom, left:right] = 255
        style = "" if spec.style == "photo" else f"{with_article(spec.style)} of "
        jobs.append((scene.picture, mask, f"{style}{with_article(new)} on {with_article(spec.background)} background", new))
    found, outside, kept = [], [], []
    for start in range(0, count, batch):
        part = jobs[start : start + batch]
        pictures = pipe(
            prompt=[words for _, _, words, _ in part],
            image=[Image.fromarray(picture) for picture, _, _, _ in part],
            mask_image=[Image.fromarray(mask) for _, mask, _, _ in part],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=side,
            width=side,
            generator=[random_of(500_000 + start + i) for i in range(len(part))],
            output_type="np",
        ).images  # (B, H, W, 3) in [0, 1]
        for made, (picture, mask, _, new) in zip(pictures, part, strict=True):
            hole = mask[..., None] / 255
            whole = hole * made + (1 - hole) * picture / 255  # composited: outside, the original
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            crop = torch.from_numpy(whole[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]).permute(2, 0, 1)[None].float() * 2 - 1
            crop = F.interpolate(crop, (128, 128), mode="bilinear", antialias=True)
            found.append(judge.names[int(judge(crop.to(device())).objects.argmax())] == new)
            if not mask.all():  # a big object's mask may leave nothing outside
                outside.append(np.abs(made * 255 - picture)[mask == 0].mean())
                kept.append(np.abs(whole * 255 - picture)[mask == 0].max())
    return {
        "asked object in the hole": round(float(np.mean(found)), 4),
        "of": count,
        "mean change outside, raw, of 255": round(float(np.mean(outside)), 2),
        "largest change outside, composited": float(np.max(kept)),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


@torch.no_grad()
def depth(count: int, batch: int) -> dict:
    pipe, rng = opened(StableDiffusionDepth2ImgPipeline, "emoji-depth"), random.Random(42)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor

    def estimated(pictures: Tensor) -> np.ndarray:
        """(B, 3, H, W) in [-1, 1] -> (B, H, W)."""
        images = [Image.fromarray(p) for p in ((pictures / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()]
        guess = pipe.depth_estimator(pipe.feature_extractor(images=images, return_tensors="pt").pixel_values).predicted_depth
        return F.interpolate(guess[:, None], (side, side), mode="bicubic")[:, 0].numpy()

    def tried(specs: list[Spec]) -> tuple[float, float, float]:
        """The estimator against the truth; the depth of generated pictures against the asked; and against their neighbour's, by chance."""
        guessed, followed, wrong = [], [], []
        for start in range(0, len(specs), batch):
            part = [compose(spec, side) for spec in specs[start : start + batch]]
            real = to_tensor(np.stack([s.picture for s in part]))
            guessed += [spearman(g, s.depth) for g, s in zip(estimated(real), part, strict=True)]
            made = pipe(
                prompt=[caption(s.spec, rng) for s in part],
                image=real,
                depth_map=torch.from_numpy(np.stack([s.depth for s in part])),
                strength=1.0,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=[random_of(600_000 + start + i) for i in range(len(part))],
                output_type="pt",
            ).images
            maps = estimated(made * 2 - 1)
            followed += [spearman(g, s.depth) for g, s in zip(maps, part, strict=True)]
            wrong += [spearman(g, s.depth) for g, s in zip(np.roll(maps, 1, 0), part, strict=True)]
        return tuple(round(float(np.nanmean(values)), 4) for values in (guessed, followed, wrong))

    guessed, followed, wrong = tried([sample_spec(rng, "test") for _ in range(count)])
    _, moved, elsewhere = tried([replace(sample_spec(rng, "test", "alone"), size="", anywhere=True) for _ in range(count // 2)])
    return {
        "estimator against the truth": guessed,
        "generated against the asked": followed,
        "another picture's against the asked, for comparison": wrong,
        "the same of objects anywhere": moved,
        "another picture's of objects anywhere": elsewhere,
        "of": count,
    }


@torch.no_grad()
def upscale(count: int, noise_level: int, guidance: float, steps: int) -> dict:
    pipe, rng = opened(StableDiffusionUpscalePipeline, "emoji-upscale"), random.Random(43)
    errors: dict[str, list[float]] = {"bicubic": [], "diffusion": [], "its VAE alone": []}
    for i in range(count):
        spec = sample_spec(rng, "test")
        scene = Image.fromarray(compose(spec, 512).picture)
        small = scene.resize((128, 128), Image.Resampling.BICUBIC)
        true = np.asarray(scene, np.float32) / 255
        made = pipe(
            prompt=caption(spec, rng),
            image=small,
            num_inference_steps=steps,
            guidance_scale=guidance,
            noise_level=noise_level,
            generator=random_of(700_000 + i),
            output_type="np",
        ).images[0]
        x = to_tensor(np.asarray(scene)[None])
        through = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)[0].permute(1, 2, 0).numpy() / 2 + 0.5
        large = np.asarray(small.resize((512, 512), Image.Resampling.BICUBIC), np.float32) / 255
        for name, picture in (("bicubic", large), ("diffusion", made), ("its VAE alone", through)):
            errors[name].append(float(np.square(picture - true).mean()))
    of_means = {f"{name}, PSNR of the mean error": round(-10 * float(np.log10(np.mean(e))), 2) for name, e in errors.items()}
    means = {f"{name}, mean PSNR": round(float(np.mean(-10 * np.log10(e))), 2) for name, e in errors.items()}
    return {**of_means, **means, "noise level": noise_level, "guidance": guidance, "steps": steps, "of": count}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kind", choices=["inpaint", "depth", "upscale"], action="append", default=[])
    ask.add_argument("--count", type=int, default=200, help="pictures; an eighth as many for the upscaler")
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--noise-level", type=int, default=0)
    ask.add_argument("--guidance", type=float, default=1.0, help="of the upscaler")
    ask.add_argument("--steps", type=int, default=STEPS, help="of the upscaler")
    args = ask.parse_args()
    measures = {
        "inpaint": lambda: inpaint(args.count, args.batch),
        "depth": lambda: depth(args.count, args.batch),
        "upscale": lambda: upscale(args.count // 8, args.noise_level, args.guidance, args.steps),
    }
    for kind in args.kind or measures:
        found = {"steps": STEPS, **measures[kind]()}
        print(kind, json.dumps(found, indent=1), flush=True)
        (MODELS / f"emoji-{kind}" / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
