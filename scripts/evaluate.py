"""Measures the embedded model: the VAE, what the generated pictures show at each guidance, and what cross-attention points at.

    python scripts/evaluate.py                        # 625 pictures at guidance 4, 150 at each other: about half an hour on two cores
    python scripts/evaluate.py --guidances 2 --best 2 # this one alone; the table keeps what it had of the same weights

Pictures come from diffusers' own StableDiffusionPipeline with DDIM and are judged by judge.py. Prompt i has the same words and the same
noise at every guidance. For N prompts of trained (object, background, style) triples there are N / 4 of held-out triples, in rows of their
own. Writes evaluation.json and evaluation.md into the model's folder after each guidance.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from scenes import STYLES, Spec, caption, compose, sample_spec
from train_classifier import through_vae
from train_vae import pictures, psnr, to_tensor
from training import MODELS, device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core import attention, latents, models, text
from core.judge import FOLDER, Judge, Verdict, load_judge

TIMESTEPS = (200, 300, 400, 500, 600)  # noise at which the attention maps are read: shapes are settled, details are not
COLUMNS = {  # name in the table -> what it is a share of, for the footnotes
    "object": "one-object prompts: the judge's first of all names is the prompt's",
    "both": "two-object prompts: the judge's first two names are the prompt's",
    "both, placed": "the same, of prompts with two objects side by side or one above the other",
    "both, wearing": "the same, of prompts with an animal in a hat",
    "order": "pictures with both objects whose prompt says how they stand: they stand so",
    "background": "prompts that name a background: the judge's colour is that one",
    "style": "all prompts: the judge's style is the prompt's, photo where it names none",
    "named style": "prompts that name a style other than photo",
}


@dataclass(frozen=True)
class Prompt:
    words: str
    spec: Spec
    seed: int
    held_out: bool  # it names a triple that was never trained on
    ground_named: bool
    order_named: bool


def make_prompts(count: int, held_out: bool) -> list[Prompt]:
    """So many different prompts; the first n of them are always the same n."""
    rng = random.Random(31 if held_out else 30)
    found: dict[str, Prompt] = {}
    while len(found) < count:
        spec = sample_spec(rng, "test" if held_out else "train")
        words = caption(spec, rng)
        ground_named = re.search(rf"\b{spec.background} background| on (graded )?{spec.background}$", words) is not None
        if held_out and not ground_named:
            continue  # without its background the triple is not asked for
        order_named = spec.relation == "wearing" or re.search(r" (left of|right of|above|below) ", words) is not None
        seed = 100_000 * (1 + held_out) + len(found)
        found.setdefault(words, Prompt(words, spec, seed, held_out, ground_named, order_named))
    return list(found.values())


# --- pictures -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, prompts: list[Prompt], guidance: float, steps: int) -> Tensor:
    """One batch of pictures (B, 3, H, W) in [-1, 1]."""
    # The pipeline takes every guidance <= 1 for "the prompt alone": guidance 0, "no prompt at all", is the prompt alone of an empty prompt.
    result = pipe(
        [p.words if guidance > 0 else "" for p in prompts],
        guidance_scale=max(1.0, guidance),
        num_inference_steps=steps,
        generator=[torch.Generator("cpu").manual_seed(p.seed) for p in prompts],
        output_type="latent",
    )
    return pipe.vae.decode(result.images / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)


def hits(judge: Judge, verdict: Verdict, prompts: list[Prompt]) -> list[dict[str, bool]]:
    """For each picture the columns that its prompt speaks of, and whether it is right in them."""
    ranked = verdict.objects.topk(2, dim=1).indices.tolist()
    grounds, styles, centres = verdict.background.argmax(1).tolist(), verdict.style.argmax(1).tolist(), verdict.centres.tolist()
    rows = []
    for i, prompt in enumerate(prompts):
        spec, row = prompt.spec, {}
        wanted = [judge.names.index(name) for name in spec.objects]
        if len(wanted) == 1:
            row["object"] = ranked[i][0] == wanted[0]
        else:
            row["both"] = set(ranked[i]) == set(wanted)
            row["both, wearing" if spec.relation == "wearing" else "both, placed"] = row["both"]
            if row["both"] and prompt.order_named:
                (x0, y0), (x1, y1) = (centres[i][k] for k in wanted)
                row["order"] = {"left of": x0 < x1, "above": y0 < y1, "wearing": y1 < y0}[spec.relation]  # the second is the hat
        if prompt.ground_named:
            row["background"] = judge.backgrounds[grounds[i]] == spec.background
        row["style"] = judge.styles[styles[i]] == spec.style
        if spec.style != STYLES[0]:
            row["named style"] = row["style"]
        rows.append(row)
    return rows


def shares(rows: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Column -> share of right ones, and of how many."""
    table: dict[str, dict[str, float]] = {"pictures": {"of": len(rows)}}
    for column in COLUMNS:
        known = [row[column] for row in rows if column in row]
        if known:
            table[column] = {"share": round(sum(known) / len(known), 4), "of": len(known)}
    return table


def apart(prompts: list[Prompt], rows: list[dict[str, bool]]) -> dict[str, dict]:
    """The table's two rows: trained triples and held-out ones."""
    kinds = {"trained": False, "held out": True}
    return {kind: shares([r for p, r in zip(prompts, rows, strict=True) if p.held_out == held]) for kind, held in kinds.items()}


def judged(
    pipe: StableDiffusionPipeline, judge: Judge, prompts: list[Prompt], guidance: float, steps: int, batch: int
) -> dict[str, dict]:
    rows: list[dict[str, bool]] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        rows += hits(judge, judge(generate(pipe, part, guidance, steps)), part)
    return apart(prompts, rows)


def ceiling(pipe: StableDiffusionPipeline, judge: Judge, prompts: list[Prompt], batch: int) -> dict[str, dict]:
    """The same table for the scenes themselves, through the VAE: what the judge would say of a perfect UNet."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    rows: list[dict[str, bool]] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        real = np.stack([compose(p.spec, side).picture for p in part])
        rows += hits(judge, judge(to_tensor(through_vae(pipe.vae, real, noise=0))), part)
    return apart(prompts, rows)


# --- attention ----------------------------------------------------------------------------------------------------------------


def spoken(words: list[str], name: str) -> list[int]:
    """Which of the caption's words are the name's; none if it goes by another name."""
    parts = name.split()
    places = [i for i in range(len(words)) if words[i : i + len(parts)] == parts]
    return list(range(places[0], places[0] + len(parts))) if places else []


@torch.no_grad()
def pointing(folder: Path, count: int) -> dict[str, dict]:
    """Does the heat map of an object's word lie on the object? On real unseen scenes of two objects, whose masks are known: the scene's
    latents, noised, go once through the UNet with its caption. For all layers together and for each alone, at all of TIMESTEPS together
    ("all t") and at each alone:

    pointing: share of words whose map is highest on a pixel of the object.
    miou: mean overlap of the object and the pixels above half of the map's range.
    """
    sd = models.load(str(folder), dtype=torch.float32)
    noiser, rng = DDPMScheduler.from_config(sd.scheduler_config), random.Random(32)
    layers, times = ["all layers", *attention.layers_of(sd.unet)], ["all t", *map(str, TIMESTEPS)]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {layer: {t: [] for t in times} for layer in layers}
    cover, done = [], 0
    while done < count:
        spec = sample_spec(rng, "test", rng.choice(["left of", "above", "wearing"]))
        prompt = caption(spec, rng)
        words = text.tokenize(sd, prompt).words  # (word, its positions among the 77), ...
        places = [spoken([word.lower() for word, _ in words], name) for name in spec.objects]
        if not all(places):
            continue  # called by an alias
        scene = compose(spec, sd.size)
        z = latents.encode(sd, to_tensor(np.stack([scene.picture])))
        steps, embedded = [], text.encode(sd, prompt)
        for t in TIMESTEPS:
            recorder = attention.Recorder(attention.Record())
            noise = latents.noise(sd, sd.size, sd.size, latents.generator(1000 * done + t))
            x = noiser.add_noise(z, noise, torch.tensor([t], device=z.device))
            sd.unet(x, t, encoder_hidden_states=embedded, cross_attention_kwargs={"record": recorder})
            steps.append(recorder.maps)
        for mask, place in zip(scene.masks > 0.5, places, strict=True):
            positions = tuple(k for i in place for k in words[i][1])
            for layer, by_time in found.items():
                chosen = None if layer == "all layers" else [layer]
                for time_, scores in by_time.items():
                    looked = steps if time_ == "all t" else [steps[times.index(time_) - 1]]
                    scores.append(overlap(attention.heat_map(looked, positions, size=tuple(z.shape[-2:]), layers=chosen), mask))
            cover.append(float(mask.mean()))
        done += 1

    def means(scores: list[tuple[float, float]]) -> dict[str, float]:
        return dict(zip(("pointing", "miou"), np.mean(scores, axis=0).round(4).tolist(), strict=True))

    by = {layer: {t: means(scores) for t, scores in by_time.items()} for layer, by_time in found.items()}
    return {"by": by, "chance": round(float(np.mean(cover)), 4), "words": len(cover), "scenes": count}


def overlap(heat: Tensor, mask: np.ndarray) -> tuple[float, float]:
    """Whether the map's peak lies on the mask (0 or 1), and the intersection over union of mask and the map's upper half."""
    large = torch.nn.functional.interpolate(heat[None, None], mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    upper = large > (large.min() + large.max()) / 2
    peak = np.unravel_index(large.argmax(), large.shape)
    return float(mask[peak]), float((upper & mask).sum() / max(1, (upper | mask).sum()))


# --- the table ----------------------------------------------------------------------------------------------------------------


def markdown(found: dict) -> str:
    def row(*cells: str) -> str:
        return "| " + " | ".join(cells) + " |"

    def percent(table: dict, column: str) -> str:
        return f"{100 * table[column]:.1f}" if column in table else "–"

    notes = "; ".join(f"{column}: {meaning}" for column, meaning in COLUMNS.items())
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found["judge"].items())
    lines = [f"VAE: PSNR {found['psnr']:.2f} dB on {found['psnr scenes']} unseen scenes.", ""]
    lines += [row("guidance", "triples", "pictures", *COLUMNS), row("---", "---", "---:", *["---:"] * len(COLUMNS))]
    named = [(f"{float(g):g}", kinds) for g, kinds in sorted(found["guidance"].items(), key=lambda item: float(item[0]))]
    for name, kinds in [*named, ("real scenes, through the VAE", found.get("ceiling", {}))]:
        for kind, table in kinds.items():
            known = {column: value["share"] for column, value in table.items() if "share" in value}
            lines.append(row(name, kind, str(table["pictures"]["of"]), *(percent(known, column) for column in COLUMNS)))
    lines += ["", f"Percent of the pictures that are right, {found['steps']} DDIM steps. {notes}."]
    lines += ["", f"The judge, on unseen real scenes: {told}."]
    if "attention" in found:
        seen = found["attention"]
        times = list(next(iter(seen["by"].values())))
        lines += ["", row("cross-attention of the object's word", *(t if t == "all t" else f"t = {t}" for t in times))]
        lines += [row("---", *["---:" for _ in times])]
        for layer, by_time in seen["by"].items():
            lines.append(row(layer, *(f"{percent(scores, 'pointing')} / {scores['miou']:.2f}" for scores in by_time.values())))
        about = f"{seen['words']} words of {seen['scenes']} real unseen two-object scenes, noised to each t; mean over heads"
        by_chance = f"A point at random would hit in {100 * seen['chance']:.1f} %."
        lines += ["", f"Pointing game in percent / mIoU of {about}. {by_chance}"]
    return "\n".join(lines) + "\n"


def fingerprint(folder: Path) -> str:
    """Of the weights measured and of the judge: rows of other weights do not belong in the same table."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.rglob("*.safetensors")), FOLDER / "model.safetensors"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="emoji", help="its folder's name in assets/models")
    ask.add_argument("--guidances", type=float, nargs="+", default=[0, 1, 2, 4, 7.5, 10])
    ask.add_argument("--best", type=float, default=4, help="the guidance that gets all prompts")
    ask.add_argument(
        "--prompts", type=int, default=500, help="different prompts at the best guidance, and a quarter as many held-out ones"
    )
    ask.add_argument("--others", type=int, default=120, help="the same at each other guidance")
    ask.add_argument("--steps", type=int, default=20)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--scenes", type=int, default=256, help="unseen scenes for the VAE's PSNR")
    ask.add_argument("--pointing", type=int, default=150, help="two-object scenes for the attention maps")
    args = ask.parse_args()

    folder = MODELS / args.model
    judge, stamp = load_judge(device=device()), fingerprint(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device())

    path = folder / "evaluation.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("weights") != stamp or found.get("steps") != args.steps:
        found = {"weights": stamp, "steps": args.steps, "guidance": {}}
    found["judge"] = json.loads((FOLDER / "config.json").read_text())["accuracy"]

    def keep() -> None:
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(found))

    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    found["psnr"], found["psnr scenes"] = round(psnr(pipe.vae, pictures(args.scenes, side, 33, "test")), 2), args.scenes
    keep()
    print(f"VAE: {found['psnr']:.2f} dB on {args.scenes} unseen scenes", flush=True)

    trained, held_out = (
        make_prompts(max(args.prompts, args.others), False),
        make_prompts(max(args.prompts, args.others) // 4, True),
    )
    found["ceiling"] = ceiling(pipe, judge, trained[: args.prompts] + held_out[: args.prompts // 4], args.batch)
    found["attention"] = pointing(folder, args.pointing)
    keep()
    print(f"attention: {found['attention']['by']['all layers']}, chance {found['attention']['chance']}", flush=True)

    for guidance in sorted(args.guidances, key=lambda g: g != args.best):  # the one that counts first
        count, start = args.prompts if guidance == args.best else args.others, time.monotonic()
        rows = judged(pipe, judge, trained[:count] + held_out[: count // 4], guidance, args.steps, args.batch)
        found["guidance"][str(guidance)] = rows
        keep()
        words = ", ".join(f"{c} {100 * rows['trained'][c]['share']:.1f} %" for c in COLUMNS if c in rows["trained"])
        print(f"guidance {guidance:g}: {words} · {time.monotonic() - start:.0f} s", flush=True)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
