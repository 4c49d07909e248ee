"""Trains the autoencoder: 128 px pictures <-> 4 x 16 x 16 latents (Rombach et al. 2022, section 3.1, without the discriminator).

    python scripts/train_vae.py --minutes 40            # resumes by itself; stops by itself
    python scripts/train_vae.py --again --minutes 40    # where no training state is left: on from the weights in assets/
    python scripts/train_vae.py --decoder --minutes 20  # afterwards: the decoder alone, so that trained UNets stay valid
    python scripts/train_vae.py --keep 1 --minutes 75   # both halves, the latents held near what trained UNets know

Loss: the logarithm of each picture's MSE, which is its PSNR, + 3 L1 + 1e-4 KL per latent value. (A KL weight of 2e-3 blurs and
collapses a channel.) The latents get a little noise on the way: what a UNet makes is never quite right, and the decoder learns to look
past it. With --keep, + its weight times the squared distance of each latent value from the one of the weights that it began with.
"""

import argparse
import copy
import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from scenes import compose, sample_spec
from training import MODELS, SHARD, device, mixed, train_loop, write_manifest


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


def deepened(vae: AutoencoderKL, layers: int) -> AutoencoderKL:
    """The same autoencoder with more residual blocks a level. The new ones begin as the identity: their last convolution is zero."""
    whole = AutoencoderKL.from_config({**vae.config, "layers_per_block": layers})
    state = whole.state_dict()
    for name, weight in state.items():
        if "resnets" in name and "conv2" in name:
            weight.zero_()
    whole.load_state_dict(state | vae.state_dict())
    return whole


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=40, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--channels", type=int, nargs=4, default=[32, 48, 96, 128])
    ask.add_argument("--layers", type=int, default=1, help="residual blocks a level of the encoder; the decoder has one more")
    ask.add_argument("--scenes", type=int, default=10000)
    ask.add_argument("--batch", type=int, default=4)
    ask.add_argument("--rate", type=float, default=1e-3)
    ask.add_argument("--noise", type=float, default=0.1, help="of the latents' standard deviation, at most")
    ask.add_argument("--again", action="store_true", help="begin with the weights in the model's folder")
    ask.add_argument("--decoder", action="store_true", help="the encoder rests: latents stay what trained UNets know")
    ask.add_argument("--keep", type=float, metavar="WEIGHT", help="as --again, and hold the latents near those that it makes now")
    ask.add_argument("--out", default="emoji")
    args = ask.parse_args()

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=args.channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=args.layers,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=args.size,
        mid_block_add_attention=False,
    )
    folder = MODELS / args.out / "vae"
    if args.decoder or args.again or args.keep:
        vae = AutoencoderKL.from_pretrained(folder)
    if args.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    before = copy.deepcopy(vae).requires_grad_(False).to(device(), memory_format=torch.channels_last) if args.keep else None
    if args.layers > vae.config.layers_per_block:
        vae = deepened(vae, args.layers)
    vae.to(device(), memory_format=torch.channels_last)

    rng = np.random.default_rng(0)
    train, unseen = pictures(args.scenes, args.size, 1, "train"), pictures(96, args.size, 2, "test")
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(train)} scenes", flush=True)

    def loss_of(_) -> Tensor:
        x = to_tensor(train[rng.integers(0, len(train), args.batch)]).contiguous(memory_format=torch.channels_last)
        with mixed():
            latents = vae.encode(x).latent_dist
            z = latents.sample()
            z = z + args.noise * torch.rand(len(z), 1, 1, 1, device=z.device) * z.std() * torch.randn_like(z)
            error = vae.decode(z).sample.float() - x
            moved = (latents.mean - before.encode(x).latent_dist.mean).square().mean() if before is not None else 0.0
        kl = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).float().mean()
        return (
            (error.square().mean((1, 2, 3)) + 1e-4).log().mean() + 3 * error.abs().mean() + 1e-4 * kl + (args.keep or 0) * moved
        )

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
    if not args.decoder and before is None:
        vae.register_to_config(scaling_factor=round(1 / latent_std(vae, train[:512]), 5))
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    # Half the bytes to clone; readers get float32.
    vae.half().to(memory_format=torch.contiguous_format).save_pretrained(folder, max_shard_size=SHARD)
    write_manifest(folder.parent)


if __name__ == "__main__":
    main()
