"""Trains the autoencoder: 128 px pictures <-> 4 x 16 x 16 latents (Rombach et al. 2022, section 3.1, without the discriminator).

    python scripts/train_vae.py --minutes 40            # resumes by itself; stops by itself
    python scripts/train_vae.py --decoder --minutes 20  # afterwards: the decoder alone, so that trained UNets stay valid

Loss: L1 + 5 MSE + L1 of 8 px means + 0.2 L1 of the picture's gradients + 3e-5 KL per latent value.
(A KL weight of 2e-3 blurs and collapses a channel.)
"""

import argparse
import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from scenes import compose, sample_spec
from training import MODELS, SHARD, device, train_loop, write_manifest

NOISE = 0.15  # of the latents' standard deviation, at most, while the decoder trains alone


def pictures(count: int, size: int, seed: int, split: str) -> np.ndarray:
    """(count, size, size, 3) uint8."""
    rng = random.Random(seed)
    return np.stack([compose(sample_spec(rng, split), size).picture for _ in range(count)])


def to_tensor(batch: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2).to(device()).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL, batch: np.ndarray) -> float:
    """Mean over pictures of 10 log10(1 / MSE), pixels in [0, 1], through the latents' mean."""
    values = []
    for part in np.array_split(batch, max(1, len(batch) // 16)):
        x = to_tensor(part)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((x - y) / 2).square().mean((1, 2, 3))))
    return torch.cat(values).mean().item()


@torch.no_grad()
def latent_std(vae: AutoencoderKL, batch: np.ndarray) -> float:
    return (
        torch.cat([vae.encode(to_tensor(p)).latent_dist.sample() for p in np.array_split(batch, max(1, len(batch) // 16))])
        .std()
        .item()
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=40, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--channels", type=int, nargs=4, default=[32, 48, 96, 128])
    ask.add_argument("--scenes", type=int, default=10000)
    ask.add_argument(
        "--batch", type=int, default=8, help="64 px crops a step; after 30 %% of the time, whole pictures, a third as many"
    )
    ask.add_argument("--rate", type=float, default=1e-3)
    ask.add_argument("--decoder", action="store_true", help="the encoder rests: latents stay what trained UNets know")
    ask.add_argument("--out", default="emoji")
    args = ask.parse_args()

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=args.channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=args.size,
        mid_block_add_attention=False,  # trained on crops, used on whole pictures: attention would see another size
    )
    folder = MODELS / args.out / "vae"
    if args.decoder:
        vae = AutoencoderKL.from_pretrained(folder)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.to(device(), memory_format=torch.channels_last)

    rng = np.random.default_rng(0)
    train, unseen = pictures(args.scenes, args.size, 1, "train"), pictures(96, args.size, 2, "test")
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(train)} scenes", flush=True)

    def crop(picture: np.ndarray, side: int) -> np.ndarray:
        """Of four random places the busiest: flat background teaches little."""
        places = [rng.integers(0, args.size - side + 1, 2) for _ in range(4)]
        return max((picture[y : y + side, x : x + side] for y, x in places), key=lambda c: c[::4, ::4].std())

    def loss_of(clock) -> Tensor:
        whole = args.decoder or clock.progress > 0.3
        side, count = (args.size, max(1, round(args.batch / 2.7))) if whole else (args.size // 2, args.batch)
        x = to_tensor(np.stack([crop(train[i], side) for i in rng.integers(0, len(train), count)]))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16):
            latents = vae.encode(x).latent_dist
            z = latents.sample()
            if args.decoder:  # what a UNet makes is never quite right: the decoder learns to look past such noise
                z = z + torch.rand(len(z), 1, 1, 1, device=z.device) * NOISE / vae.config.scaling_factor * torch.randn_like(z)
            y = vae.decode(z).sample.float()
        error = y - x
        slope = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).float().mean()
        # Whole areas a shade off cost more than their share of L1: group norms make a flat area's colour the hardest thing to keep.
        tint = nn.functional.avg_pool2d(error, 8).abs().mean()
        return error.abs().mean() + 5 * error.square().mean() + tint + 0.2 * slope + 3e-5 * kl

    train_loop(
        f"{args.out}-vae" + ("-decoder" if args.decoder else ""),
        {"vae": vae},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate,
        report=lambda: f"PSNR of unseen scenes {psnr(vae, unseen):.2f} dB, latent std {latent_std(vae, unseen):.3f}",
        decay=0.998,
    )
    if not args.decoder:
        vae.register_to_config(scaling_factor=round(1 / latent_std(vae, train[:512]), 5))
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    vae.to(memory_format=torch.contiguous_format).save_pretrained(folder, max_shard_size=SHARD)
    write_manifest(folder.parent)


if __name__ == "__main__":
    main()
