"""Training's speed and memory, as ratios to the stock recipe in the same run; part of scripts/bench.py.

The stock recipe is what diffusers' examples/dreambooth/train_dreambooth_lora.py does in every step: decode and fit the pictures, encode
them with the VAE, encode the prompts, then the UNet; its attention and its optimizer are the defaults. It is written here as short as it
goes, on the same model, adapter, batch and precision as ours.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from PIL import Image

from core import dreambooth, models, previews, subjects
from core.models import StableDiffusion
from core.recipe import PRECISIONS, PRESETS, UNET_TARGETS, Recipe

SUBJECT = "taxi"
RECIPE = replace(
    PRESETS["embedded"],
    instance_prompt="a sks car",
    class_prompt="a car",
    text_encoder=False,  # frozen, as in the stock recipe
    targets=UNET_TARGETS,  # as in the stock recipe
    preview_every=0,
    steps=20_000,
)


def pixels_of(picture: Image.Image, side: int) -> torch.Tensor:
    """The stock data set's transforms: resize, to tensor, normalise by 0.5."""
    x = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy(x).permute(2, 0, 1) * 2 - 1


def stock(sd: StableDiffusion, recipe: Recipe, photos: list[Image.Image], priors: list[Image.Image]) -> Iterator[float]:
    """One loss a step."""
    dtype = PRECISIONS[recipe.precision_on(sd.device)]
    unet = copy.deepcopy(sd.unet)
    unet.set_attn_processor(AttnProcessor2_0())
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, init_lora_weights="gaussian", target_modules=list(recipe.targets))
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.weight_decay)
    scheduler = DDPMScheduler.from_config(sd.scheduler_config)
    unet.train()
    while True:
        batch = [photos[i] for i in torch.randint(len(photos), (recipe.batch,))]
        prompts = [recipe.instance_prompt] * recipe.batch
        if recipe.prior:
            batch += [priors[i] for i in torch.randint(len(priors), (recipe.batch,))]
            prompts += [recipe.class_prompt] * recipe.batch
        ids = sd.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.autocast(sd.device.type, dtype, enabled=dtype is not None):
            with torch.no_grad():
                pixels = torch.stack([pixels_of(picture, sd.size) for picture in batch]).to(sd.device)
                z = sd.vae.encode(pixels).latent_dist.sample().float() * sd.vae.config.scaling_factor
                words = sd.text_encoder(ids.to(sd.device))[0]
            noise, t = torch.randn_like(z), torch.randint(1000, (len(z),), device=z.device)
            said = unet(scheduler.add_noise(z, noise, t), t, words, return_dict=False)[0]
        if recipe.prior:
            own, other = said.float().chunk(2)
            target, prior = noise.chunk(2)
            loss = F.mse_loss(own, target) + recipe.prior_weight * F.mse_loss(other, prior)
        else:
            loss = F.mse_loss(said.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def ours(sd: StableDiffusion, recipe: Recipe, photos: list[Image.Image], priors: list[Image.Image]) -> Iterator[float]:
    return (step.loss for step in dreambooth.train(sd, recipe, photos, priors))


def lessons() -> tuple[StableDiffusion, list[Image.Image], list[Image.Image]]:
    sd = models.load("emoji")
    return sd, subjects.SAMPLES[SUBJECT].pictures(), list(previews.class_pictures(sd, RECIPE, 0, RECIPE.class_images))


def figures(turns: int = 5, steps: int = 12) -> dict:
    """Steps a second and the ratio of the two, in turns of a dozen steps each; losses of both; megabytes of a process that does one."""
    sd, photos, priors = lessons()
    both = {"ours": ours(sd, RECIPE, photos, priors), "stock": stock(sd, RECIPE, photos, priors)}
    took: dict[str, list[float]] = {name: [] for name in both}
    losses: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(turns + 1):
        for name, run in both.items():
            began = time.perf_counter()
            losses[name] += [next(run) for _ in range(steps)]
            if turn:  # the first is a warm-up
                took[name].append((time.perf_counter() - began) / steps)
    ratio = statistics.median(s / o for o, s in zip(took["ours"], took["stock"], strict=True))
    told = {
        "train_ratio": round(ratio, 3),
        "train_steps_s": round(1 / statistics.median(took["ours"]), 2),
        "train_stock_steps_s": round(1 / statistics.median(took["stock"]), 2),
    }
    for name, values in losses.items():
        error = statistics.stdev(values) / len(values) ** 0.5
        told[f"train_loss_{name}"] = [round(statistics.mean(values), 4), round(error, 4)]
        told[f"train_mb_{name}"] = megabytes(name)
    return told


def megabytes(name: str) -> int:
    """What eight steps take beside the model and the pictures, at their peak; in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", name], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) // 1024


def resident(which: str) -> int:
    """Kilobytes of this process in memory, from Linux: VmRSS now, VmHWM the peak since `clear_refs` was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--turns", type=int, default=5)
    ask.add_argument("--memory", choices=["ours", "stock"], help="prints what eight steps of one take, in kilobytes")
    args = ask.parse_args()
    if not args.memory:
        return print(json.dumps(figures(args.turns)))
    sd, photos = models.load("emoji"), subjects.SAMPLES[SUBJECT].pictures()
    priors = (2 * photos)[: RECIPE.class_images]  # any pictures do, and drawing some would be the peak
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading, which is higher than that of training
    before = resident("VmRSS")
    run = {"ours": ours, "stock": stock}[args.memory](sd, RECIPE, photos, priors)
    for _ in range(8):
        next(run)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
