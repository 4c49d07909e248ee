"""Teaches the ten sample subjects to the embedded model with the preset "embedded", and measures what was learned, copied and forgotten.

    python scripts/evaluate_dreambooth.py                     # all ten, one after the other; about half an hour on two cores
    python scripts/evaluate_dreambooth.py --only poodle taxi  # some of them; --set rate=1e-3 steps=200 tries another recipe

For each subject: the seconds that training took (class pictures, latents and steps; no previews), and 50 pictures from 5 prompts that were
not trained, drawn by the base model and by the trained one. Counted is how often the judge, which knows the subjects, calls the picture's
object by the subject's name. likeness, distance and drift: core/likeness.py. Writes each subject's figures
into assets/subjects/evaluation.json, where the recipe is the preset's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core import checkpoints, dreambooth, latents, likeness, models, previews, subjects
from core.judge import Judge, load_judge
from core.models import StableDiffusion
from core.recipe import PRESETS, Recipe
from core.sampling import Request, denoise_many
from core.subjects import Sample

BACKGROUNDS = ["blue", "red", "purple", "brown", "black"]  # no sample picture has one of these
SEEDS, STEPS, GUIDANCE = 10, 20, 4.0


def recipe_of(sample: Sample, changes: dict) -> Recipe:
    prompts = {"instance_prompt": f"a sks {sample.kind}", "class_prompt": f"a {sample.kind}"}
    return replace(PRESETS["embedded"], **prompts, **{"preview_every": 0, **changes})


def drawn(sd: StableDiffusion, prompt: str) -> Tensor:
    """(10, 3, H, W) in [-1, 1], seeds 1000 to 1009."""
    requests = [Request(prompt, seed=1000 + k, steps=STEPS, guidance=GUIDANCE) for k in range(SEEDS)]
    steps = []
    for steps in denoise_many(sd, requests):  # noqa: B007, the last is what counts
        pass
    return latents.decode(sd, torch.cat([step.x_next for step in steps])).cpu()


def trained(sd: StableDiffusion, recipe: Recipe, sample: Sample) -> tuple[StableDiffusion, float, float]:
    """The model after its training, the seconds that class pictures took, and those of everything else."""
    began = time.perf_counter()
    priors = list(previews.class_pictures(sd, recipe, 0, recipe.class_images)) if recipe.prior else []
    drew = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for _ in dreambooth.train(sd, recipe, sample.pictures(), priors, Path(folder)):
            pass
        took = time.perf_counter() - began
        return models.adapted(sd, checkpoints.folder_of(Path(folder), recipe.steps)), drew, took


def measured(sd: StableDiffusion, sample: Sample, changes: dict, judge: Judge, embed: Callable[[Tensor], Tensor]) -> dict:
    recipe = recipe_of(sample, changes)
    photos = previews.pixels_of(sd, sample.pictures())
    now, drew, took = trained(sd, recipe, sample)

    def called(pictures: Tensor) -> float:
        """The share that the judge calls by the subject's name."""
        names = [judge.names[k] for k in judge(pictures).objects.argmax(1)]
        return sum(name == sample.name for name in names) / len(names)

    asked = [f"{recipe.instance_prompt} on a {background} background" for background in BACKGROUNDS]
    pictures = [drawn(now, prompt) for prompt in asked]
    before = torch.cat([drawn(sd, prompt) for prompt in asked])
    all_of = torch.cat(pictures)
    there = [
        (judge(p).background.argmax(1) == judge.backgrounds.index(b)).float().mean().item()
        for p, b in zip(pictures, BACKGROUNDS, strict=True)
    ]
    ours, base = (drawn(model, recipe.class_prompt) for model in (now, sd))
    return {
        "seconds": round(drew + took, 1),
        "class_pictures_s": round(drew, 1),
        "steps_per_second": round(recipe.steps / took, 2),
        "recognised": called(all_of),
        "recognised_base": called(before),
        "background": sum(there) / len(there),
        "likeness": likeness.likeness(embed(all_of), embed(photos)).mean().item(),
        "likeness_base": likeness.likeness(embed(before), embed(photos)).mean().item(),
        "likeness_photos": likeness.likeness(embed(photos), embed(photos)).mean().item(),
        "nearest": min(far for _, far in likeness.nearest(all_of, photos)),
        "nearest_mean": sum(far for _, far in likeness.nearest(all_of, photos)) / len(all_of),
        "spread": min(likeness.spread(photos)),
        "class_kept": 1 - called(ours),
        "drift": likeness.drift(embed(ours), embed(base)),
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", nargs="+", choices=list(subjects.SAMPLES))
    ask.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    args = ask.parse_args()
    changes = {name: json.loads(value) for name, value in (one.split("=", 1) for one in args.set)}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    sd, judge = models.load("emoji"), load_judge()
    found = likeness.embedder_for(sd)
    assert found is not None  # the judge is in the repository
    path = subjects.FOLDER / "evaluation.json"
    recipe = {name: value for name, value in PRESETS["embedded"].facts().items() if "prompt" not in name}
    recipe = json.loads(json.dumps(recipe))
    facts = json.loads(path.read_text()) if path.exists() else {}
    known = facts["subjects"] if facts.get("recipe") == recipe else {}
    told = {}
    for slug in args.only or subjects.SAMPLES:
        found_out = measured(sd, subjects.SAMPLES[slug], changes, judge, found[0])
        told[slug] = {name: round(value, 3) for name, value in found_out.items()}
        print(slug, json.dumps(told[slug]), flush=True)
        if not args.set:
            path.write_text(json.dumps({"recipe": recipe, "subjects": known | told}, indent=1) + "\n")
    passed = sum(one["recognised"] >= 0.7 and one["recognised_base"] <= 0.05 and one["seconds"] <= 90 for one in told.values())
    print(f"{passed} of {len(told)} learned: recognised in 70 % or more, by the base model in 5 % at most, in 90 s of training")


if __name__ == "__main__":
    main()
