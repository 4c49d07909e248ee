"""Trainings as the app sees them: a process that survives, waits its turn, is stopped, killed and taken up, and what is taken home."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import httpx2
import huggingface_hub
import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from kill_trainer import RECIPE, Forked, Launched, pictures, rounds, save_toy, wait_for
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from core import checkpoints, dreambooth, images, lane, models, preflight, previews, publish, trainer
from core import trainings as trainings_module
from core.sampling import Request, denoise
from core.trainings import UNKNOWN, Trainings

PLACE = b"\\x2a\\x2b\\x2c GPS of a kitchen table"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_toy(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def recipe(model):
    return replace(RECIPE, model=str(model), steps=8)


class Unlaunched(Trainings):
    """Started, but for the process: it is called by hand."""

    def _launch(self, folder: Path, **facts: object) -> None:
        lane.tell(folder, "waiting", queued=time.time(), **facts)


def run_here(folder: Path) -> None:
    """The trainer, in this process."""
    lane.tell(folder, "preparing", queued=0.0)
    try:
        trainer.main(folder)
    except SystemExit as ended:
        assert ended.code == 1


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """A LoRA that was trained with previews and class pictures, in this process."""
    trainings = Unlaunched(tmp_path_factory.mktemp("done"), {"mine": str(model)})
    wanted = replace(
        RECIPE,
        model="mine",
        method="lora",
        precision="auto",
        steps=8,
        class_images=3,
        preview_every=4,
        prompts=("a `sks`\n# dog",),
        rate=0.1,
    )
    one = trainings.start(wanted, pictures(), "anna", theme="animal", subject="taxi")
    drawn = previews.drawn
    with pytest.MonkeyPatch.context() as patch:  # pictures of 4 steps instead of 20
        patch.setattr(previews, "drawn", lambda sd, asked, *rest: drawn(sd, [replace(r, steps=4) for r in asked], *rest))
        run_here(trainings.home / one)
    assert trainings.status(one, "anna").state == "done", trainings.status(one, "anna")
    return trainings, one


# --- from start to end ----------------------------------------------------------------------------------------------------------------


def photo_of(k: int, tmp_path: Path) -> Path:
    """A JPEG as a telephone makes it, with a place in it."""
    exif = Image.Exif()
    exif[0x010E] = PLACE.decode()  # what it shows
    exif.get_ifd(0x8825)[2] = (35.0, 40.0, 34.0)
    path = tmp_path / f"{k}.jpg"
    pictures()[k].save(path, exif=exif, comment=PLACE)
    assert PLACE in path.read_bytes()
    return path


def test_a_training_from_start_to_end_in_processes_of_its_own(model, tmp_path, monkeypatch):
    """Through core.lane and accelerate, while another waits for the device."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    trainings = Launched(tmp_path / "home")
    photos = [images.open_picture(photo_of(k, tmp_path)) for k in range(3)]
    recipe = replace(RECIPE, model=str(model), steps=8, method="lora", preview_every=8)
    one = trainings.start(recipe, photos, "anna")
    wait_for(lambda: trainings.status(one, "anna").state == "preparing")
    with pytest.raises(ValueError, match="training going on already"):
        trainings.start(recipe, photos, "anna")
    with pytest.raises(ValueError, match="going on already"):
        trainings.go_on(one, "anna")
    other = trainings.start(recipe, photos, "ben")
    wait_for(lambda: lane.held(trainings.home / other / "alive.lock"))
    assert (trainings.status(other, "ben").state, trainings.status(other, "ben").ahead) == ("waiting", 1)
    process = Path(f"/proc/{trainings.trainer(one)}")
    if process.is_dir():
        assert b"hf_secret" not in process.joinpath("environ").read_bytes()
        assert int(process.joinpath("stat").read_text().rsplit(")")[1].split()[16]) >= 5, "pictures come first"
    assert os.getsid(int(lane.read(trainings.home / one / "status.json")["session"])) != os.getsid(0), "it survives the app"
    trainings.stop(other, "ben")
    assert trainings.ended(other) == "stopped"

    assert trainings.ended(one) == "done", (trainings.home / one / "log.txt").read_text()[-2000:]
    status = trainings.status(one, "anna")
    assert (status.step, status.count, status.seconds_left) == (8, 8, 0) and status.rate > 0
    assert [s["step"] for s in trainings.steps(one, "anna")] == list(range(1, 9))
    assert [p["step"] for p in trainings.previews(one, "anna")] == [0, 8]
    assert trainings.checkpoints(one, "anna") == [4, 8]
    for path in trainings.home.rglob("*"):
        if path.is_file():
            assert b"kitchen" not in path.read_bytes() and b"hf_secret" not in path.read_bytes(), path
            assert path.suffix != ".png" or not Image.open(path).getexif(), path
    with pytest.raises(ValueError, match="This training is done"):
        trainings.go_on(one, "anna")
    trainings.forget(one, "anna")
    trainings.forget(other, "ben")
    assert not list(trainings.home.glob("*/settings.json"))


def test_killed_at_random_moments_it_ends_in_the_same_bits(model, tmp_path):
    """The short form of tests/kill_trainer.py."""
    found = rounds(Forked(tmp_path / "home"), model, kills=3, inside=1, steps=16)
    assert len(found) >= 3 and sum(found) >= 1


def test_pause_goes_on_and_stop_too(recipe, tmp_path):
    trainings, recipe = Unlaunched(tmp_path / "home"), replace(recipe, steps=4)
    whole, one = (trainings.start(recipe, pictures(), owner) for owner in ("a", "b"))
    run_here(trainings.home / whole)
    for ask, state, step in ((trainings.pause, "paused", 1), (trainings.stop, "stopped", 2)):
        ask(one, "b")
        run_here(trainings.home / one)
        assert trainings.status(one, "b").state == state
        assert trainings.checkpoints(one, "b")[-1] == step == trainings.steps(one, "b")[-1]["step"]
        trainings.go_on(one, "b")
        assert trainings.status(one, "b").state == "waiting"
    run_here(trainings.home / one)
    assert trainings.status(one, "b").state == "done"
    a, b = (checkpoints.weights_of(trainings.checkpoint(t, None, 4)).read_bytes() for t in (whole, one))
    assert a == b
    assert [s["loss"] for s in trainings.steps(whole, None)] == [s["loss"] for s in trainings.steps(one, None)]


def test_class_pictures_are_made_once_for_a_model_and_a_class(done, model):
    trainings, _ = done
    (made,) = (trainings.home / "class").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert sorted(kept) == ["000.png", "001.png", "002.png"]
    more = replace(RECIPE, model=str(model), steps=1, class_images=4)
    another = trainings.start(more, pictures(), "cleo")
    run_here(trainings.home / another)
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir() if path.name != "003.png"} == kept
    assert len(list(made.iterdir())) == 4 and len(list((trainings.home / "class").iterdir())) == 1
    sd = models.load(str(model), device="cpu")
    there = trainer.class_pictures(trainings.home / another, sd, more, Accelerator(cpu=True))
    assert len(there) == 4 and not [one for one in psutil.Process().open_files() if str(made) in one.path], "none is kept open"
    trainings.forget(another, "cleo")


# --- where it goes wrong --------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(recipe, tmp_path, monkeypatch):
    trainings, limit, hard = Unlaunched(tmp_path / "home"), *resource.getrlimit(resource.RLIMIT_FSIZE)
    one = trainings.start(recipe, pictures(), "a")
    folder, write_step = trainings.home / one, trainer.write_step

    def fill_up(where: Path, step) -> None:
        write_step(where, step)
        if step.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # from here on, larger files find no room

    monkeypatch.setattr(trainer, "write_step", fill_up)
    try:
        run_here(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    status = trainings.status(one, "a")
    assert (status.state, status.message) == (
        "failed",
        "The disk is full; what was saved last is good: go on from there when there is room again.",
    )
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000004"], "nothing half is left to take room"
    assert checkpoints.newest(folder / "checkpoints", state=True)
    monkeypatch.setattr(trainer, "write_step", write_step)
    trainings.go_on(one, "a")
    run_here(folder)
    assert trainings.status(one, "a").state == "done" and trainings.checkpoints(one, "a") == [4, 8]


def test_the_time_left_counts_steps_and_no_set_up(recipe, tmp_path, monkeypatch):
    trainings, left, tell, moments = Unlaunched(tmp_path / "home"), [], lane.tell, dreambooth.moments
    one = trainings.start(replace(recipe, steps=2), pictures(), "a")

    def slow(*given):
        time.sleep(5)
        return moments(*given)

    def told(folder, state, **facts):
        left.extend([facts["seconds_left"]] if state == "training" else [])
        tell(folder, state, **facts)

    monkeypatch.setattr(dreambooth, "moments", slow)
    monkeypatch.setattr(lane, "tell", told)
    run_here(trainings.home / one)
    assert trainings.status(one, "a").state == "done" and 0 < left[0] < 5 and left[-1] == 0


def test_a_training_that_fails_says_why(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")

    def message(error: Exception) -> str:
        monkeypatch.setattr(trainer, "run", lambda *_: (_ for _ in ()).throw(error))
        run_here(trainings.home / one)
        assert trainings.status(one, "a").state == "failed"
        return trainings.status(one, "a").message

    assert message(ValueError("The loss was not finite.")) == "The loss was not finite."
    assert "ran out of memory" in message(torch.OutOfMemoryError("CUDA"))
    assert "disk is full" in message(RuntimeError("PytorchStreamWriter failed: No space left on device"))
    assert message(KeyError("x")) == f"The training failed (KeyError, {one[:8]}); its log says more."


def test_a_training_that_diverged_does_not_go_on_to_diverge_again(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    monkeypatch.setattr(dreambooth.Learner, "mean", lambda self, losses: [float("nan"), 0.0])
    run_here(trainings.home / one)
    status = trainings.status(one, "a")
    assert status.state == "diverged" and "use its settings with a lower rate" in status.message
    with pytest.raises(ValueError, match="diverged, and would again; use its settings with a lower rate"):
        trainings.go_on(one, "a")


def test_a_model_that_is_another_now_is_refused(recipe, tmp_path):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    settings = trainings.home / one / "settings.json"
    lane.write(settings, {**lane.read(settings), "revision": "another"})
    run_here(trainings.home / one)
    assert "not the one that this training began with" in trainings.status(one, "a").message


def test_a_folder_that_was_trained_further_is_another_model(recipe, model, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(model, folder)
    before = models.load(str(folder), device="cpu")
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(replace(recipe, model=str(folder)), pictures(), "a")
    before.unet.save_pretrained(folder / "unet")  # the same shapes
    run_here(trainings.home / one)
    assert "not the one that this training began with" in trainings.status(one, "a").message
    now = models.load(str(folder), device="cpu")
    assert previews.class_name(now, recipe) != previews.class_name(before, recipe), "it draws its class pictures itself"


def test_a_trainer_whose_starter_died_is_interrupted(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    folder = trainings.home / one
    lane.tell(folder, "preparing", pid=7)
    monkeypatch.setattr(trainer, "STARTER", "7")
    accelerator = type("One", (), {"num_processes": 1})
    assert trainer.asked_for(folder, accelerator) == "interrupted"
    alive = lane.hold(folder / "alive.lock")
    assert trainer.asked_for(folder, accelerator) is None
    lane.tell(folder, "preparing", pid=8)  # another took over
    assert trainer.asked_for(folder, accelerator) == "interrupted"
    alive.close()
    assert trainings.status(one, "a").state == "preparing", "its process may just be beginning"
    lane.tell(folder, "training", queued=0.0)
    assert trainings.status(one, "a").state == "interrupted" and "go on from there" in trainings.status(one, "a").message


def test_a_trainer_whose_training_went_on_elsewhere_says_nothing_of_it(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    folder = trainings.home / one
    monkeypatch.setattr(trainer, "STARTER", "7")

    def fail(*_):
        raise ValueError("The loss was not finite.")

    for end in (lambda *_: "interrupted", fail):
        monkeypatch.setattr(trainer, "run", end)
        for state, pid in (("waiting", 7), ("training", 8)):
            lane.tell(folder, state, pid=pid)
            try:
                trainer.main(folder)
            except SystemExit as ended:
                assert ended.code == 1
            assert lane.read(folder / "status.json")["state"] == state


@pytest.mark.parametrize("state", ["stopped", "interrupted"])
def test_class_pictures_are_left_off_where_nobody_wants_them_now(recipe, tmp_path, monkeypatch, state):
    drawn = previews.drawn
    monkeypatch.setattr(previews, "drawn", lambda sd, asked, *rest: drawn(sd, [replace(r, steps=1) for r in asked], *rest))
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(replace(recipe, class_images=4), pictures(), "a")
    lane.tell(trainings.home / one, "preparing", pid=7, queued=0.0)
    if state == "stopped":
        trainings.stop(one, "a")
    else:
        monkeypatch.setattr(trainer, "STARTER", "7")  # which is no more: nobody holds alive.lock
    trainer.main(trainings.home / one)
    assert trainings.status(one, "a").state == state and not trainings.steps(one, "a")
    assert len(list((trainings.home / "class").glob("*/*.png"))) == 1


def test_the_recipe_says_the_precision_and_not_accelerates_config(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainings, seen = Unlaunched(tmp_path / "home"), []
    one = trainings.start(recipe, pictures(), "a")
    monkeypatch.setattr(trainer, "run", lambda _, accelerator: seen.append(accelerator.mixed_precision) or "done")
    AcceleratorState._reset_state(True)  # as in a new process
    try:
        trainer.main(trainings.home / one)
    finally:
        AcceleratorState._reset_state(True)
    assert seen == ["no"]


def test_two_who_look_at_a_lock_do_not_see_each_other(tmp_path):
    path = tmp_path / "alive.lock"
    assert not lane.held(path), "deleted, or not there yet"
    path.touch()
    with path.open("rb") as looking:
        lane.fcntl.flock(looking, lane.fcntl.LOCK_SH)
        assert not lane.held(path)
    holding = lane.hold(path)
    assert lane.held(path)
    holding.close()
    assert not lane.held(path)


def test_a_process_that_is_slow_to_begin_is_not_taken_for_a_dead_one(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    lane.tell(trainings.home / one, "waiting", queued=0.0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setitem(trainings_module.CHILDREN, one, child)
    assert trainings.status(one, "a").state == "waiting"
    child.kill()
    child.wait()
    assert trainings.status(one, "a").state == "interrupted"


def test_the_lane_says_so_when_its_trainer_is_gone(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    one = trainings.start(recipe, pictures(), "a")
    monkeypatch.setattr(lane.os, "nice", lambda by: by)
    monkeypatch.setattr(lane.signal, "signal", lambda *_: None)
    monkeypatch.setattr(lane, "command", lambda folder: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    lane.main(trainings.home / one)
    assert trainings.status(one, "a").state == "interrupted"
    assert not lane.held(trainings.home / one / "alive.lock") and not lane.held(trainings.home / "lane.lock")


def test_a_training_that_waits_imports_nothing_heavy():
    code = "import sys, core.lane; print(len({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=lane.ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "0"


def test_nothing_secret_goes_to_the_trainer(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "GH_TOKEN"):
        monkeypatch.setenv(name, "x-secret")
    kept = lane.clean_environment()
    assert "x-secret" not in kept.values() and "PATH" in kept and kept["HF_HUB_OFFLINE"] == "1"


# --- refusals -------------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    for pattern, changes, count, theme in (
        ("There are 2 pictures; give 3 to 30", {}, 2, "animal"),
        ("There are 31 pictures; give 3 to 30", {}, 31, "animal"),
        ("no theme 'weather'", {}, 3, "weather"),
        ("no model 'nothing'", {"model": "nothing"}, 3, "animal"),
    ):
        with pytest.raises(ValueError, match=pattern):
            trainings.start(replace(recipe, **changes), (pictures() * 8)[:count], "a", theme)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    with pytest.raises(ValueError, match=r"takes \d+ MB of disk, and 1 MB are free"):
        trainings.start(recipe, pictures(), "a")
    assert not trainings.home.exists()


def test_a_training_that_cannot_be_read_stops_nobody(recipe, tmp_path):
    trainings = Unlaunched(tmp_path / "home")
    half = trainings.home / ("0" * 32)
    half.mkdir(parents=True)
    (half / "settings.json").write_text("")  # the current went off
    one = trainings.start(recipe, pictures(), "a")
    lane.tell(trainings.home / one, "paused")
    trainings.go_on(one, "a")
    assert trainings.status(one, "a").state == "waiting"


def test_only_so_many_wait(recipe, tmp_path, monkeypatch):
    trainings = Unlaunched(tmp_path / "home")
    for k in range(11):
        trainings.start(recipe, pictures(), f"person {k}")
    with pytest.raises(ValueError, match="10 trainings are waiting"):
        trainings.start(recipe, pictures(), "one more")


def test_one_person_trains_one_thing_at_a_time(recipe, tmp_path, monkeypatch):
    trainings, together = Unlaunched(tmp_path / "home"), Barrier(2)
    needed = preflight.disk_needed
    monkeypatch.setattr(preflight, "disk_needed", lambda *given: (together.wait(20), needed(*given))[1])

    def start(_):
        try:
            return trainings.start(recipe, pictures(), "anna")
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:  # two clicks at once
        said = sorted(pool.map(start, range(2)), key=len)
    assert said[1].startswith("You have a training going on already") and trainings.mine("anna") == [said[0]]
    assert [path.name for path in trainings.home.iterdir()] == [said[0]], "nothing is left of the other"
    monkeypatch.setattr(preflight, "disk_needed", needed)
    lane.tell(trainings.home / said[0], "paused")
    trainings.start(recipe, pictures(), "anna")
    with pytest.raises(ValueError, match="You have a training going on already"):
        trainings.go_on(said[0], "anna")
    assert trainings.status(said[0], "anna").state == "paused"


def test_somebody_elses_training_is_not_there(done):
    trainings, one = done
    assert trainings.mine("anna") == [one] and trainings.mine("ben") == []
    for what in (
        lambda: trainings.status(one, "ben"),
        lambda: trainings.steps(one, "ben"),
        lambda: trainings.previews(one, ""),
        lambda: trainings.forget(one, "ben"),
        lambda: trainings.export(one, "ben", 8),
        lambda: trainings.status("0" * 32, None),
        lambda: trainings.status("../" + one, None),
        lambda: trainings.status("", None),
        lambda: trainings.status(None, None),
    ):
        with pytest.raises(ValueError, match=UNKNOWN):
            what()
    assert trainings.status(one, None).state == "done", "whoever knows the id may ask"
    assert "anna" not in (trainings.home / one / "settings.json").read_text()
    with pytest.raises(ValueError, match="no checkpoint of step 5"):
        trainings.model(one, "anna", 5)


# --- what it says on the way ----------------------------------------------------------------------------------------------------------


def test_previews_say_what_they_show(done):
    trainings, one = done
    first, middle, last = trainings.previews(one, "anna")
    assert (first["step"], middle["step"], last["step"]) == (0, 4, 8)
    assert [p["kind"] for p in last["pictures"]] == ["subject", "class", "class"]
    assert all(Image.open(p["path"]).size == (64, 64) for p in last["pictures"])
    assert last["photos"]["measure"] is None and last["likeness"] is None, "no embedder for a toy model"
    assert len(last["photos"]["spread"]) == 4 and last["distance"] > 0
    assert trainings.steps(one, "anna", 6)[0]["step"] == 7
    facts = trainings.settings(one, "anna")
    assert facts["pictures"] == 4 and facts["theme"] == "animal" and "owner" not in facts


def test_a_status_reads_while_it_is_written(tmp_path):
    lane.write(tmp_path / "status.json", {"state": "training"})
    (tmp_path / "status.tmp").write_text("{")
    assert lane.read(tmp_path / "status.json") == {"state": "training"} and lane.read(tmp_path / "no.json") == {}


# --- taking it home -------------------------------------------------------------------------------------------------------------------


def test_the_lora_file_is_one_of_its_own_with_its_strength_in_it(done):
    trainings, one = done
    whole, half = (trainings.export(one, "anna", 8, strength) for strength in (1.0, 0.5))
    assert whole.suffix == ".safetensors" and half.name == f"dreambooth-{one[:8]}-8-0.5.safetensors"
    a, b = load_file(whole), load_file(half)
    for name in a:
        assert torch.equal(b[name], a[name] * (0.5 if ".lora_B." in name else 1)), name
    with pytest.raises(ValueError, match="no export 'zip'"):
        trainings.export(one, "anna", 8, 1.0, "zip")


def test_of_exports_the_newest_are_kept(done):
    trainings, one = done
    files = [trainings.export(one, "anna", 8, strength) for strength in (0.1, 0.2, 0.3, 0.1, 0.4)]
    assert [file.exists() for file in files] == [True, False, True, True, True]


def test_a_folder_packed_twice_at_once_is_whole(tmp_path, monkeypatch):
    source, target, together = tmp_path / "model", tmp_path / "model.zip", Barrier(2)
    source.mkdir()
    (source / "weights").write_bytes(bytes(10**6))
    write = zipfile.ZipFile.write
    monkeypatch.setattr(zipfile.ZipFile, "write", lambda *given: (together.wait(20), write(*given)))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: publish.packed(source, target), range(2))) == [target] * 2
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None and archive.namelist() == ["weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.zip"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_folder_opens_in_diffusers_and_here_and_draws_the_same(done, method, recipe, model, tmp_path):
    trainings, one = done
    if method == "full":
        one = trainings.start(replace(recipe, steps=4), pictures(), "dora")
        run_here(trainings.home / one)
        with pytest.raises(ValueError, match="has no LoRA; take the whole folder"):
            trainings.export(one, None, 4, 1.0, "lora")
    step = trainings.checkpoints(one, None)[-1]
    file = trainings.export(one, None, step, 0.8, "folder")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.glob("dreambooth-*")
    index = json.loads((folder / "model_index.json").read_text())
    assert "Pil" not in json.dumps(index) and index["safety_checker"] == [None, None]
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    sd, here = (
        models.load(str(folder), device="cpu"),
        models.adapted(models.load(str(model)), trainings.checkpoint(one, None, step), 0.8),
    )
    for mine in (sd.unet, pipe.unet):
        assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), here.unet.state_dict().values(), strict=True))
    with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as words:
        assert all(name.startswith("text_model.") for name in words.keys()), "or transformers 4 draws new weights"  # noqa: SIM118
    ends = [list(denoise(m, Request("a sks dog", steps=2)))[-1].x_next for m in (sd, here)]
    assert torch.equal(*ends)
    assert not any(b"/" + str(model).encode()[1:] in path.read_bytes() for path in folder.rglob("*.json")), "where it was made"
    assert (folder / "README.md").exists()


def test_the_card_says_what_it_is_and_cannot_be_broken_by_words(done, model):
    trainings, one = done
    text = trainings.export(one, "anna", 8, 0.5, "card").read_text()
    _, front, body = text.split("---\n", 2)
    used = replace(RECIPE, precision="auto").precision_on(torch.device("cpu"))
    assert f"| precision | {used} |" in body, "and not auto, which says nothing to whoever reads it elsewhere"
    facts = yaml.safe_load(front)
    assert facts["license"] == "other" and facts["license_name"] == "see its model card" and "animal" in facts["tags"]
    assert facts["instance_prompt"] == "a sks dog" and "base_model" not in facts and facts["library_name"] == "diffusers"
    for words in (
        "| pictures | 4, described as `a sks dog` |",
        "LoRA, rank 4",
        "8 of 8, batch 2 x 1",
        "0.5, worked into",
        "likeness",
    ):
        assert words in body, words
    assert "\n# dog" not in body and str(model.parent) not in text


class Hub:
    """A stand-in for the Hub where the network begins: it takes what the real client sends it."""

    def __init__(self, status: int = 200, private: bool = True):
        self.status, self.private, self.seen, self.files = status, private, [], {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.seen.append((request.method, path, request.headers.get("authorization")))
        if self.status != 200:
            return httpx2.Response(self.status, json={"error": "no"}, request=request)
        if path == "/api/repos/create":
            self.made = json.loads(request.content)
            return httpx2.Response(200, json={"url": "https://huggingface.co/anna/taxi"}, request=request)
        if path.endswith("/preupload/main"):
            asked = json.loads(request.content)["files"]
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            return httpx2.Response(200, json={"files": files}, request=request)
        if path.endswith("/commit/main"):
            for line in request.read().splitlines():
                if (one := json.loads(line))["key"] == "file":
                    self.files[one["value"]["path"]] = one["value"]["content"]
            said = {"commitUrl": "https://huggingface.co/anna/taxi/commit/1", "commitOid": "1", "success": True}
            return httpx2.Response(200, json=said, request=request)
        if path == "/api/models/anna/taxi":
            return httpx2.Response(200, json={"id": "anna/taxi", "private": self.private}, request=request)
        return httpx2.Response(200, json={}, request=request)


@pytest.fixture
def hub(monkeypatch):
    def put(stand_in):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        transport = httpx2.MockTransport(stand_in)
        monkeypatch.setattr("huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY", lambda: httpx2.Client(transport=transport))
        huggingface_hub.close_session()
        return stand_in

    yield put
    # The library's own client comes back: any other would ask the network in the tests that follow, where the Hub is said to be off.
    monkeypatch.undo()
    huggingface_hub.close_session()


def test_pushing_uploads_the_adapter_its_card_and_samples_with_the_visitors_token(done, hub):
    trainings, one = done
    seen = hub(Hub())
    address = trainings.push(one, "anna", 8, 1.0, "taxi", "hf_mine")
    assert address == "https://huggingface.co/anna/taxi"
    assert sorted(seen.files) == ["README.md", "pytorch_lora_weights.safetensors", "samples/0.png"]
    assert seen.made["name"] == "taxi" and (seen.made.get("private") or seen.made.get("visibility") == "private")
    own = [
        (path, token) for _, path, token in seen.seen if "repos" in path or "taxi" in path
    ]  # the client asks for lists of its own
    assert len(own) >= 3 and {token for _, token in own} == {"Bearer hf_mine"}
    assert not any(b"hf_mine" in path.read_bytes() for path in trainings.home.rglob("*") if path.is_file()), "kept nowhere"


def test_nothing_private_goes_into_a_repository_that_is_public_already(done, hub):
    trainings, one = done
    seen = hub(Hub(private=False))
    with pytest.raises(ValueError, match="anna/taxi is there already and public"):
        trainings.push(one, "anna", 8, 1.0, "taxi", "hf_mine")
    assert not seen.files
    trainings.push(one, "anna", 8, 1.0, "taxi", "hf_mine", private=False)
    assert seen.files


def test_what_the_hub_refuses_is_a_sentence(done, hub):
    trainings, one = done

    def push(token="hf_mine", name="anna/taxi"):
        trainings.push(one, "anna", 8, 1.0, name, token)

    with pytest.raises(ValueError, match="There is no token"):
        push(token=" ")
    hub(Hub(401))
    with pytest.raises(ValueError, match="refuses this token"):
        push()
    hub(Hub(500))
    with pytest.raises(ValueError, match=r"answered with an error \(500\)"):
        push()

    def gone(request):
        raise httpx2.ConnectError("no route", request=request)

    hub(gone)
    with pytest.raises(ValueError, match="could not be reached"):
        push()
    hub(Hub())
    with pytest.raises(ValueError, match="is no name of a repository"):
        push(name="a/b/c")
