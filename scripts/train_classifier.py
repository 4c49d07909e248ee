"""Trains the judge of generated pictures (core/judge.py) on composed scenes, and measures it on scenes it has not seen.

    python scripts/train_classifier.py --minutes 12   # resumes by itself; stops by itself; wants assets/models/emoji/vae
    python scripts/train_classifier.py --again --scenes 6000 --minutes 8 --rate 1e-3   # on from the judge in assets/, for new names

Generated pictures are blurred, noisy and slightly wrong in colour: so is a part of what the judge learns from, half of it through
the VAE with noise in the latents, which leaves the faults that a UNet leaves. Loss: cross entropy of each cell's division among the
objects (the masks are known), of background and of style, and of each object's presence.

--again: first the last layer alone, on what the rest sees already, then all of it. The last layer alone tells 172 names apart on real
scenes (98 %), but not through the VAE (88 %), and a judge of generated pictures that errs there calls good pictures wrong.
A second call goes on from the first one's judge (delete the training state in between).
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from scenes import BACKGROUNDS, HELD_OUT, OBJECTS, STYLES, Spec, compose, sample_spec
from train_vae import to_tensor
from training import MODELS, device, load_state, mixed, train_loop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core.judge import FOLDER, GRID, SIDE, Judge, Verdict, load_judge

NAMES = [*OBJECTS, *HELD_OUT]


@dataclass(frozen=True)
class Lessons:
    """Scenes as arrays, N of them."""

    pictures: np.ndarray  # (N, 128, 128, 3) uint8
    objects: np.ndarray  # (N, 2) index of each object in NAMES; -1 where there is no second one
    cover: np.ndarray  # (N, 2, 8, 8) float32, share of each cell that the object covers
    background: np.ndarray  # (N,) index
    style: np.ndarray  # (N,) index


def judged_spec(rng: random.Random) -> Spec:
    """Any scene, held-out triples too: the judge must know what the generator has never seen. The held-out subjects stand in for
    others as often as each of those comes; they wear no hats."""
    spec = sample_spec(rng, "any")
    if spec.relation == "wearing":
        return spec
    share = len(HELD_OUT) / len(NAMES)
    strangers = iter(rng.sample(list(HELD_OUT), 2))
    return replace(spec, objects=tuple(next(strangers) if rng.random() < share else name for name in spec.objects))


def lessons(count: int, seed: int) -> Lessons:
    rng = random.Random(seed)
    made = Lessons(
        pictures=np.empty((count, SIDE, SIDE, 3), np.uint8),
        objects=np.full((count, 2), -1),
        cover=np.zeros((count, 2, GRID, GRID), np.float32),
        background=np.empty(count, np.int64),
        style=np.empty(count, np.int64),
    )
    step = SIDE // GRID
    for i in range(count):
        scene = compose(judged_spec(rng), SIDE)
        n = len(scene.masks)
        made.pictures[i] = scene.picture
        made.objects[i, :n] = [NAMES.index(name) for name in scene.spec.objects]
        made.cover[i, :n] = scene.masks.reshape(n, GRID, step, GRID, step).mean((2, 4))
        made.background[i] = list(BACKGROUNDS).index(scene.spec.background)
        made.style[i] = STYLES.index(scene.spec.style)
    return made


def first(real: Lessons, count: int) -> Lessons:
    return Lessons(*(getattr(real, field)[:count] for field in Lessons.__dataclass_fields__))


@torch.no_grad()
def through_vae(vae: AutoencoderKL, batch: np.ndarray, noise: float) -> np.ndarray:
    """Pictures as the VAE gives them back, with up to so much noise (of the latents' own size) added in between. uint8 to uint8."""
    back = []
    for part in np.array_split(batch, max(1, len(batch) // 16)):
        latents = vae.encode(to_tensor(part)).latent_dist.mode()
        amount = noise * torch.rand(len(latents), 1, 1, 1, device=latents.device) / vae.config.scaling_factor
        pictures = vae.decode(latents + amount * torch.randn_like(latents)).sample.clamp(-1, 1)
        back.append(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(back)


def worn(x: Tensor) -> Tensor:
    """The batch with slight faults: a third blurred, all with a little noise, contrast and tint; too little to change a colour's name."""

    def some(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(len(x), channels, 1, 1, device=x.device).uniform_(low, high)

    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, some(-2, 1).clamp(min=0))
    x = x * some(0.93, 1.07) + some(-0.05, 0.05, 3)
    return (x + some(0, 0.08) * torch.randn_like(x)).clamp(-1, 1)


def verdict_of(judge: Judge, pictures: np.ndarray) -> Verdict:
    """What the judge, at rest, says of uint8 pictures, in batches."""
    training, parts = judge.training, []
    judge.eval()
    with torch.no_grad():
        parts = [judge(to_tensor(part)) for part in np.array_split(pictures, max(1, len(pictures) // 64))]
    judge.train(training)
    return Verdict(*(torch.cat([getattr(p, field) for p in parts]).cpu() for field in Verdict.__dataclass_fields__))


def accuracy(judge: Judge, real: Lessons, pictures: np.ndarray | None = None) -> dict[str, float]:
    """Shares of the scenes judged right. objects: every object of the scene, and these before all others."""
    verdict = verdict_of(judge, real.pictures if pictures is None else pictures)
    objects = torch.from_numpy(real.objects)
    first, second = verdict.objects.topk(2, dim=1).indices.T
    pair = objects[:, 1] >= 0
    alone = first == objects[:, 0]
    both = ((first == objects[:, 0]) & (second == objects[:, 1])) | ((first == objects[:, 1]) & (second == objects[:, 0]))
    n = torch.arange(len(objects))
    mass = torch.from_numpy(real.cover)
    places = (torch.arange(GRID) + 0.5) / GRID
    true = torch.stack([(mass.sum(2) * places).sum(2), (mass.sum(3) * places).sum(2)], 2) / (mass.sum((2, 3))[..., None] + 1e-9)
    found = torch.stack([verdict.centres[n, objects[:, k]] for k in (0, 1)], 1)
    ways = (true[:, 0] - true[:, 1]).abs().argmax(1)  # the axis on which the two stand apart
    order = torch.stack([(t[:, 0] < t[:, 1])[n, ways] for t in (true, found)])
    shares = {
        "object": alone[~pair],
        "both objects": both[pair],
        "objects": torch.where(pair, both, alone),
        "order": (order[0] == order[1])[pair],
        "background": verdict.background.argmax(1) == torch.from_numpy(real.background),
        "style": verdict.style.argmax(1) == torch.from_numpy(real.style),
    }
    return {name: round(hits.float().mean().item(), 4) for name, hits in shares.items()}


def told(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


def renamed(old: Judge, names: list[str]) -> Judge:
    """The same judge for other names: planes of names that it knows are kept, new ones begin at random."""
    new = Judge(names, old.backgrounds, old.styles, old.width)
    state = {k: v for k, v in old.state_dict().items() if not k.startswith("cells.")}
    new.load_state_dict(state, strict=False)
    with torch.no_grad():
        for place, name in enumerate([*names, "nothing"]):
            if name in old.names or name == "nothing":
                known = old.names.index(name) if name in old.names else len(old.names)
                new.cells.weight[place], new.cells.bias[place] = old.cells.weight[known], old.cells.bias[known]
    return new


def divisions(cover: Tensor, objects: Tensor) -> Tensor:
    """(N, names + 1, 8, 8): each cell's shares. A missing second object is -1, that is the last plane, "nothing"; it covers none."""
    division = torch.zeros(len(objects), len(NAMES) + 1, GRID, GRID, device=cover.device)
    division.scatter_add_(1, (objects % (len(NAMES) + 1))[:, :, None, None].expand_as(cover), cover)
    division[:, -1] += 1 - cover.sum(1)
    return division


def loss_of_cells(division: Tensor, verdict: Verdict) -> Tensor:
    """Cross entropy of each cell's division, and of each object's presence."""
    present = division[:, :-1].sum((2, 3)).gt(0).float()
    presence = F.binary_cross_entropy_with_logits(verdict.objects, present, reduction="sum") / len(present)
    return -(division * verdict.cells).sum(1).mean() + presence


def learn_names(judge: Judge, train: Lessons, steps: int = 600, batch: int = 128, rate: float = 1e-2) -> None:
    """Trains the last layer alone, on what the rest sees of the scenes: worn ones and clean ones."""
    judge.eval().requires_grad_(False)
    judge.cells.requires_grad_(True)
    seen = []
    with torch.no_grad():
        for wear in (worn, lambda x: x):
            parts = np.array_split(train.pictures, max(1, len(train.pictures) // 64))
            seen.append(torch.cat([judge.trunk(wear(to_tensor(part))) for part in parts]))
    truth = divisions(*(torch.from_numpy(a).to(device()) for a in (train.cover, train.objects)))
    optimizer = torch.optim.AdamW(judge.cells.parameters(), lr=rate, weight_decay=1e-4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps) + rate / 100
        rows = torch.randint(len(truth), (batch,))
        loss = loss_of_cells(truth[rows], judge.judged(seen[step % 2][rows]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"judge: step {step} of {steps} · loss {loss.item():.3f}", flush=True)
    judge.requires_grad_(True).train()


def save_judge(judge: Judge, accuracy: dict[str, float], folder: Path = FOLDER) -> None:
    """Half precision: under 3 MB. The names go with it, so that a judge means the same when scenes.py changes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    save_file({k: v.contiguous().cpu() for k, v in state.items()}, folder / "model.safetensors")
    config = {
        "names": judge.names,
        "backgrounds": judge.backgrounds,
        "styles": judge.styles,
        "width": judge.width,
        "accuracy": accuracy,  # on unseen real scenes, see accuracy()
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=12, help="this call stops after so long, composing the scenes not counted")
    ask.add_argument("--plan", type=float, help="minutes of the whole training, over which the rate decays (default: --minutes)")
    ask.add_argument("--scenes", type=int, default=16000)
    ask.add_argument("--unseen", type=int, default=2000, help="scenes of the final measurement")
    ask.add_argument("--batch", type=int, default=64)
    ask.add_argument("--rate", type=float, default=3e-3)
    ask.add_argument("--model", default="emoji", help="whose VAE wears half of the scenes")
    ask.add_argument("--again", action="store_true", help="begin with the judge in assets/, where no training state is left")
    args = ask.parse_args()

    torch.manual_seed(0)
    judge = renamed(load_judge(), NAMES) if args.again else Judge(NAMES, list(BACKGROUNDS), STYLES)
    judge.to(device(), memory_format=torch.channels_last).train()
    train, unseen = lessons(args.scenes, seed=11), lessons(args.unseen, seed=12)
    folder = MODELS / args.model / "vae"
    vae = AutoencoderKL.from_pretrained(folder).to(device()).eval() if folder.exists() else None
    if vae is None:
        print(f"There is no {folder}: the judge learns from clean scenes only. Train it again when there is one.", flush=True)
    else:
        train.pictures[::2] = through_vae(vae, train.pictures[::2], noise=0.35)
    print(f"{sum(p.numel() for p in judge.parameters()):,} parameters, {args.scenes} scenes", flush=True)
    if args.again and load_state("judge") is None and load_judge().names != NAMES:
        learn_names(judge, train)

    def loss_of(clock) -> Tensor:
        chosen = torch.randint(len(train.pictures), (args.batch,)).numpy()
        x = worn(to_tensor(train.pictures[chosen]))
        objects, cover, background, style = (
            torch.from_numpy(a[chosen]).to(device()) for a in (train.objects, train.cover, train.background, train.style)
        )
        division = divisions(cover, objects)
        if torch.rand(()) < 0.5:  # emoji are nearly symmetric, and order is measured on the map, which turns with the picture
            x, division = x.flip(3), division.flip(3)
        with mixed():
            verdict = judge(x)
        return (
            loss_of_cells(division, verdict)
            + F.cross_entropy(verdict.background, background)
            + F.cross_entropy(verdict.style, style)
        )

    small = first(unseen, 500)
    train_loop(
        "judge",
        {"judge": judge},
        loss_of,
        minutes=args.minutes,
        plan=args.plan or args.minutes,
        peak=args.rate,
        report=lambda: f"unseen scenes: {told(accuracy(judge, small))}",
        decay=0.998,
        every=2.0,
    )
    finish(judge, unseen, vae)


def finish(judge: Judge, unseen: Lessons, vae: AutoencoderKL | None) -> None:
    """Measures the judge and writes it into assets/."""
    shares = accuracy(judge, unseen)
    print(f"{len(unseen.pictures)} unseen scenes: {told(shares)}", flush=True)
    if vae is not None:
        some = first(unseen, 500)
        print(f"500 through the VAE: {told(accuracy(judge, some, through_vae(vae, some.pictures, noise=0)))}", flush=True)
    if shares["objects"] < 0.97 or shares["background"] < 0.99:
        raise SystemExit("The judge is too weak: 97 % of objects and 99 % of backgrounds are the least. Train it longer.")
    save_judge(judge, shares)


if __name__ == "__main__":
    main()
