"""Records the training that the DreamBooth tab opens with: the poodle, by the preset "embedded".

python scripts/example_training.py    # writes assets/examples/dreambooth; some minutes on two cores
"""

import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core import lane, subjects
from core.recipe import PRESETS
from core.trainings import Trainings

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples" / "dreambooth" / ("0" * 32)
KEPT = ("images", "previews", "steps.jsonl")
PLACES = (" on a blue background", " on a red background", " on a brown background", "")


def main() -> None:
    sample = subjects.SAMPLES["poodle"]
    words = f"a sks {sample.kind}"
    recipe = replace(
        PRESETS["embedded"],
        instance_prompt=words,
        class_prompt=f"a {sample.kind}",
        prompts=tuple(words + place for place in PLACES),
    )
    with tempfile.TemporaryDirectory() as home:
        trainings = Trainings(Path(home))
        one = trainings.start(recipe, sample.pictures(), "example", theme="animal", subject=sample.name)
        while (status := trainings.status(one, None)).state not in lane.ENDED:
            print(status.state, status.step, flush=True)
            time.sleep(10)
        assert status.state == "done", status
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        for name in KEPT:
            place = Path(home) / one / name
            (shutil.copytree if place.is_dir() else shutil.copy)(place, FOLDER / name)
        settings = {k: v for k, v in lane.read(Path(home) / one / "settings.json").items() if k != "owner"}
        (FOLDER / "settings.json").write_text(json.dumps(settings) + "\n")
        facts = {"state": "done", "step": status.step, "count": status.count, "seconds_left": 0.0, "rate": status.rate}
        facts["precision"] = trainings.settings(one, None)["precision"]
        (FOLDER / "status.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
