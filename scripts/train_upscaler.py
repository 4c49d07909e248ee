"""Trains the x4 upscaler: 128 px pictures to 512 px, in the architecture of stabilityai/stable-diffusion-x4-upscaler at small size.

    python scripts/train_upscaler.py --stage vae --minutes 60    # first: factor 4, 512 px <-> 4 x 128 x 128; resumes and stops by itself
    python scripts/train_upscaler.py --stage preview             # the matrix that shows its latents; the VAE's stage ends with it too
    python scripts/train_upscaler.py --stage unet --minutes 120  # then: text encoder and tokenizer are the base's, frozen
    python scripts/train_upscaler.py --stage unet --again --minutes 60  # without a training state: on from the weights in assets/

The low-resolution picture is the scene under Pillow's antialiased bicubic filter. The UNet sees it, noised, beside the noisy latents, and
the level of that noise as a class (Ho et al. 2022, conditioning augmentation). It learns v (Salimans and Ho 2022), weighted as
errors of x0, on crops; both schedules are the real model's. 10 % empty captions, which is what classifier-free guidance needs.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from transformers import CLIPTextModel, CLIPTokenizer

from scenes import Spec, caption, compose, sample_spec
from train_unet import preview_matrix
from train_vae import NOISE, to_tensor
from training import MODELS, SHARD, STATE, device, fast_attention, mixed, train_loop, write_manifest

SIDE, FACTOR = 512, 4  # pixels of a scene, pixels per latent
SCALING = 0.08333  # the pipeline sets the VAE's scaling_factor to this whatever the config says: our latents are made to fit it
MAX_NOISE_LEVEL = 350
BETAS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
SCHEDULER = {**BETAS, "clip_sample": False, "prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1}
LOW_RES_SCHEDULER = {**BETAS, "clip_sample": True, "variance_type": "fixed_small"}
INDEX = {
    "_class_name": "StableDiffusionUpscalePipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    "max_noise_level": MAX_NOISE_LEVEL,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "watermarker": [None, None],
}


def build_vae() -> AutoencoderKL:
    """Grown from the base model's VAE, which has one level more: what its outer levels know of edges and flat colour holds at any size."""
    vae = AutoencoderKL(
        block_out_channels=[32, 48, 96],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=SCALING,
        mid_block_add_attention=False,  # over 128 x 128 positions it would cost more than all the rest
    )
    base = AutoencoderKL.from_pretrained(MODELS / "emoji" / "vae").state_dict()
    known = {re.sub(r"(?<=decoder.up_blocks.)\d", lambda m: str(int(m[0]) - 1), name): value for name, value in base.items()}
    own = vae.state_dict()
    fits = {n: v for n, v in known.items() if n in own and v.shape == own[n].shape and "quant" not in n}
    vae.load_state_dict(own | fits)
    for half in (vae.encoder, vae.decoder):  # the new middle begins as passing on what it is given
        for block in half.mid_block.resnets:
            nn.init.zeros_(block.conv2.weight)
    return vae


def build_unet(width: int) -> UNet2DConditionModel:
    """As in the real one, attention looks at the text alone: what is learned on crops then holds for whole pictures."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // FACTOR,
        in_channels=7,
        out_channels=4,
        block_out_channels=[64, 96, 128, 128],
        down_block_types=["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, in spite of its name
        only_cross_attention=True,
        cross_attention_dim=width,
        norm_num_groups=16,
        num_class_embeds=1000,
        use_linear_projection=True,
    )
    # Neighbouring noise levels begin alike: random rows would each need to be learned alone.
    rows = unet.class_embedding.weight  # pyright: ignore[reportOptionalMemberAccess]
    rows.data = get_timestep_embedding(torch.arange(len(rows)), rows.shape[1])  # pyright: ignore
    return unet


# --- pictures -----------------------------------------------------------------------------------------------------------------


def specs_of(count: int, split: str, seed: int) -> list[Spec]:
    rng = random.Random(seed)
    return [sample_spec(rng, split) for _ in range(count)]


def scenes(specs: list[Spec]) -> np.ndarray:
    """(N, 512, 512, 3) uint8, composed once and kept on disk."""
    about = repr((SIDE, specs, Path(__file__).with_name("scenes.py").read_text()))
    path = STATE / f"scenes-{SIDE}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        STATE.mkdir(parents=True, exist_ok=True)
        out = open_memmap(path.with_suffix(".tmp"), "w+", np.uint8, (len(specs), SIDE, SIDE, 3))
        for i, spec in enumerate(specs):
            out[i] = compose(spec, SIDE).picture
            if i % 200 == 0:
                print(f"scenes: {i} of {len(specs)}", flush=True)
        out.flush()
        path.with_suffix(".tmp").rename(path)
    return np.load(path, mmap_mode="r")


def resized(batch: np.ndarray, side: int) -> np.ndarray:
    """(N, H, H, 3) uint8 -> (N, side, side, 3) uint8, Pillow's bicubic filter, antialiased where it shrinks."""
    return np.stack([np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in batch])


def scores(pictures: Tensor, truth: Tensor) -> str:
    """Two PSNR of (N, 3, H, W) in [-1, 1], in dB: of the mean error of all, and the mean of each picture's (where the blurred ones,
    which any filter restores, count most)."""
    mse = ((pictures.clamp(-1, 1) - truth) / 2).square().mean((1, 2, 3)) + 1e-10
    return f"{-10 * mse.mean().log10():.2f} dB ({-10 * mse.log10().mean():.2f} per picture)"


def corner(rng: random.Random, low: np.ndarray, side: int) -> tuple[int, int]:
    """Row and column of a crop in a low-resolution picture: the livelier of two, for half of most scenes is plain background."""
    places = [(rng.randint(0, len(low) - side), rng.randint(0, len(low) - side)) for _ in range(2)]
    return max(places, key=lambda p: low[p[0] : p[0] + side, p[1] : p[1] + side].std((0, 1)).sum())


# --- autoencoder --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def normalise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Latents z become (z - mean) / std, per channel, exactly: folded into the 1 x 1 convolutions around them. mean, std: (4,)."""
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= std[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.weight[4:], into.bias[4:] = into.weight[4:], into.bias[4:] - 2 * std.log()  # the logarithm of the variance
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pictures: np.ndarray, autocast: bool = True) -> Tensor:
    """(N, 512, 512, 3) uint8 -> (N, 4, 128, 128) float16, the distributions' means times scaling_factor."""
    parts = []
    for i in range(len(pictures)):
        x = to_tensor(np.array(pictures[i : i + 1])).contiguous(memory_format=torch.channels_last)
        with mixed() if autocast else nullcontext():
            z = vae.encode(x).latent_dist.mode()
        parts.append((z.float() * SCALING).half().cpu().contiguous())
        if i % 200 == 199:
            print(f"latents: {i + 1} of {len(pictures)}", flush=True)
    return torch.cat(parts)


def train_vae(args: argparse.Namespace, folder: Path) -> None:
    vae = build_vae()
    if args.again:
        vae = AutoencoderKL.from_pretrained(folder / "vae")
        normalise(
            vae, torch.zeros(4), torch.full((4,), 4.0)
        )  # from a standard deviation of 12 to 3, which the KL term likes better
    vae.to(device(), memory_format=torch.channels_last)
    rng, places = np.random.default_rng(), random.Random()
    products = torch.zeros(4, 8, device=device())  # of colours with colours and with latents, over the last hundred batches
    train = scenes(specs_of(args.scenes, "train", 1))
    low = resized(train, SIDE // FACTOR)
    unseen = np.stack([compose(s, SIDE).picture for s in specs_of(12, "test", 2)])
    middle = unseen[:, 128:384, 128:384]
    truth, small = to_tensor(middle), resized(middle, 64)
    print(
        f"{sum(p.numel() for p in vae.parameters()):,} parameters; bicubic {scores(to_tensor(resized(small, 256)), truth)}",
        flush=True,
    )

    def bent(z: Tensor, x: Tensor, learn: bool = False) -> Tensor:
        """Share of the latents' variance, as means over 16 px, that is no linear function of the mean colour there. What is linear the
        UNet, which sees the colour, has for nothing; left to themselves the latents bend it, and half of the UNet's error was plain
        areas of a wrong colour."""
        means, colours = (
            avg_pool2d(one, side).movedim(1, -1).reshape(-1, one.shape[1]) for one, side in ((z, 4), (x, 4 * FACTOR))
        )
        colours = torch.cat([colours, torch.ones_like(colours[:, :1])], 1)
        if learn:
            new = colours.T @ torch.cat([colours, means.detach()], 1) / len(colours)
            products.lerp_(new, 0.01 if products.any() else 1.0)
        line = torch.linalg.solve(products[:, :4] + 1e-3 * torch.eye(4, device=products.device), products[:, 4:])
        return (means - colours @ line).square().mean() / z.var()

    def loss_of(_) -> Tensor:
        crops = []
        for i in rng.integers(0, len(train), args.batch):
            y, x = (FACTOR * n for n in corner(places, low[i], args.crop // FACTOR))
            crop = train[i, y : y + args.crop, x : x + args.crop]
            crops.append(crop[:, ::-1] if places.random() < 0.5 else crop)
        x = to_tensor(np.stack(crops)).contiguous(memory_format=torch.channels_last)
        with mixed():
            latents = vae.encode(x).latent_dist
            z = latents.sample()
            z = z + NOISE * torch.rand(len(z), 1, 1, 1, device=z.device) * z.std() * torch.randn_like(z)
            error = vae.decode(z).sample.float() - x
        kl = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).float().mean()
        # The floor, 43 dB, keeps crops that are all but plain from outweighing those with edges.
        return (
            (error.square().mean((1, 2, 3)) + 2e-4).log().mean()
            + 3 * error.abs().mean()
            + 1e-4 * kl
            + 10 * bent(latents.mean.float(), x, learn=True)
        )

    @torch.no_grad()
    def report() -> str:
        z = torch.cat([vae.encode(x[None]).latent_dist.mode() for x in truth])
        psnr = scores(torch.cat([vae.decode(x[None]).sample for x in z]), truth)
        return f"PSNR of unseen scenes {psnr}, latent std {z.std():.3f}, not linear in colour {bent(z, truth):.4f}"

    train_loop(
        f"{folder.name}-vae",
        {"vae": vae},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate or 1e-3,
        report=report,
        decay=0.998,
        every=5,
    )
    z = latents_of(vae, train[:64], autocast=False).to(device()).float() / SCALING
    normalise(vae, z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALING)
    for old in (folder / "vae").glob("*.safetensors*"):
        old.unlink()
    vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae", max_shard_size=SHARD)
    write_manifest(folder)
    write_preview(folder, vae)


def write_preview(folder: Path, vae: AutoencoderKL) -> None:
    """Fits preview.json, which turns latents into a small picture by one matrix, on 48 scenes, and says how well it does on 12 unseen."""

    def encoded(specs: list[Spec]) -> tuple[np.ndarray, Tensor]:
        pictures = np.stack([compose(s, SIDE).picture for s in specs])
        return pictures, latents_of(vae, pictures, autocast=False)

    specs = specs_of(48, "train", 1)
    matrix = preview_matrix(vae, specs, encoded(specs)[1], SIDE)
    pictures, z = encoded(specs_of(12, "test", 2))
    rows = torch.tensor(matrix)
    guess = torch.einsum("bchw,cr->brhw", z.float(), rows[:4]) + rows[4][None, :, None, None]
    print(f"preview of unseen scenes {scores(guess, to_tensor(resized(pictures, SIDE // FACTOR)).cpu())}", flush=True)
    (folder / "preview.json").write_text(json.dumps(matrix) + "\n")


def fit_preview(args: argparse.Namespace, folder: Path) -> None:
    write_preview(folder, AutoencoderKL.from_pretrained(folder / "vae").to(device()).requires_grad_(False))


# --- UNet ---------------------------------------------------------------------------------------------------------------------


def save(folder: Path, unet: UNet2DConditionModel) -> None:
    for old in (folder / "unet").glob("*.safetensors*"):
        old.unlink()
    # Half precision on disk keeps the model small; readers get float32.
    unet.to(memory_format=torch.contiguous_format).half().save_pretrained(folder / "unet", max_shard_size=SHARD)
    for name, kind, config in [
        ("scheduler", "DDIMScheduler", SCHEDULER),
        ("low_res_scheduler", "DDPMScheduler", LOW_RES_SCHEDULER),
    ]:
        (folder / name).mkdir(exist_ok=True)
        text = json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1", **config}, indent=2)
        (folder / name / "scheduler_config.json").write_text(text + "\n")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    write_manifest(folder)


def train_unet(args: argparse.Namespace, folder: Path) -> None:
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).exists():  # a copy stays with the UNet that was trained on it
            shutil.copytree(MODELS / "emoji" / part, folder / part)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device()).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device(), memory_format=torch.channels_last).requires_grad_(False)
    unet = (
        UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        if args.again
        else build_unet(text_encoder.config.hidden_size)
    )
    unet.to(device(), memory_format=torch.channels_last)
    fast_attention(unet)

    specs = specs_of(args.scenes, "train", 1)
    train = scenes(specs)
    low = resized(train, SIDE // FACTOR)
    files = sorted((folder / "vae").glob("*.safetensors"))
    about = repr((specs, [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]))
    path = STATE / f"latents-{SIDE}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.pt"
    if not path.exists():
        torch.save(latents_of(vae, train), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    latents = torch.load(path)
    print(
        f"{sum(p.numel() for p in unet.parameters()):,} parameters, {len(specs)} scenes, latents of mean {latents.float().mean():.3f} "
        f"and std {latents.float().std():.3f}",
        flush=True,
    )
    noise, low_noise = DDIMScheduler(**SCHEDULER), DDPMScheduler(**LOW_RES_SCHEDULER)
    rng, side = random.Random(), args.crop // FACTOR

    @torch.no_grad()
    def embedded(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        return text_encoder(ids.input_ids.to(device()))[0]

    def offset(like: Tensor) -> Tensor:
        """Noise that is the same over a whole crop and over patches of 8 latents (Guttenberg 2023, offset noise). White noise leaves the
        mean colour of a patch readable, so a UNet learns to take it from the noisy latents: what its first steps got wrong then stays
        wrong. Under this noise only the small picture tells the colour, and every step sets it right."""
        n, c, h, w = like.shape
        strength = 0.5 * torch.rand(n, 1, 1, 1, device=like.device)
        noise = torch.randn(n, c, 1, 1, device=like.device), torch.randn(n, c, h // 8, w // 8, device=like.device)
        return strength * sum(interpolate(one, (h, w)) for one in noise)

    def loss_of(_) -> Tensor:
        crops, clean, words = [], [], []
        for i in [rng.randrange(len(specs)) for _ in range(args.batch)]:
            y, x = corner(rng, low[i], side)
            crops.append(low[i, y : y + side, x : x + side])
            clean.append(latents[i, :, y : y + side, x : x + side])
            words.append("" if rng.random() < 0.1 else caption(specs[i], rng))
        x0, picture = torch.stack(clean).to(device()).float(), to_tensor(np.stack(crops))
        # Low levels are what is used: half are under 20, the pipeline's default.
        level = (torch.rand(args.batch, device=device()) ** 5 * (MAX_NOISE_LEVEL + 1)).long()
        picture = low_noise.add_noise(picture, torch.randn_like(picture), level)
        # One timestep from each of as many equal parts as the batch is large: a calmer loss than of independent ones. The square root puts
        # more of them where the first steps of a run are, whose colours the later ones take for granted.
        t = (((torch.arange(args.batch) + torch.rand(args.batch)) / args.batch).sqrt() * 1000).long().to(device())
        eps = torch.randn_like(x0) + offset(x0)
        x = torch.cat([noise.add_noise(x0, eps, t), picture], 1).contiguous(memory_format=torch.channels_last)
        text = embedded(words)
        with mixed():
            out = unet(x, t, encoder_hidden_states=text, class_labels=level).sample.float()
        # An error of v is one of x0 divided by the noise's share. With equal weights half of the gradient came from t < 200, where x0 is
        # all but seen and the small picture, which is what has to be learned, hardly counts.
        share = (1 - noise.alphas_cumprod.to(t.device)[t]).clamp(min=0.05)
        error = out - noise.get_velocity(x0, eps, t)
        # The second term is the error of colour over patches of 8 latents. It is in the first one too, but there under the noise of what
        # the small picture leaves open; normalisation makes plain areas hard to get exactly right, and the eye sees it if they are not.
        return (share * (error.square().mean((1, 2, 3)) + 3 * avg_pool2d(error, 8).square().mean((1, 2, 3)))).mean()

    unseen = specs_of(4, "test", 2)
    pictures = np.stack([compose(s, SIDE).picture for s in unseen])
    truth, small = to_tensor(pictures), resized(pictures, SIDE // FACTOR)
    print(f"bicubic {scores(to_tensor(resized(small, SIDE)), truth)}, the VAE's ceiling ", end="", flush=True)
    with torch.no_grad():
        print(scores(torch.cat([vae.decode(vae.encode(x[None]).latent_dist.mode()).sample for x in truth]), truth), flush=True)

    @torch.no_grad()
    def report(steps: int = 8) -> str:
        """Four unseen scenes, made whole (crops are normalised by other means and variances, and come out worse), without guidance;
        always from the same noise."""
        state = torch.get_rng_state()
        torch.manual_seed(5)
        noise.set_timesteps(steps)
        text, made = embedded([caption(s, random.Random(0)) for s in unseen]), []
        for i, picture in enumerate(to_tensor(small)):
            x = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR).to(device())
            for t in noise.timesteps:
                level = torch.zeros(1, dtype=torch.long, device=device())
                out = unet(torch.cat([x, picture[None]], 1), t, encoder_hidden_states=text[i : i + 1], class_labels=level).sample
                x = noise.step(out, t, x).prev_sample
            made.append(vae.decode(x / SCALING).sample)
        torch.set_rng_state(state)
        return f"PSNR of unseen scenes {scores(torch.cat(made), truth)} at noise level 0, {steps} steps"

    train_loop(
        f"{folder.name}-unet",
        {"unet": unet},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate or 1e-3,
        report=report,
        decay=0.999,
        every=8,
    )
    save(folder, unet)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--stage", choices=["vae", "preview", "unet"], required=True)
    ask.add_argument("--minutes", type=float, default=60, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--scenes", type=int, default=1000, help="0.8 MB on disk each")
    ask.add_argument("--crop", type=int, help="pixels of a crop's side (default: 128 for the VAE, 256 for the UNet)")
    ask.add_argument("--batch", type=int, help="crops (default: 4)")
    ask.add_argument("--rate", type=float, help="peak learning rate (default: 1e-3)")
    ask.add_argument("--again", action="store_true", help="begin with the weights in the model's folder, where no state is left")
    ask.add_argument("--model", default="emoji-upscale")
    args = ask.parse_args()
    args.batch = args.batch or 4
    args.crop = args.crop or {"vae": 128, "unet": 256}.get(args.stage)
    torch.manual_seed(0)
    (MODELS / args.model).mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "preview": fit_preview, "unet": train_unet}[args.stage](args, MODELS / args.model)


if __name__ == "__main__":
    main()
