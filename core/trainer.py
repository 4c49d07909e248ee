"""The trainer: a process of its own, started by `accelerate launch`, that iterates `dreambooth.train` and writes down what it says.

    python -m core.trainer FOLDER         what is in the folder: core/trainings.py

It looks at the folder after every step: a file "pause" or "stop" in it ends the training behind a checkpoint. It never touches the app.
"""

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from core import checkpoints, dreambooth, lane, models, previews
from core.dreambooth import Diverged, TrainStep
from core.models import StableDiffusion
from core.previews import Preview, Watch
from core.recipe import Recipe

log = logging.getLogger("trainer")
LAST = lane.LAST
STARTER = os.environ.get("LANE")  # the process id of core.lane, which started us; None: somebody did by hand


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    cpu = os.environ.get("ACCELERATE_USE_CPU", "") == "true"
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")  # the recipe says the precision, not accelerate's config
    mine = accelerator.is_main_process
    lock = lane.hold(folder / "work.lock", wait=True) if mine else None  # a trainer whose starter died ends behind its step
    accelerator.wait_for_everyone()
    reserve = folder / "reserve"
    try:
        if mine:
            reserve.write_bytes(os.urandom(2**16))  # so that a full disk has room for the sentence that it is full
        state = run(folder, accelerator)
        if mine and ours(folder):
            lane.tell(folder, state, step=told(folder), seconds_left=0.0 if state == "done" else None)
    except Exception as error:
        log.exception("The training ended")
        reserve.unlink(missing_ok=True)
        if mine and ours(folder):
            state = "diverged" if isinstance(error, Diverged) else "failed"
            lane.tell(folder, state, message=sentence(error, folder), step=told(folder), seconds_left=None)
        sys.exit(1)
    finally:
        if lock:
            lock.close()


def sentence(error: BaseException, folder: Path) -> str:
    """Why a training ended, for the page."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            f"The device ran out of memory; {LAST} when more is free, or use its settings with a smaller batch or gradient "
            "checkpointing."
        )
    if checkpoints.disk_full(error):
        return f"The disk is full; {LAST} when there is room again."
    return f"The training failed ({type(error).__name__}, {folder.name[:8]}); its log says more."


def run(folder: Path, accelerator: Any) -> str:
    """Trains what the folder says, from where it stands. Returns the state that it ends in."""
    settings = lane.read(folder / "settings.json")
    recipe = Recipe.of(settings["recipe"])
    mine = accelerator.is_main_process
    sd = models.load(settings["place"], device="cpu", dtype=torch.float32, fetch=False)  # its copies go to the device
    if sd.revision != settings["revision"]:
        raise ValueError(f"The model {recipe.model} is not the one that this training began with; start a new training.")
    photos = [Image.open(path) for path in sorted((folder / "images").glob("*.png"))]
    watch = Watch(sd, recipe, photos, accelerator.device)
    there = models.on(sd, accelerator.device)
    priors = class_pictures(folder, there, recipe, accelerator)
    if len(priors) < recipe.class_images * recipe.prior:
        return asked_for(folder, accelerator) or "stopped"
    if mine and recipe.preview_every and not (folder / "previews" / "000000").exists():
        write_preview(folder, watch, watch.look(0, there))
    del there  # room for the training

    began = spoke = 0.0
    first = 0
    steps = dreambooth.train(sd, recipe, photos, priors, folder / "checkpoints", accelerator, watch)
    for one in steps:
        if mine:
            if not first:
                first, began = one.step, time.perf_counter() - one.seconds  # what comes before the first step comes once
                cut_back(folder, first - 1)
            write_step(folder, one)
            if one.preview:
                write_preview(folder, watch, one.preview)
            now = time.perf_counter()
            if now - spoke > 0.2 or one.preview or one.step == one.count:
                left = (now - began) / (one.step - first + 1) * (one.count - one.step)
                facts = {"step": one.step, "count": one.count, "seconds_left": left, "rate": 1 / one.seconds}
                lane.tell(folder, "training", **facts, precision=recipe.precision_on(accelerator.device))
                spoke = now
        if state := asked_for(folder, accelerator):
            steps.close()  # which saves
            return state
    return "done"


def ours(folder: Path) -> bool:
    """Whether this training is still for us to tell of: nobody has had it go on in another process."""
    status = lane.read(folder / "status.json")
    return not STARTER or (status.get("state") != "waiting" and str(status.get("pid")) == STARTER)


def wish(folder: Path) -> str | None:
    """The state to end in: somebody asks for it, or the process that started us is no more. None: go on."""
    here = not STARTER or (lane.held(folder / "alive.lock") and ours(folder))
    return lane.wanted(folder) or (None if here else "interrupted")


def asked_for(folder: Path, accelerator: Any) -> str | None:
    """The main process's wish: all processes hear the same."""
    state = wish(folder)
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        state = broadcast_object_list([state])[0]
    return state


def write_step(folder: Path, one: TrainStep) -> None:
    facts = {name: value for name, value in one.__dict__.items() if name != "preview"}
    with (folder / "steps.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(facts) + "\n")


def told(folder: Path) -> int:
    """How many steps have been written."""
    path = folder / "steps.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def cut_back(folder: Path, step: int) -> None:
    """Takes away what was written of steps that will be made again."""
    path = folder / "steps.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    checkpoints.write_text(path, "".join(lines[:step]))


def class_pictures(folder: Path, sd: StableDiffusion, recipe: Recipe, accelerator: Any) -> list[Image.Image]:
    """The base model's own pictures of the class, made once for a model and a class. Fewer if somebody stops us on the way."""
    if not recipe.prior:
        return []
    home = folder.parent / "class" / previews.class_name(sd, recipe)
    if accelerator.is_main_process:
        home.mkdir(parents=True, exist_ok=True)
        have = len(list(home.glob("*.png")))
        for number, picture in enumerate(previews.class_pictures(sd, recipe, have, recipe.class_images), have):
            save_picture(picture, home / f"{number:03d}.png")
            lane.tell(folder, "preparing", made=number + 1, to_make=recipe.class_images)
            if wish(folder):
                break
    accelerator.wait_for_everyone()
    made = sorted(home.glob("*.png"))[: recipe.class_images]
    return [Image.open(path).convert("RGB") for path in made]  # read now: each that waits keeps a file open


def save_picture(picture: Image.Image, path: Path) -> None:
    picture.save(path.with_suffix(".tmp"), "PNG")
    checkpoints.flush(path.with_suffix(".tmp"))  # it is there for all trainings to come
    os.replace(path.with_suffix(".tmp"), path)


def write_preview(folder: Path, watch: Watch, preview: Preview) -> None:
    """previews/000050: the pictures, and facts.json about them. Written beside, then renamed."""
    done = folder / "previews" / f"{preview.step:06d}"
    stage = done.with_suffix(".tmp")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    pictures = []
    for number, picture in enumerate(preview.pictures):
        previews.image_of(picture.image).save(stage / f"{number}.png")
        plain = {name: value for name, value in picture.__dict__.items() if name != "image"}
        pictures.append({"file": f"{number}.png", **plain})
    facts = {name: getattr(preview, name) for name in ("step", "likeness", "distance", "drift")}
    facts |= {
        "pictures": pictures,
        "attention": None if preview.attention is None else np.round(preview.attention.numpy(), 5).tolist(),
        "photos": {"likeness": watch.alike, "spread": watch.spread, "measure": watch.measure},
    }
    lane.write(stage / "facts.json", facts)
    shutil.rmtree(done, ignore_errors=True)  # of the same step, from before the training was taken up again
    stage.rename(done)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
