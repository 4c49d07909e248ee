"""Trains the text encoder and the UNet together, on latents of captioned scenes (Rombach et al. 2022, eq. 3).

    python scripts/train_unet.py --minutes 80 --plan 160   # twice: resumes by itself, stops by itself
    python scripts/train_unet.py --minutes 60 --again      # on another machine: on from the weights in assets/, with a new optimizer
    python scripts/train_unet.py --minutes 75 --grow 82   # more objects: on from the weights in assets/, for those after the first 82
    python scripts/train_unet.py --minutes 0 --toy FOLDER  # an untrained model of the same shape, for tests of the page

Loss: mean squared error of the noise prediction with min-SNR weights (Hang et al. 2023, gamma 5), noise levels as in SD 1.5, 10 % empty
captions, which is what classifier-free guidance needs. All 77 positions are trained: the pipelines use 77.

--grow lets the text encoder rest but for the rows of the new words: a caption of known words is the same 77 vectors as before, and the
models that were grown from this one (inpainting, depth, super-resolution) stay as good as they were.
"""

import argparse
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scenes import ALIASES, OBJECTS, Spec, caption, compose, sample_spec
from train_vae import to_tensor
from training import MODELS, SHARD, device, fast_attention, kept, mixed, train_loop, write_manifest

# As in SD 1.5's scheduler_config.json; nothing else, so that each scheduler keeps its own defaults (spacing of timesteps).
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def build(
    size: int, width: int, layers: int, channels: list[int], tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Untrained parts for size x size latents. The text encoder has the whole vocabulary: 49,408 rows."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=channels,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, in spite of its name
        cross_attention_dim=width,
        norm_num_groups=16,
    )
    return text_encoder, unet


class Vocabulary:
    """The few hundred tokens that captions use, so that the optimizer need not carry 49,408 rows: ids <-> rows of a small table."""

    def __init__(self, tokenizer: CLIPTokenizer, specs: list[Spec]):
        rng = random.Random(6)
        self.tokenizer, self.known = tokenizer, {}
        texts = ["", *(caption(s, rng) for s in specs for _ in range(2))]
        self.ids = torch.tensor(sorted({i for row in tokenizer(texts).input_ids for i in row}))
        self.rows = torch.full((len(tokenizer),), -1)
        self.rows[self.ids] = torch.arange(len(self.ids))

    def __call__(self, texts: list[str]) -> Tensor:
        """Captions -> rows (B, 77), each distinct caption tokenised once."""
        for new in {t for t in texts if t not in self.known}:
            ids = self.tokenizer(new, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True).input_ids
            self.known[new] = self.rows[torch.tensor(ids)]
            assert self.known[new].min() >= 0, f"{new!r} uses a token that no sampled caption has"
        return torch.stack([self.known[t] for t in texts]).to(device())

    def shrink(self, text_encoder: CLIPTextModel) -> None:
        table = text_encoder.get_input_embeddings().weight.data[self.ids]
        text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(table.clone(), freeze=False))

    def only_new(self, text_encoder: CLIPTextModel, specs: list[Spec], first: int) -> Tensor:
        """Of a text encoder that shrink() has made, only the words that no scene of the first objects needs are trained. They begin as
        long as trained words are. Returns their rows."""
        old, rng = set(list(OBJECTS)[:first]), random.Random(9)
        texts = [*old, *(ALIASES[name] for name in old & set(ALIASES))]
        texts += [caption(s, rng) for s in specs if set(s.objects) <= old for _ in range(2)]
        known = self.rows[torch.tensor(sorted({i for row in self.tokenizer(texts).input_ids for i in row}))]
        fresh = torch.ones(len(self.ids), dtype=torch.bool)
        fresh[known[known >= 0]] = False
        text_encoder.requires_grad_(False)
        table = text_encoder.get_input_embeddings().weight
        table.data[fresh] *= table.data[~fresh].std() / table.data[fresh].std()
        table.requires_grad_(True)
        table.register_hook(lambda slope: slope * fresh[:, None].to(slope.device))
        return fresh.nonzero()[:, 0]

    def grow(self, text_encoder: CLIPTextModel, whole: CLIPTextModel) -> CLIPTextModel:
        """The trained weights in a text encoder of the whole vocabulary; tokens that were never trained keep their first, small, values."""
        key = next(k for k in whole.state_dict() if k.endswith("token_embedding.weight"))
        table = whole.state_dict()[key].clone()
        state = {k: v.cpu() for k, v in text_encoder.state_dict().items()}
        table[self.ids] = state[key]
        whole.load_state_dict({**state, key: table})
        return whole


class Noise:
    """SD's noise levels (SCHEDULER): noises clean latents, and weighs the error of each level by min-SNR."""

    def __init__(self):
        noise = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k.startswith(("beta", "num"))})
        self.bars = noise.alphas_cumprod.to(device())
        self.snr = self.bars / (1 - self.bars)

    def add(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w) -> noised latents, noise, timesteps (B,)."""
        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),), device=x0.device)
        bars = self.bars[t][:, None, None, None]
        return bars.sqrt() * x0 + (1 - bars).sqrt() * eps, eps, t

    def loss(self, out: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        weight = self.snr[t].clamp(max=5) / self.snr[t]
        return (weight * (out - eps).square().mean((1, 2, 3))).mean()


@torch.no_grad()
def on_fixed_noise(loss_of: Callable[[None], Tensor], words: random.Random) -> str:
    """The mean of four batches' losses, always with the same noise and words, so that two reports can be compared."""
    state = torch.get_rng_state(), words.getstate()
    torch.manual_seed(5)
    value = sum(loss_of(None).item() for _ in range(4)) / 4
    torch.set_rng_state(state[0])
    words.setstate(state[1])
    return f"loss of the average on fixed noise {value:.4f}"


def posterior(vae: AutoencoderKL, pictures: Tensor) -> DiagonalGaussianDistribution:
    with mixed():
        return vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist


def sampled(count: int, favour: int | None = None, pairs: int = 0) -> list[Spec]:
    """So many scenes, and so many more of two objects: those are what a UNet learns last."""
    rng = random.Random(3)
    some = [sample_spec(rng, "train", favour=favour) for _ in range(count)]
    return some + [sample_spec(rng, "train", rng.choice(["left of", "above"]), favour) for _ in range(pairs)]


@torch.no_grad()
def encoded(vae: AutoencoderKL, specs: list[Spec], size: int) -> tuple[Tensor, Tensor]:
    """The mean and std of the scenes' latents, (N, 4, h, w) float16, scaled to unit variance; kept on disk."""
    # Everything that the latents depend on names the file.
    about = [
        vae.encoder.conv_in.weight.sum().item(),
        vae.config.scaling_factor,
        specs,
        size,
        Path(__file__).with_name("scenes.py").read_text(),
    ]

    def make() -> tuple[Tensor, Tensor]:
        means, stds = [], []
        vae.to(memory_format=torch.channels_last)
        for start in range(0, len(specs), 32):
            latents = posterior(vae, to_tensor(np.stack([compose(s, size).picture for s in specs[start : start + 32]])))
            means.append((latents.mean.float() * vae.config.scaling_factor).half().cpu().contiguous())
            stds.append((latents.std.float() * vae.config.scaling_factor).half().cpu().contiguous())
            if start % 6400 == 0:
                print(f"latents: {start} of {len(specs)}", flush=True)
        return torch.cat(means), torch.cat(stds)

    return kept("latents", about, make)


def preview_matrix(vae: AutoencoderKL, specs: list[Spec], means: Tensor, size: int) -> list[list[float]]:
    """The 4 x 3 matrix, with a row for the offset, that turns latents into an eighth-size picture best (least squares)."""
    pictures = torch.cat([to_tensor(compose(s, size).picture[None]) for s in specs])
    small = nn.functional.interpolate(pictures, size=means.shape[-2:], mode="area").cpu()
    a = means.float().permute(0, 2, 3, 1).reshape(-1, 4)
    a = torch.cat([a, torch.ones(len(a), 1)], 1)  # (N h w, 5)
    b = small.permute(0, 2, 3, 1).reshape(-1, 3)
    return [[round(v, 5) for v in row] for row in torch.linalg.lstsq(a, b).solution.tolist()]


def save(folder: Path, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
    for part in ("text_encoder", "unet"):  # a re-run may need fewer shards
        for old in (folder / part).glob("*.safetensors*"):
            old.unlink()
    # The table of 49,408 embeddings is one tensor and cannot be sharded: half precision keeps it under 9 MB. Readers get float32.
    # The fifth transformers leaves "text_model." out of the names, and the fourth would draw new weights.
    words = {f"text_model.{n.removeprefix('text_model.')}": w for n, w in text_encoder.half().state_dict().items()}
    text_encoder.save_pretrained(folder / "text_encoder", state_dict=words, max_shard_size="9MB")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    unet.half().to(memory_format=torch.contiguous_format).save_pretrained(
        folder / "unet", max_shard_size=SHARD
    )  # half the bytes to clone; readers get float32
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    write_manifest(folder)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=80, help="this call stops after so long")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--size", type=int, default=128, help="pixels; latents are an eighth")
    ask.add_argument("--scenes", type=int, default=30000)
    ask.add_argument("--pairs", type=int, default=0, help="so many more scenes of two objects")
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--rate", type=float, default=1.2e-3)
    ask.add_argument("--width", type=int, default=88, help="of the text encoder")
    ask.add_argument("--layers", type=int, default=4, help="of the text encoder")
    ask.add_argument("--channels", type=int, nargs=3, default=[64, 128, 192])
    ask.add_argument("--model", default="emoji")
    ask.add_argument(
        "--again", action="store_true", help="begin with the weights in the model's folder, where no training state is left"
    )
    ask.add_argument("--grow", type=int, metavar="N", help="as --again, for the objects after the first N; all other words rest")
    ask.add_argument("--toy", type=Path, help="write an untrained model here and stop")
    args = ask.parse_args()

    folder = MODELS / args.model
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    text_encoder, unet = build(args.size // 8, args.width, args.layers, args.channels, tokenizer)
    if args.toy:
        channels = [32, 48, 96, 128]
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae = AutoencoderKL(block_out_channels=channels, **kinds, latent_channels=4, norm_num_groups=8, sample_size=args.size)
        tokenizer.save_pretrained(args.toy / "tokenizer")
        vae.save_pretrained(args.toy / "vae")
        return save(args.toy, text_encoder, unet)

    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device())
    specs = sampled(args.scenes, args.grow, args.pairs)
    means, stds = encoded(vae, specs, args.size)
    if not args.grow:  # where the VAE is the same, so is the matrix
        (folder / "preview.json").write_text(json.dumps(preview_matrix(vae, specs[:512], means[:512], args.size)) + "\n")
    del vae
    if args.again or args.grow:
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    ids_of = Vocabulary(tokenizer, specs)
    whole = copy.deepcopy(text_encoder)
    ids_of.shrink(text_encoder)
    if args.grow:
        print(f"{len(ids_of.only_new(text_encoder, specs, args.grow))} new words", flush=True)
    unet.to(device(), memory_format=torch.channels_last)
    text_encoder.to(device())
    fast_attention(unet)
    if device().type == "cpu":
        text_encoder.set_attn_implementation("eager")
    count = sum(p.numel() for m in (unet, text_encoder) for p in m.parameters())
    print(f"{count:,} parameters, {len(ids_of.ids)} tokens, {len(specs)} scenes", flush=True)
    noise, words = Noise(), random.Random(4)

    def loss_of(_) -> Tensor:
        rows = torch.randint(len(specs), (args.batch,))
        mean, std = means[rows].to(device()).float(), stds[rows].to(device()).float()
        x, eps, t = noise.add(mean + std * torch.randn_like(mean))
        ids = ids_of(["" if words.random() < 0.1 else caption(specs[r], words) for r in rows])  # (B, 77)
        with mixed():
            text = text_encoder(ids)[0]  # (B, 77, D)
            out = unet(x, t, encoder_hidden_states=text).sample.float()
        return noise.loss(out, eps, t)

    train_loop(
        f"{folder.name}-unet",
        {"text_encoder": text_encoder, "unet": unet},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate,
        report=lambda: on_fixed_noise(loss_of, words),
        decay=0.999,
        every=4,
    )
    save(folder, ids_of.grow(text_encoder, whole), unet)


if __name__ == "__main__":
    main()
