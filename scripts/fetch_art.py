"""Fetches the art and the names that scenes.py composes from, and checks that each code point is what we call it.

    python scripts/fetch_art.py

Art:   @lobehub/fluent-emoji-3d 1.1.0 -> .data/fluent      MIT; Microsoft's Fluent Emoji 3D, 256 px RGBA, named by code point
Names: emojibase-data 17.0.0          -> .data/emojibase   MIT
Both come from npm by `npm pack` and are compared with the sums below. What is there already is kept.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scenes import ART, HELD_OUT, OBJECTS

DATA = ART.parent.parent


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    folder: Path  # where its files come to lie
    sha256: str  # of the .tgz that npm delivers


FLUENT = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    folder=DATA / "fluent",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    folder=DATA / "emojibase",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


def is_here(package: Package) -> bool:
    try:
        found = json.loads((package.folder / "package.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (found.get("name"), found.get("version")) == (package.name, package.version)


def fetch(package: Package) -> None:
    """Unpacked beside its place, then renamed: an interrupted call leaves nothing half done."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            f"{package.name} {package.version} comes from npm, and npm is not installed. Install Node.js, or unpack that package "
            f"so that its package.json becomes {package.folder / 'package.json'}."
        )
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, suffix=".tmp") as place:
        order = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
        packed = subprocess.run(order, cwd=place, capture_output=True, text=True)
        archives = list(Path(place).glob("*.tgz"))
        if packed.returncode or not archives:
            sys.exit(f"npm could not deliver {package.name} {package.version}: {packed.stderr.strip() or 'it gave no reason'}")
        if hashlib.sha256(archives[0].read_bytes()).hexdigest() != package.sha256:
            sys.exit(f"{package.name} {package.version} is not the file that this project was made with; nothing was unpacked.")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(place, filter="data")
        shutil.rmtree(package.folder, ignore_errors=True)
        (Path(place) / "package").rename(package.folder)


def labels() -> dict[str, str]:
    """Code point in our spelling, without the mark fe0f that either side may leave out -> what Unicode calls it."""
    emoji = json.loads((EMOJIBASE.folder / "en" / "data.json").read_text("utf-8"))
    return {entry["hexcode"].lower().replace("-fe0f", ""): entry["label"] for entry in emoji}


def main() -> None:
    for package in (FLUENT, EMOJIBASE):
        if not is_here(package):
            fetch(package)
        print(f"{package.name} {package.version} is in {package.folder.relative_to(DATA.parent)}")

    called, missing = labels(), []
    codes = OBJECTS | {name: code for name, (code, _) in HELD_OUT.items()}
    for name, code in codes.items():
        label = called.get(code.replace("-fe0f", ""))
        if label is None or not (ART / f"{code}.webp").is_file():
            missing.append(f"{name} ({code})")
        print(f"{code:>22}  {name:<18} {label or 'no such code point'}{'  (held out)' if name in HELD_OUT else ''}")
    if missing:
        sys.exit(f"Without a picture or a name: {', '.join(missing)}")
    print(f"{len(OBJECTS)} objects and {len(HELD_OUT)} held out, each with its picture and its name.")


if __name__ == "__main__":
    main()
