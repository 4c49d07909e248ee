"""Kills the real trainer at random moments, some of them inside a save, and goes on each time: the end must be that of an unbroken run.

    python tests/kill_trainer.py --kills 20 --inside 5      # as the app starts it, by core.lane and accelerate: some ten minutes

What must hold: every round goes on, at most one checkpoint's steps are lost, from the first checkpoint on there is always a whole one,
and the final weights are those of the unbroken run, bit for bit.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that

import torch
from conftest import pipeline_of, toy_model
from PIL import Image

from core import checkpoints, lane, trainer
from core.recipe import Recipe
from core.trainings import Trainings

STEPS, EVERY = 36, 4
RECIPE = Recipe(
    "a sks dog",
    "a dog",
    method="full",
    steps=STEPS,
    batch=2,
    rate=1e-3,
    schedule="cosine",
    preview_every=0,
    checkpoint_every=EVERY,
)


def save_toy(folder: Path) -> Path:
    """A small Stable Diffusion in diffusers' layout."""
    pipeline_of(toy_model(), "PNDM").save_pretrained(folder)
    return folder


def pictures(count: int = 4) -> list[Image.Image]:
    made = torch.Generator().manual_seed(0)
    return [Image.fromarray(torch.randint(255, (64, 64, 3), dtype=torch.uint8, generator=made).numpy()) for _ in range(count)]


def wait_for(what: Callable, seconds: float = 300.0):
    """The first truth that what() says."""
    ends = time.monotonic() + seconds
    while not (said := what()):
        if time.monotonic() > ends:
            raise TimeoutError("nothing happened")
        time.sleep(0.0005)
    return said


class Launched(Trainings):
    """As the app does it."""

    def trainer(self, one: str) -> int:
        """The process id of the trainer itself: who holds its lock."""
        path = str(self.home / one / "work.lock")

        def holder() -> int:
            for entry in filter(lambda e: e.name.isdigit(), Path("/proc").iterdir()):
                try:
                    if any(os.readlink(link) == path for link in (entry / "fd").iterdir()):
                        return int(entry.name)
                except OSError:  # gone meanwhile
                    continue
            return 0

        return wait_for(holder)

    def ended(self, one: str) -> str:
        return wait_for(lambda: (state := self.status(one, None).state) in lane.ENDED and state)


class Forked(Trainings):
    """The trainer alone, forked from a process that has imported it: the tests' short form."""

    def __init__(self, home: Path):
        super().__init__(home)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["core.trainer"])

    def _launch(self, folder: Path, **facts: object) -> None:
        lane.tell(folder, "waiting", queued=0.0, **facts)
        self.child = self.processes.Process(target=trainer.main, args=(folder,))
        self.child.start()

    def trainer(self, one: str) -> int:
        return self.child.pid or 0

    def ended(self, one: str) -> str:
        self.child.join()
        return self.status(one, None).state


def halves(folder: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return [path for path in folder.glob("step_*") if path.suffix == ".tmp" or not (path / "manifest.json").exists()]


def kill(trainings: Launched | Forked, one: str, inside: bool, dice: random.Random) -> bool:
    """Lets it train for a while, and kills it, in a save or anywhere. Returns whether it was in a save."""
    folder = trainings.home / one
    process, lines, begun = trainings.trainer(one), folder / "steps.jsonl", time.time_ns()
    good, steps = checkpoints.newest(folder / "checkpoints", state=True), lane.read(folder / "settings.json")["recipe"]["steps"]
    goal = min((checkpoints.step_of(good) if good else 0) + dice.randint(1, steps // 3), steps - 1)
    wait_for(lambda: lines.exists() and lines.stat().st_mtime_ns > begun and lines.read_bytes().count(b"\n") >= goal)
    old = {path.name for path in halves(folder / "checkpoints")}
    if inside:
        wait_for(
            lambda: any(path.name not in old for path in halves(folder / "checkpoints")) or not lane.held(folder / "work.lock")
        )
    time.sleep(dice.random() * 0.02)  # another part of the step, or of the save
    os.kill(process, signal.SIGKILL)
    trainings.ended(one)
    return any(path.name not in old for path in halves(folder / "checkpoints"))


def rounds(trainings: Launched | Forked, model: Path, kills: int, inside: int, seed: int = 0, steps: int = STEPS) -> list[bool]:
    """Kills so many times, at least so many of them inside a save, and holds each end against an unbroken run. Returns what each was."""
    dice, recipe = random.Random(seed), Recipe.of({**RECIPE.facts(), "model": str(model), "steps": steps})
    whole = trainings.start(recipe, pictures(), "whole")
    assert trainings.ended(whole) == "done", trainings.status(whole, None)
    found: list[bool] = []
    while len(found) < kills or sum(found) < inside:
        one, ever = trainings.start(recipe, pictures(), f"broken {len(found)}"), False
        while len(found) < kills or sum(found) < inside:
            missing, left = inside - sum(found), max(1, kills - len(found))
            found.append(kill(trainings, one, dice.random() < missing / left, dice))
            good = checkpoints.newest(trainings.home / one / "checkpoints", state=True)
            at, told = checkpoints.step_of(good) if good else 0, len(trainings.steps(one, None))
            ever |= good is not None
            print(
                f"kill {len(found):2}, {'inside a save' if found[-1] else 'between saves'}: step {told}, goes on from {at}",
                flush=True,
            )
            assert good or not ever, "no whole checkpoint"
            assert told - at <= EVERY + 1, f"{told - at} steps lost"
            if trainings.status(one, None).state == "done":
                break
            trainings.go_on(one, None)
            if at + EVERY >= steps:
                break  # little is left to kill: this one may end, and another begins
        assert trainings.ended(one) == "done", trainings.status(one, None)
        a, b = (checkpoints.weights_of(trainings.checkpoint(t, None, steps)).read_bytes() for t in (whole, one))
        assert a == b, "other weights"
        told = [[(s["step"], s["loss"], s["rate"], s["grad_norm"]) for s in trainings.steps(t, None)] for t in (whole, one)]
        assert told[0] == told[1] and len(told[0]) == steps, "another story"
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forked", action="store_true", help="the trainer alone, without core.lane and accelerate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trainings = (Forked if given.forked else Launched)(Path(place) / "home")
        found = rounds(trainings, save_toy(Path(place) / "toy"), given.kills, given.inside, given.seed)
    print(f"{len(found)} of {len(found)} went on, {sum(found)} of them killed inside a save; all ends equal to the bit")
