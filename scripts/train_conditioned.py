"""Grows the inpainting or the depth model from the base: the same UNet with more input channels, which start at zero (as SD's were).

    python scripts/train_conditioned.py --kind inpaint --minutes 60   # resumes by itself, stops by itself
    python scripts/train_conditioned.py --kind depth --minutes 40     # after train_depth_estimator.py, whose maps it learns to follow
    python scripts/train_conditioned.py --kind depth --minutes 0      # the untrained model: it paints what the base paints
    python scripts/train_conditioned.py --kind depth --carry OLD      # the base has learned more since OLD, a folder with its former UNet

inpaint  9 channels: noised latents (4), mask (1), latents of the picture with the masked pixels grey (4)
depth    5 channels: noised latents (4), depth map scaled to [-1, 1] (1)

A share of the scenes (--anywhere) shows one object of any size at any place, which its caption does not say. Where every scene stands as
the words have it, the words are enough, and the UNet does not look at the map.

Everything but the UNet is the base's, byte for byte. Loss and noise as in train_unet.py.
"""

import argparse
import inspect
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

import scenes
from scenes import Scene, Spec, caption, compose, with_article
from train_unet import INDEX, Noise, encoded, on_fixed_noise, posterior, sampled
from train_vae import to_tensor
from training import MODELS, SHARD, device, fast_attention, kept, mixed, train_loop, write_manifest

CHANNELS = {"inpaint": 9, "depth": 5}
INDICES = {
    "inpaint": INDEX | {"_class_name": "StableDiffusionInpaintPipeline"},
    "depth": {k: v for k, v in INDEX.items() if k not in ("image_encoder", "requires_safety_checker", "safety_checker")}
    | {
        "_class_name": "StableDiffusionDepth2ImgPipeline",
        "depth_estimator": ["transformers", "DPTForDepthEstimation"],
        "feature_extractor": ["transformers", "DPTImageProcessor"],
    },
}


def grown(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """The same UNet with further input channels that it does not look at yet: their weights are zero."""
    whole = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels})
    state = unet.state_dict()
    weight = state["conv_in.weight"]
    state["conv_in.weight"] = F.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))
    whole.load_state_dict(state)
    return whole


def carried(own: UNet2DConditionModel, before: UNet2DConditionModel, now: UNet2DConditionModel) -> UNet2DConditionModel:
    """What the base has learned since this model was grown from it, added to what this model has learned itself: own + (now - before)
    (task arithmetic, Ilharco et al. 2023). Both were small steps from the same weights."""
    state, old, new = own.state_dict(), before.state_dict(), now.state_dict()
    for name, weight in state.items():
        step = new[name] - old[name]
        (weight[:, : step.shape[1]] if name == "conv_in.weight" else weight).add_(step)
    own.load_state_dict(state)
    return own


def moved(specs: list[Spec], share: float) -> list[Spec]:
    """A share of the scenes with their first object alone, of any size at any place."""
    rng = random.Random(10)
    return [
        replace(s, objects=s.objects[:1], relation="alone", size="", anywhere=True) if rng.random() < share else s for s in specs
    ]


# --- holes --------------------------------------------------------------------------------------------------------------------


def painted(scene: Scene, rng: random.Random) -> np.ndarray:
    """A mask as people paint it, (H, W) bool: over an object, more or less closely; anywhere; now and then over everything."""
    side, chance = len(scene.depth), rng.random()
    if chance < 0.05:
        return np.ones((side, side), bool)
    target = np.zeros((side, side), bool)
    if chance < 0.85:
        target = rng.choice(list(scene.masks)) > 0.5
    over_object = bool(target.any())
    if not over_object:
        w, h = (int(side * rng.uniform(0.2, 0.6)) for _ in "wh")
        x, y = rng.randint(0, side - w), rng.randint(0, side - h)
        target[y : y + h, x : x + w] = True
    rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1], rows[-1]

    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    shape = rng.choice(["box", "box", "ellipse", "outline", "strokes"])
    if shape == "outline" and over_object:
        mask = Image.fromarray(target.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * rng.randint(2, side // 10) + 1))
    elif shape == "strokes":
        wide = side * rng.uniform(0.12, 0.3)
        points = [(rng.uniform(x0, x1), rng.uniform(y0, y1)) for _ in range(rng.randint(4, 12))]
        draw.line(points, 255, round(wide))
        for x, y in points:
            draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), 255)
        if over_object:  # one goes on until it is covered
            mask.paste(255, mask=Image.fromarray(target.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(5)))
    else:
        out = 0.2 if shape == "ellipse" else 0.0  # of the side, that an ellipse round a box is larger than the box
        left, up, right, down = (rng.uniform(0, 0.12) * side for _ in range(4))
        box = (x0 - left - out * (x1 - x0), y0 - up - out * (y1 - y0), x1 + right + out * (x1 - x0), y1 + down + out * (y1 - y0))
        (draw.ellipse if shape == "ellipse" else draw.rectangle)(box, 255)
    return np.asarray(mask) > 127


def subject(scene: Scene, mask: np.ndarray) -> int:
    """Which object the hole hides, if it hides one and leaves the others to be seen; else -1."""
    hidden = [float((m * mask).sum() / max(1.0, m.sum())) for m in scene.masks]
    gone = [i for i, share in enumerate(hidden) if share > 0.7]
    return gone[0] if len(gone) == 1 and all(share < 0.3 for i, share in enumerate(hidden) if i != gone[0]) else -1


def asked(spec: Spec, hidden: int, rng: random.Random) -> str:
    """What a person writes for the hole: the whole picture, or, of one hidden object, only that."""
    if hidden >= 0 and rng.random() < 0.6:
        if rng.random() < 0.3:
            return with_article(spec.objects[hidden])
        spec = replace(spec, objects=(spec.objects[hidden],), relation="alone")
    return caption(spec, rng)


# --- the further channels -----------------------------------------------------------------------------------------------------


def masked_latents(vae: AutoencoderKL, pictures: Tensor, masks: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] and (B, 1, H, W) in {0, 1} -> (B, 5, h, w), as StableDiffusionInpaintPipeline makes them."""
    hidden = posterior(vae, pictures * (masks < 0.5)).mean.float() * vae.config.scaling_factor
    return torch.cat([F.interpolate(masks, hidden.shape[-2:]), hidden], 1)


def scaled_depth(depth: Tensor, side: int) -> Tensor:
    """(B, H, W), larger is nearer -> (B, 1, side, side) in [-1, 1], as StableDiffusionDepth2ImgPipeline makes it. That divides a flat
    map by zero; here it is all far."""
    small = F.interpolate(depth[:, None], (side, side), mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low).clamp(min=1e-6) - 1


@torch.no_grad()
def inpaint_channels(vae: AutoencoderKL, specs: list[Spec], size: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 5, h, w) float16, and (N,) the hidden object of each."""
    rng, found, hidden = random.Random(7), [], []
    vae.to(memory_format=torch.channels_last)
    for start in range(0, len(specs), 32):
        made = [compose(s, size) for s in specs[start : start + 32]]
        masks = [painted(s, rng) for s in made]
        hidden += [subject(s, m) for s, m in zip(made, masks, strict=True)]
        holes = torch.from_numpy(np.stack(masks))[:, None].float().to(device())
        found.append(masked_latents(vae, to_tensor(np.stack([s.picture for s in made])), holes).half().cpu())
        if start % 1600 == 0:
            print(f"masked latents: {start} of {len(specs)}", flush=True)
    return torch.cat(found)[:, None], torch.tensor(hidden)


@torch.no_grad()
def depth_channels(estimator: DPTForDepthEstimation, specs: list[Spec], size: int, side: int) -> tuple[Tensor, Tensor]:
    """(N, 2, 1, h, w) float16: the true map and the estimator's. Where that one is far off, the true one twice."""
    found, like = [], []
    for start in range(0, len(specs), 32):
        made = [compose(s, size) for s in specs[start : start + 32]]
        true = scaled_depth(torch.from_numpy(np.stack([s.depth for s in made])), side)
        guess = scaled_depth(estimator(to_tensor(np.stack([s.picture for s in made]))).predicted_depth.cpu(), side)
        a, b = ((x - x.mean((1, 2, 3), keepdim=True)).flatten(1) for x in (true, guess))
        like.append(F.cosine_similarity(a, b))  # of deviations from the mean: Pearson's correlation
        found.append(torch.stack([true, torch.where(like[-1][:, None, None, None] > 0.5, guess, true)], 1).half())
        if start % 1600 == 0:
            print(f"depth maps: {start} of {len(specs)}", flush=True)
    r = torch.cat(like)
    print(f"the estimator's maps: correlation with the true ones {r.mean():.3f}, used {(r > 0.5).float().mean():.1%}", flush=True)
    return torch.cat(found), torch.full((len(specs),), -1)


def further_channels(kind: str, folder: Path, specs: list[Spec], size: int, side: int) -> tuple[Tensor, Tensor]:
    """(N, variants, channels - 4, h, w) float16 and (N,), see above; kept on disk."""
    if kind == "inpaint":
        model = AutoencoderKL.from_pretrained(folder / "vae").to(device())
        sources, make = [painted, subject, masked_latents, inpaint_channels], lambda: inpaint_channels(model, specs, size)
    else:
        model = DPTForDepthEstimation.from_pretrained(folder / "depth_estimator").to(device())
        sources, make = [scaled_depth, depth_channels], lambda: depth_channels(model, specs, size, side)
    weights = sum(p.double().sum().item() for p in model.parameters())
    about = [weights, len(specs), size, inspect.getsource(scenes), *(inspect.getsource(f) for f in sources)]
    return kept(kind, about, make)


# --- files --------------------------------------------------------------------------------------------------------------------


def copy_base(base: Path, folder: Path) -> None:
    """Every part but the UNet, so that the folder opens by itself."""
    for part in ("tokenizer", "text_encoder", "vae", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)  # its shards may have been more
        shutil.copytree(base / part, folder / part)
    shutil.copy(base / "preview.json", folder)


def save(folder: Path, kind: str, unet: UNet2DConditionModel) -> None:
    for old in (folder / "unet").glob("*.safetensors*"):
        old.unlink()
    unet.half().save_pretrained(folder / "unet", max_shard_size=SHARD)  # half the bytes to clone; readers get float32
    (folder / "model_index.json").write_text(json.dumps(INDICES[kind], indent=2, sort_keys=True) + "\n")
    write_manifest(folder)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kind", choices=list(CHANNELS), required=True)
    ask.add_argument("--minutes", type=float, default=60, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--scenes", type=int, default=15000)
    ask.add_argument("--anywhere", type=float, default=0.3, help="share of scenes whose one object stands anywhere")
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--rate", type=float, default=6e-4)
    ask.add_argument("--base", default="emoji")
    ask.add_argument("--grow", type=int, metavar="N", help="objects after the first N come more often, as in train_unet.py")
    ask.add_argument("--again", action="store_true", help="begin with the weights in the model's own folder, not with the base's")
    ask.add_argument("--carry", type=Path, help="as --again, and add what the base has learned since the UNet in this folder")
    args = ask.parse_args()

    base, folder = MODELS / args.base, MODELS / f"{args.base}-{args.kind}"
    torch.manual_seed(0)
    if args.again or args.carry:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        if args.carry:
            parts = (UNet2DConditionModel.from_pretrained(path) for path in (args.carry, base / "unet"))
            unet = carried(unet, *parts)
    else:
        unet = grown(UNet2DConditionModel.from_pretrained(base / "unet"), CHANNELS[args.kind])
    copy_base(base, folder)
    if args.minutes == 0:
        return save(folder, args.kind, unet)

    side = unet.config.sample_size
    vae = AutoencoderKL.from_pretrained(base / "vae").to(device())
    size = side * 2 ** (len(vae.config.block_out_channels) - 1)
    specs = moved(sampled(args.scenes, args.grow), args.anywhere)
    means, stds = encoded(vae, specs, size)
    del vae
    further, hidden = further_channels(args.kind, folder, specs, size, side)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32).requires_grad_(False).to(device())
    unet.to(device())
    fast_attention(unet)
    noise, words = Noise(), random.Random(8)
    print(f"{sum(p.numel() for p in unet.parameters()):,} parameters, {len(further)} scenes", flush=True)

    def loss_of(_) -> Tensor:
        rows = torch.randint(len(further), (args.batch,))
        mean, std = means[rows].to(device()).float(), stds[rows].to(device()).float()
        x, eps, t = noise.add(mean + std * torch.randn_like(mean))
        extra = further[rows, torch.randint(further.shape[1], (args.batch,))].to(device()).float()
        texts = ["" if words.random() < 0.1 else asked(specs[r], int(hidden[r]), words) for r in rows]
        ids = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
        with mixed():
            with torch.no_grad():
                text = text_encoder(ids.to(device()))[0]  # (B, 77, D)
            out = unet(torch.cat([x, extra], 1), t, encoder_hidden_states=text).sample.float()
        return noise.loss(out, eps, t)

    train_loop(
        f"{folder.name}-unet",
        {"unet": unet},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate,
        report=lambda: on_fixed_noise(loss_of, words),
        decay=0.999,
        every=4,
    )
    save(folder, args.kind, unet)


if __name__ == "__main__":
    main()
