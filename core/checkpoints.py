"""Checkpoints that a kill or a full disk cannot spoil.

    checkpoints/step_000050.tmp/     everything is written here, and flushed to the disk file by file
    checkpoints/step_000050/         the same folder, renamed: whole, or not there
    …/manifest.json                  written last: the sha256 of each file. A folder without it does not count.

So at every moment the newest checkpoint whose manifest is right can be trusted, and an older one stays until a newer one is whole.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

WEIGHTS = ("pytorch_lora_weights.safetensors", "weights.safetensors")  # of an adapter, or of the whole model
STATE = "state.pt"  # the optimizer's and schedule's, without which training cannot go on, but pictures can be drawn
WITH_STATE = 2  # the newest ones keep it
SMALL = 256 * 2**20  # bytes of weights up to which every checkpoint is kept, and not the newest two alone


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def write(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Makes the checkpoint of a step: fill(path) writes its files. Raises what fill raises; what was there before stays."""
    folder.mkdir(exist_ok=True)  # not its parents: a training that was deleted meanwhile does not come back
    done = folder_of(folder, step)
    stage = done.with_suffix(".tmp")
    for half in set(folder.glob("step_*")) - set(listed(folder)):  # what a kill left, of any step
        shutil.rmtree(half, ignore_errors=True)
    try:
        stage.mkdir()
        fill(stage)
        digests = {file.name: digest(file) for file in sorted(stage.iterdir())}
        for file in [*stage.iterdir(), stage]:
            flush(file)
        shutil.rmtree(done, ignore_errors=True)  # of the same step, from before it was taken up again: the same bits
        stage.rename(done)
        flush(folder)
        write_text(done / "manifest.json", json.dumps({"step": step, "sha256": digests}, indent=1) + "\n")
        flush(done)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)  # gives a full disk its room back
        if not (done / "manifest.json").exists():
            shutil.rmtree(done, ignore_errors=True)
        raise
    prune(folder)
    return done


def whole(checkpoint: Path, state: bool = False) -> bool:
    """Whether every file is the one that the manifest names. state: the training's state too, else the weights alone."""
    try:
        digests = json.loads((checkpoint / "manifest.json").read_bytes())["sha256"]
        wanted = [name for name in digests if state or name in WEIGHTS]
        return bool(wanted) and all(digest(checkpoint / name) == digests[name] for name in wanted)
    except (OSError, ValueError, KeyError):
        return False


def newest(folder: Path, state: bool = False) -> Path | None:
    """The newest checkpoint that is whole."""
    return next((one for one in reversed(listed(folder)) if whole(one, state)), None)


def listed(folder: Path) -> list[Path]:
    """The checkpoints that have a manifest, oldest first."""
    return sorted(one for one in folder.glob("step_*") if one.suffix != ".tmp" and (one / "manifest.json").exists())


def prune(folder: Path) -> None:
    """Lets go of old training states, and of old weights where they are large."""
    for one in listed(folder)[:-WITH_STATE]:
        if weights_of(one).stat().st_size > SMALL:
            (one / "manifest.json").unlink()  # from now on it does not count, also if we are killed on the way
            shutil.rmtree(one)
        else:
            (one / STATE).unlink(missing_ok=True)


def weights_of(checkpoint: Path) -> Path:
    return next(path for name in WEIGHTS if (path := checkpoint / name).exists())


def write_text(path: Path, text: str) -> None:
    """Beside, flushed, then renamed: the old text or the new one, never half of it."""
    stage = path.with_suffix(path.suffix + ".tmp")
    stage.write_text(text, "utf-8")
    flush(stage)
    os.replace(stage, path)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """To the disk, not only to the system's memory; of a folder, its list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_full(error: BaseException | None) -> bool:
    """Whether something failed for want of room: Python says it by number, safetensors and torch in words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(error) for words in ("os error 28", "No space left", "os error 27", "File too large")):
            return True
        error = error.__cause__ or error.__context__
    return False
