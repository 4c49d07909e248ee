"""One training at a time on this machine: who waits for whom, started without anything heavy.

    python -m core.lane FOLDER        waits for its turn, then runs the trainer of that folder (core/trainer.py) and sees it end

A training that waits costs 10 MB this way, as torch is not imported. Two locks tell the truth, whatever dies: alive.lock in the training's
folder is held as long as somebody works on it, and lane.lock beside the folders by the one that trains.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: everything but training works there
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("paused", "done", "stopped", "failed", "diverged", "interrupted")
LAST = "what was saved last is good: go on from there"
FLAGS = {"stop": "stopped", "pause": "paused"}  # a file in the folder -> the state that it asks for


def hold(path: Path, wait: bool = False) -> IO | None:
    """The lock of a file, for as long as what is returned stays open; None if another holds it."""
    assert fcntl is not None
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        return None
    return file


def held(path: Path) -> bool:
    """Whether somebody holds the lock of a file. Looked at with a shared lock, so that two who look at once do not see each other."""
    try:
        with path.open("rb") as file:
            assert fcntl is not None
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # deleted, maybe just now
        return False
    return False


def write(path: Path, facts: Any) -> None:
    """Beside, then renamed: readers see the old text or the new one."""
    stage = path.with_suffix(".tmp")
    stage.write_text(json.dumps(facts), "utf-8")
    os.replace(stage, path)


def read(path: Path) -> dict:
    """What was written; nothing if it is not there or not readable."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def tell(folder: Path, state: str, **facts: Any) -> None:
    """Writes a training's status; what is not said again stays as it was, but for the message."""
    write(folder / "status.json", {**read(folder / "status.json"), "message": "", **facts, "state": state, "at": time.time()})


def wanted(folder: Path) -> str | None:
    """The state that somebody asks for: "stopped", "paused" or None."""
    return next((state for flag, state in FLAGS.items() if (folder / flag).exists()), None)


def ahead(folder: Path) -> list[Path]:
    """The trainings that come before this one: the one that trains, and those that wait for longer."""
    mine = (read(folder / "status.json").get("queued", 0.0), folder.name)
    before = []
    for other in folder.parent.iterdir():
        status = read(other / "status.json") if other != folder and (other / "status.json").exists() else {}
        if status.get("state", "done") not in ENDED and held(other / "alive.lock"):
            working = status["state"] != "waiting"
            if working or (status.get("queued", 0.0), other.name) < mine:
                before.append(other)
    return before


def clean_environment() -> dict[str, str]:
    """The environment without anything secret: the trainer asks nobody for anything."""
    secret = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not secret.search(name)}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def command(folder: Path) -> list[str]:
    """How the trainer is started: by accelerate, whose own config file (`accelerate config`) says on how many devices and machines."""
    if "ACCELERATE_CONFIG_FILE" in os.environ:
        how = ["--config_file", os.environ["ACCELERATE_CONFIG_FILE"]]
    elif (Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "accelerate" / "default_config.yaml").exists():
        how = []
    else:  # no config: one process on one device, said in full, or accelerate warns of each thing that it assumes
        how = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *how, "-m", "core.trainer", str(folder)]


def main(folder: Path) -> None:
    alive = hold(folder / "alive.lock", wait=True)  # a training that has just ended may still be on its way out
    assert alive
    if read(folder / "status.json").get("state") != "waiting":
        return  # it was started twice, and is done
    tell(folder, "waiting", session=os.getpid())
    os.nice(5)  # pictures that are drawn meanwhile come first
    lane = None
    while lane is None:
        if state := wanted(folder):
            return tell(folder, state)
        if not ahead(folder):
            lane = hold(folder.parent / "lane.lock")
        if lane is None:
            time.sleep(0.3)
    tell(folder, "preparing", pid=os.getpid())
    child = subprocess.Popen(command(folder), cwd=ROOT, env={**clean_environment(), "LANE": str(os.getpid())})
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    child.wait()
    if read(folder / "status.json").get("state") in ("preparing", "training"):  # "waiting": somebody has it go on already
        tell(folder, "interrupted", message=f"The training was interrupted; {LAST}.")
    lane.close()
    alive.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
