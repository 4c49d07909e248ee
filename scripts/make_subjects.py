"""Renders the sample sets of the DreamBooth lessons: the ten held-out subjects in seven pictures each, as a person would take photos of
one thing: flipped, turned, nearer and farther, in other places.

    python scripts/make_subjects.py    # writes assets/subjects; wants the art that fetch_art.py brings
"""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from scenes import BACKGROUNDS, HELD_OUT, Spec, _background, _stylise, art

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "subjects"
SIDE = 256
# Background, style, share of the side, degrees turned, flipped. None is blue: that is what the lesson asks for afterwards.
POSES = [
    ("white", "photo", 0.78, 0, False),
    ("yellow", "photo", 0.62, -12, True),
    ("gray", "photo", 0.86, 8, False),
    ("green", "3d render", 0.7, 0, True),
    ("pink", "photo", 0.54, 15, False),
    ("cyan", "watercolor", 0.76, -6, True),
    ("orange", "photo", 0.7, 4, True),
]


def render(name: str, pose: tuple, seed: int) -> Image.Image:
    background, style, share, degrees, flip = pose
    rng = random.Random(seed)
    light = _background(Spec((name,), "alone", background, False, style, "", seed), SIDE, rng)
    picture = art(name).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    picture = picture.crop(picture.getbbox())
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture
    scale = share * SIDE / max(picture.size)
    picture = picture.resize([round(n * scale) for n in picture.size], Image.Resampling.BICUBIC)
    canvas = Image.fromarray(light.round().astype(np.uint8))
    place = [round((SIDE - n) / 2 + rng.uniform(-0.06, 0.06) * SIDE) for n in picture.size]
    canvas.paste(picture, place, picture)
    layer = Image.new("L", (SIDE, SIDE))
    layer.paste(picture.getchannel("A"), place)
    return _stylise(canvas, style, light, np.asarray(layer, np.float32)[..., None] / 255)


def main() -> None:
    index = {}
    for name, (_, kind) in HELD_OUT.items():
        slug = name.replace(" ", "-")
        (FOLDER / slug).mkdir(parents=True, exist_ok=True)
        for i, pose in enumerate(POSES):
            render(name, pose, 100 + i).save(FOLDER / slug / f"{i}.png", optimize=True)
        index[slug] = {"name": name, "kind": kind}
    (FOLDER / "subjects.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    assert all(pose[0] in BACKGROUNDS for pose in POSES)
    main()
