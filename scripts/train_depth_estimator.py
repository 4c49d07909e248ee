"""Trains the depth estimator of the depth model: a small DPT (Ranftl et al. 2021) on composed scenes, whose depth is known.

    python scripts/train_depth_estimator.py --minutes 15   # resumes by itself, stops by itself; then train_conditioned.py --kind depth
    python scripts/train_depth_estimator.py --minutes 0    # an untrained one, so that the folder opens

Loss: the squared distance to the true depth, before the last ReLU; the background must only lie below 0. So the ReLU makes it exactly
0, which is one rank for all of it. (MiDaS's loss is free in scale and shift, since its data sets differ in both; ours does not. And the
plain distance stays at "background everywhere", the median, for long.)
"""

import argparse
import inspect
import json
import random

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation

import scenes
from scenes import compose, sample_spec
from train_vae import to_tensor
from training import MODELS, SHARD, device, kept, mixed, train_loop, write_manifest

# Written by hand: what transformers saves without torchvision names a class that older versions do not know.
PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "size": {"height": 128, "width": 128},
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 1,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_pad": False,
}


def build(size: int) -> DPTForDepthEstimation:
    """Maps of size x size for pictures of size x size: 16 tokens a side, features of 32, 16, 8 and 4 a side, fused and enlarged."""
    estimator = DPTForDepthEstimation(
        DPTConfig(
            image_size=size,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            backbone_out_indices=[0, 1, 2, 3],
            reassemble_factors=[2, 1, 0.5, 0.25],
            neck_hidden_sizes=[32, 48, 96, 128],
            fusion_hidden_size=48,
            layer_norm_eps=1e-6,
        )
    )
    for part in [*estimator.neck.modules(), *estimator.head.modules()]:
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.reset_parameters()  # DPT's own first weights, of deviation 0.02, let next to nothing through a neck so narrow
    return estimator


def pairs(count: int, size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3) pictures and (N, H, W) depth, both uint8; kept on disk."""

    def make() -> tuple[Tensor, Tensor]:
        rng = random.Random(seed)
        made = [compose(sample_spec(rng, split), size) for _ in range(count)]
        depth = np.stack([(s.depth * 255).round().astype(np.uint8) for s in made])
        return torch.from_numpy(np.stack([s.picture for s in made])), torch.from_numpy(depth)

    return kept(f"depth-{split}", [count, size, seed, inspect.getsource(scenes)], make)


@torch.no_grad()
def spearman(estimator: nn.Module, pictures: Tensor, depth: Tensor) -> float:
    """The mean over pictures of the rank correlation of estimated and true depth, over all pixels."""
    values = []
    for x, y in zip(pictures.split(32), depth.split(32), strict=True):
        guess = estimator(to_tensor(x.numpy())).predicted_depth.float().cpu()
        # Not a number if the estimate is flat, which says nothing about depth.
        values += [np.nan_to_num(spearmanr(g.flatten(), d.flatten()).statistic) for g, d in zip(guess, y, strict=True)]
    return float(np.mean(values))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=15, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--scenes", type=int, default=8000)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--rate", type=float, default=1e-3)
    ask.add_argument("--model", default="emoji-depth")
    ask.add_argument("--again", action="store_true", help="begin with the weights in the model's folder")
    args = ask.parse_args()

    folder = MODELS / args.model
    torch.manual_seed(0)
    estimator = DPTForDepthEstimation.from_pretrained(folder / "depth_estimator") if args.again else build(args.size)
    estimator.to(device())
    if args.minutes > 0:
        train(estimator, args)
    for old in (folder / "depth_estimator").glob("*.safetensors*"):
        old.unlink()
    estimator.save_pretrained(folder / "depth_estimator", max_shard_size=SHARD)
    (folder / "feature_extractor").mkdir(exist_ok=True)
    facts = PROCESSOR | {"size": {"height": args.size, "width": args.size}}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n")
    write_manifest(folder)


def train(estimator: DPTForDepthEstimation, args: argparse.Namespace) -> None:
    # Never used, since the coarsest level has nothing to be added to, and an optimizer wants every gradient.
    estimator.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
    if device().type == "cpu":
        estimator.set_attn_implementation("eager")  # see train_unet.py
    pictures, depth = pairs(args.scenes, args.size, 9, "train")
    unseen = pairs(256, args.size, 10, "test")
    print(f"{sum(p.numel() for p in estimator.parameters()):,} parameters, {len(pictures)} scenes", flush=True)
    head, last = estimator.head.head, len(estimator.head.head) - 1
    relu = head[last]

    def loss_of(_) -> Tensor:
        rows = torch.randint(len(pictures), (args.batch,))
        x, y = to_tensor(pictures[rows].numpy()), depth[rows].to(device()).float() / 255
        flip = (torch.rand(len(x), device=x.device) < 0.5)[:, None, None]
        x, y = torch.where(flip[:, None], x.flip(3), x), torch.where(flip, y.flip(2), y)
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)  # made pictures are never quite clean
        head[last] = nn.Identity()
        with mixed():
            guess = estimator(x).predicted_depth.float()
        head[last] = relu
        return torch.where(y > 0, guess - y, (guess + 0.1).clamp(min=0)).square().mean()

    train_loop(
        f"{args.model}-estimator",
        {"estimator": estimator},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate,
        report=lambda: f"Spearman correlation with the true depth of unseen scenes {spearman(estimator, *unseen):.3f}",
        decay=0.998,
    )


if __name__ == "__main__":
    main()
