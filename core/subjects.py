"""The sample sets of the DreamBooth lessons: ten things that no embedded model has ever seen, in a few pictures each.

scripts/make_subjects.py rendered them: flipped, turned, in other sizes, on other backgrounds, in other styles.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "subjects"


@dataclass(frozen=True)
class Sample:
    """One thing to teach."""

    slug: str  # its folder
    name: str  # what it is, as the judge calls it
    kind: str  # the class word that the base model knows
    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.png"))

    def pictures(self) -> list[Image.Image]:
        """RGB, 256 px a side."""
        return [Image.open(file).convert("RGB") for file in self.files]


def _samples() -> dict[str, Sample]:
    index = FOLDER / "subjects.json"
    entries = json.loads(index.read_text("utf-8")) if index.exists() else {}
    return {slug: Sample(slug, one["name"], one["kind"], FOLDER / slug) for slug, one in entries.items()}


SAMPLES = _samples()
