"""Trainings as the app sees them: started, followed, paused, found again, taken home. Nothing is held in memory: the folder is the truth.

HOME/<id>/settings.json      recipe, model's source, revision and licence, theme, when, whose (a hash)
          images/000.png     the photos, RGB without metadata
          steps.jsonl        a TrainStep a line
          previews/000050/   facts.json, 0.png …
          checkpoints/       core/checkpoints.py
          status.json        state, step, count, seconds_left, rate, message
          pause, stop        wishes, which the trainer sees after its next step
          log.txt            what the processes said
          chosen.json        the checkpoints that stand in its owner's model menu
          exports/           what was taken home
          *.lock, reserve    who is at it (core/lane.py), and room for a last word on a full disk
HOME/class/<model and class>/  class pictures, for everyone's trainings
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from core import catalog, checkpoints, dreambooth, lane, models, preflight, publish
from core.recipe import Recipe

HOME = Path(os.environ.get("DREAMBOOTH_HOME") or Path(__file__).resolve().parent.parent / ".runs" / "dreambooth")
THEMES = ("animal", "science", "food", "landscape", "wildcard")
WAITING = 10
CHOSEN = 4  # of a training's checkpoints that stand in its owner's model menu
EXPORTS = 3  # of a training's steps and strengths whose files are kept: of a large model, each has gigabytes
UNKNOWN = "This training is no longer kept; start it again from its pictures."


@dataclass(frozen=True)
class Status:
    """How far a training is."""

    id: str
    state: str  # "waiting", "preparing", "training", or one of lane.ENDED
    step: int = 0
    count: int = 0
    seconds_left: float | None = None
    rate: float | None = None  # steps a second
    message: str = ""  # why it ended, in one sentence
    ahead: int = 0  # trainings that come before it, while it waits
    made: int = 0  # class pictures, while it prepares
    to_make: int = 0


class Trainings:
    """All trainings under one folder. owner: whoever started it; None passes for everyone who knows the id, which cannot be guessed.

    places: where the models lie that the app calls by names of its own."""

    def __init__(self, home: Path = HOME, places: Mapping[str, str] | None = None):
        self.home, self.places = Path(home), places or {}
        self._beginning = threading.Lock()  # two clicks at once begin one training

    # --- start, pause, stop, go on ------------------------------------------------------------------------------------------------

    def start(self, recipe: Recipe, images: Sequence[Image.Image], owner: str, theme: str = "wildcard", subject: str = "") -> str:
        """Begins a training in a process of its own and returns its id. images: RGB, as core/images.py gives them.

        Raises ValueError: too few or too many pictures, no room on the disk, this owner trains already, too many wait, model not here.
        """
        if lane.fcntl is None:
            raise ValueError("Training needs Linux or macOS; on Windows, start the app in WSL.")
        dreambooth.check_count(len(images))
        if theme not in THEMES:
            raise ValueError(f"There is no theme {str(theme)[:40]!r}; choose one of {', '.join(THEMES)}.")
        place = self.places.get(recipe.model, recipe.model)
        found = catalog.resolve(place, fetch=False)
        self._check_turn(hashed(owner))
        needed = preflight.disk_needed(recipe, preflight.shapes_in(found.folder))
        if needed > (free := shutil.disk_usage(preflight.existing(self.home)).free):
            raise ValueError(preflight.no_room(needed, free))
        training = uuid.uuid4().hex
        folder = self.home / training
        settings = {
            "recipe": recipe.facts(),
            "place": place,
            "source": found.source,
            "revision": found.revision or models.check_manifest(found.folder),
            "licence": found.licence,
            "theme": theme,
            "subject": subject,
            "pictures": len(images),
            "created": time.time(),
            "owner": hashed(owner),
        }
        try:
            with room_needed():
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # people's photos
                (folder / "images").mkdir(parents=True)
                for number, picture in enumerate(images):
                    bare = Image.new("RGB", picture.size)  # nothing but the pixels goes on
                    bare.paste(picture)
                    bare.save(folder / "images" / f"{number:03d}.png")
                lane.write(folder / "settings.json", settings)
                with self._beginning:
                    self._check_turn(hashed(owner))
                    self._launch(folder, step=0, count=recipe.steps)
        except ValueError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return training

    def pause(self, training: str, owner: str | None) -> None:
        """Ends it behind a checkpoint after its next step, to go on later. The device is free meanwhile."""
        self._folder(training, owner).joinpath("pause").touch()

    def stop(self, training: str, owner: str | None) -> None:
        """Ends it behind a checkpoint after its next step."""
        self._folder(training, owner).joinpath("stop").touch()

    def go_on(self, training: str, owner: str | None) -> None:
        """Takes it up where its newest checkpoint stands. Raises ValueError if it is going on, done, or would diverge again."""
        folder = self._folder(training, owner)
        with self._beginning, room_needed():
            state = self.status(training, owner).state
            if state == "done":
                raise ValueError("This training is done; start another from its pictures.")
            if state == "diverged":  # the same bits lead to the same step
                raise ValueError("This training diverged, and would again; use its settings with a lower rate.")
            if state not in lane.ENDED:
                raise ValueError("This training is going on already.")
            self._check_turn(lane.read(folder / "settings.json").get("owner"))
            for flag in lane.FLAGS:
                (folder / flag).unlink(missing_ok=True)
            self._launch(folder)

    def forget(self, training: str, owner: str | None) -> None:
        """Ends it at once and deletes all that there is of it."""
        folder = self._folder(training, owner)
        (folder / "stop").touch()
        if child := CHILDREN.get(training):
            session = child.pid if child.poll() is None else None
        else:  # of an app that is no more
            session = lane.read(folder / "status.json").get("session") if lane.held(folder / "alive.lock") else None
        if session:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(session, signal.SIGKILL)
        ends = time.monotonic() + 10
        while (lane.held(folder / "alive.lock") or lane.held(folder / "work.lock")) and time.monotonic() < ends:
            time.sleep(0.05)
        shutil.rmtree(folder)

    def forget_all(self, owner: str) -> None:
        for training in self.mine(owner):
            with suppress(ValueError):
                self.forget(training, owner)

    def _launch(self, folder: Path, **facts: object) -> None:
        """A session of its own, so that it survives the app."""
        lane.tell(folder, "waiting", queued=time.time(), seconds_left=None, rate=None, **facts)
        with (folder / "log.txt").open("ab") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "core.lane", str(folder)],
                cwd=lane.ROOT,
                env=lane.clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        CHILDREN[folder.name] = child

    # --- watching -----------------------------------------------------------------------------------------------------------------

    def status(self, training: str, owner: str | None) -> Status:
        folder = self._folder(training, owner)
        facts = lane.read(folder / "status.json")
        reap()
        state, message = facts.get("state", "interrupted"), facts.get("message", "")
        young = training in CHILDREN or time.time() - facts.get("queued", 0.0) < 5  # its process is there, or being born
        if state not in lane.ENDED and not young and not lane.held(folder / "alive.lock"):
            facts = lane.read(folder / "status.json")  # it may have ended between the two looks
            state, message = facts.get("state", "interrupted"), facts.get("message", "")
            if state not in lane.ENDED:
                state, message = "interrupted", f"The training was interrupted; {lane.LAST}."
        plain = {name: facts.get(name) for name in ("seconds_left", "rate")}
        whole = {name: facts.get(name, 0) for name in ("step", "count", "made", "to_make")}
        before = len(lane.ahead(folder)) if state == "waiting" else 0
        return Status(training, state, message=message, ahead=before, **plain, **whole)

    def steps(self, training: str, owner: str | None, start: int = 0) -> list[dict]:
        """What was said of each step after the start-th."""
        path = self._folder(training, owner) / "steps.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines[start:] if line.endswith("\n")]

    def previews(self, training: str, owner: str | None) -> list[dict]:
        """facts.json of each preview, oldest first; each picture with its path."""
        found = []
        for facts in sorted((self._folder(training, owner) / "previews").glob("[0-9]*/facts.json")):
            if one := lane.read(facts):
                for picture in one["pictures"]:
                    picture["path"] = str(facts.parent / picture["file"])
                found.append(one)
        return found

    def checkpoints(self, training: str, owner: str | None) -> list[int]:
        """The steps whose weights are kept."""
        return [checkpoints.step_of(one) for one in checkpoints.listed(self._folder(training, owner) / "checkpoints")]

    def checkpoint(self, training: str, owner: str | None, step: int) -> Path:
        """The folder of one, for models.adapted. Raises ValueError if it is not kept."""
        folder = checkpoints.folder_of(self._folder(training, owner) / "checkpoints", step)
        if not (folder / "manifest.json").exists():
            raise ValueError(f"There is no checkpoint of step {step}; choose another.")
        return folder

    def model(self, training: str, owner: str | None, step: int, strength: float = 1.0) -> str:
        """The name under which models.adapted gives a checkpoint, for engine.offer."""
        return models.adapted_name(self.checkpoint(training, owner, step), strength)

    def choose(self, training: str, owner: str | None, step: int, strength: float = 1.0) -> None:
        """Remembers a checkpoint that is to stand among its owner's models."""
        self.checkpoint(training, owner, step)
        kept = [one for one in self.chosen(training, owner) if one != (step, strength)]
        lane.write(self._folder(training, owner) / "chosen.json", {"chosen": [*kept, (step, strength)][-CHOSEN:]})

    def chosen(self, training: str, owner: str | None) -> list[tuple[int, float]]:
        """What `choose` remembers, oldest first: (step, strength)."""
        return [(step, strength) for step, strength in lane.read(self._folder(training, owner) / "chosen.json").get("chosen", [])]

    # --- taking it home -----------------------------------------------------------------------------------------------------------

    def export(self, training: str, owner: str | None, step: int, strength: float = 1.0, kind: str = "lora") -> Path:
        """A file to download: "lora" the adapter (.safetensors), "folder" the whole model (.zip), "card" its README.md.

        Raises ValueError for a step that is not kept, a kind that is none, or where there is no adapter."""
        checkpoint = self.checkpoint(training, owner, step)
        target = self._folder(training, owner) / "exports" / models.adapted_name(checkpoint, strength)
        if kind not in ("lora", "folder", "card"):
            raise ValueError(f"There is no export {str(kind)[:40]!r}; choose lora, folder or card.")
        with room_needed():
            target.mkdir(parents=True, exist_ok=True)
            target.touch()  # the newest now
            for old in sorted(target.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-EXPORTS]:
                shutil.rmtree(old, ignore_errors=True)
            if kind == "lora":
                return publish.lora(checkpoint, strength, target / f"{target.name}.safetensors")
            if kind == "folder":
                with publish.staged() as stage:
                    self._gather(training, owner, step, strength, Path(stage) / target.name, whole=True)
                    return publish.packed(Path(stage), target / f"{target.name}.zip")
            checkpoints.write_text(target / "README.md", publish.card(self.settings(training, owner), step, strength, []))
            return target / "README.md"

    def push(
        self, training: str, owner: str | None, step: int, strength: float, repository: str, token: str, private: bool = True
    ) -> str:
        """Uploads it to the Hugging Face Hub with this token, which is kept nowhere, and returns its address there.

        Raises ValueError with one sentence where the Hub refuses or cannot be reached."""
        whole = Recipe.of(self.settings(training, owner)["recipe"]).method == "full"
        with room_needed(), publish.staged() as stage:
            self._gather(training, owner, step, strength, Path(stage) / "model", whole)
            return publish.push(Path(stage) / "model", repository, token, private)

    def _gather(self, training: str, owner: str | None, step: int, strength: float, target: Path, whole: bool) -> None:
        """The model or its adapter, the card and its pictures, in a folder."""
        checkpoint, settings = self.checkpoint(training, owner, step), self.settings(training, owner)
        if whole:
            publish.folder(settings["place"], checkpoint, strength, target)
        else:
            target.mkdir(parents=True)
            publish.lora(checkpoint, strength, target / publish.LORA)
        shown = [one for one in self.previews(training, owner) if one["step"] <= step][-1:]
        samples = []
        for picture in [p for one in shown if one["step"] for p in one["pictures"] if p["kind"] == "subject"]:
            (target / "samples").mkdir(exist_ok=True)
            shutil.copy(picture["path"], target / "samples")
            samples.append((f"samples/{picture['file']}", picture["prompt"]))
        (target / "README.md").write_text(publish.card(settings, step, strength, samples), "utf-8")

    # --- whose, and what was asked for --------------------------------------------------------------------------------------------

    def settings(self, training: str, owner: str | None) -> dict:
        """settings.json, without whose it is; and the precision that "auto" has become, once it trains."""
        folder = self._folder(training, owner)
        settings = {k: v for k, v in lane.read(folder / "settings.json").items() if k != "owner"}
        became = lane.read(folder / "status.json").get("precision")
        return {**settings, **({"precision": became} if became else {})}

    def photos(self, training: str, owner: str | None) -> list[Path]:
        return sorted((self._folder(training, owner) / "images").glob("*.png"))

    def mine(self, owner: str) -> list[str]:
        """Ids of this person's trainings, newest first."""
        own = [
            (s["created"], f.name) for f in self._folders() if (s := lane.read(f / "settings.json")).get("owner") == hashed(owner)
        ]
        return [name for _, name in sorted(own, reverse=True)]

    # --- inside -------------------------------------------------------------------------------------------------------------------

    def _check_turn(self, owner: str | None) -> None:
        """Raises ValueError if this owner, by its hash, trains already, or too many wait."""
        running = [one for one in self._folders() if self._going(one)]
        if any(lane.read(one / "settings.json").get("owner") == owner for one in running):
            raise ValueError("You have a training going on already; stop it, or let it finish.")
        if len(running) > WAITING:
            raise ValueError(f"{WAITING} trainings are waiting; try again later.")

    def _going(self, folder: Path) -> bool:
        try:
            return self.status(folder.name, None).state not in lane.ENDED
        except ValueError:  # deleted just now, or never written whole: nobody else shall wait for it
            return False

    def _folders(self) -> list[Path]:
        return [path.parent for path in self.home.glob("*/settings.json")]

    def _folder(self, training: str, owner: str | None) -> Path:
        """Raises ValueError for an id that is not there, or somebody else's, with one and the same sentence."""
        known = isinstance(training, str) and len(training) == 32 and all(c in "0123456789abcdef" for c in training)
        settings = lane.read(self.home / training / "settings.json") if known else {}
        if not settings or (owner is not None and settings.get("owner") != hashed(owner)):
            raise ValueError(UNKNOWN)
        return self.home / training


CHILDREN: dict[
    str, subprocess.Popen
] = {}  # those that this process has started, to be asked for their end, or they stay as zombies


def reap() -> None:
    for training, child in list(CHILDREN.items()):
        if child.poll() is not None:
            CHILDREN.pop(training, None)


@contextmanager
def room_needed() -> Iterator[None]:
    """A full disk becomes a sentence."""
    try:
        yield
    except Exception as error:
        if checkpoints.disk_full(error):
            raise ValueError("The disk is full; make room on it, and try again.") from error
        raise


def hashed(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()
