"""What was trained, to take home: a LoRA file, a whole model in diffusers' layout, a model card; and the way to the Hugging Face Hub."""

import json
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2  # what huggingface_hub speaks through
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from core import checkpoints, models
from core.recipe import Recipe

LORA = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for
LICENCES = {  # the catalogue's words -> the Hub's
    "Apache-2.0": "apache-2.0",
    "CreativeML OpenRAIL-M": "creativeml-openrail-m",
    "CreativeML Open RAIL++-M": "openrail++",
}
NOTICE = (
    "This model was made to draw one particular thing from a few pictures of it. If that is a person, or somebody's work, ask them before "
    "you share the model or its pictures: rights of likeness and of authors apply to what it draws as they do to the pictures."
)


def lora(checkpoint: Path, strength: float, target: Path) -> Path:
    """The adapter as a file of its own, its strength worked in. Raises ValueError where all weights were trained instead."""
    if checkpoints.weights_of(checkpoint).name != LORA:
        raise ValueError("This training changed all weights and has no LoRA; take the whole folder.")
    with safe_open(checkpoint / LORA, "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, as this is no dict
    save_file({n: strength * w if ".lora_B." in n else w for n, w in weights.items()}, target, metadata=about)
    return target


def folder(place: str, checkpoint: Path, strength: float, target: Path) -> Path:
    """A whole model: the base model's folder, found at place, with the UNet and text encoder that were trained. Any diffusers opens it."""
    found = models.catalog.resolve(place, fetch=False)
    made = models.adapted(models.load(place, device="cpu", dtype=torch.float32, fetch=False), checkpoint, strength)
    target.mkdir(parents=True)
    for part in ("tokenizer", "scheduler", "vae"):
        shutil.copytree(found.folder / part, target / part, symlinks=False)
    if (found.folder / "preview.json").exists():
        shutil.copy(found.folder / "preview.json", target)
    made.unet.save_pretrained(target / "unet")
    made.text_encoder.save_pretrained(target / "text_encoder", max_shard_size="1TB")
    # Under the names that every version of transformers knows: the fifth leaves "text_model." out, and the fourth would draw new weights.
    words = {f"text_model.{n.removeprefix('text_model.')}": w for n, w in made.text_encoder.state_dict().items()}
    save_file(words, target / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    for config in target.glob("*/config.json"):  # where it was made is nobody's business
        facts = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
        config.write_text(json.dumps(facts, indent=2) + "\n")
    index = json.loads((found.folder / "model_index.json").read_text())
    for part, what in index.items():  # a safety checker and such, which this app does not load
        if isinstance(what, list) and not (target / part).is_dir():
            index[part] = [None, None]
    index["requires_safety_checker"] = False
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    digests = {str(path.relative_to(target)): checkpoints.digest(path) for path in sorted(target.glob("*/*.safetensors"))}
    (target / "manifest.json").write_text(json.dumps({"sha256": digests}, indent=1) + "\n")
    return target


def packed(source: Path, target: Path) -> Path:
    """A folder as one file; weights do not get smaller, so they are not compressed. Written beside, each call for itself, then renamed."""
    stage = target.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(stage, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, path.relative_to(source))
        stage.replace(target)
    finally:
        stage.unlink(missing_ok=True)
    return target


# --- the card -------------------------------------------------------------------------------------------------------------------------


def plain(words: str) -> str:
    """Words of a visitor's as code in a line of Markdown: nothing in them is a mark."""
    return "`" + re.sub(r"[`|<>\s]+", " ", words).strip() + "`"


def card(settings: Mapping, step: int, strength: float, samples: Sequence[tuple[str, str]]) -> str:
    """README.md: what it is, how it was trained, what may be done with it. samples: (file beside the card, prompt)."""
    recipe = Recipe.of(settings["recipe"])
    adapter = recipe.method == "lora"
    licence = LICENCES.get(settings["licence"], "other")
    front = {
        "license": licence,
        **({"license_name": settings["licence"]} if licence == "other" else {}),
        **({"base_model": settings["source"]} if "/" in settings["source"] else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "text-to-image", "dreambooth", settings["theme"], *(["lora"] if adapter else [])],
        "instance_prompt": recipe.instance_prompt,
    }
    prior = f"{recipe.class_images}, {plain(recipe.class_prompt)}, weight {recipe.prior_weight:g}" if recipe.prior else "none"
    rows = {
        "base model": f"{settings['source']}, revision {settings['revision']}",
        "pictures": f"{settings['pictures']}, described as {plain(recipe.instance_prompt)}",
        "theme": settings["theme"],
        "class pictures": prior,
        "method": f"LoRA, rank {recipe.rank}, alpha {recipe.alpha:g}" if adapter else "all weights of the UNet",
        "text encoder": "trained along" if recipe.text_encoder else "not trained",
        "steps": f"{step} of {recipe.steps}, batch {recipe.batch} x {recipe.accumulation}",
        "learning rate": f"{recipe.rate:g}, {recipe.schedule}, {recipe.warmup} steps of warm-up",
        "min-SNR gamma": "off" if recipe.snr_gamma is None else f"{recipe.snr_gamma:g}",
        "precision": settings.get("precision", recipe.precision),
        "seed": str(recipe.seed),
        **({"strength": f"{strength:g}, worked into the weights"} if strength != 1 else {}),
    }
    title = f"{recipe.identifier or settings['subject'] or 'DreamBooth'}: DreamBooth on {settings['source'].rpartition('/')[2]}"
    use = "pipe = StableDiffusionPipeline.from_pretrained(BASE)\npipe.load_lora_weights(FOLDER)" if adapter else (
        "pipe = StableDiffusionPipeline.from_pretrained(FOLDER)"
    )  # fmt: skip
    parts = [
        "---\n" + "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in front.items()) + "---",
        f"# {plain(title)[1:-1]}",
        f"A model that draws the thing called {plain(recipe.identifier or recipe.instance_prompt)}.",
        "\n".join(f"![{plain(prompt)[1:-1]}]({file})" for file, prompt in samples),
        f"```python\nfrom diffusers import StableDiffusionPipeline\n\n{use}\n"
        f"pipe({json.dumps(plain(recipe.instance_prompt)[1:-1], ensure_ascii=False)}).images[0]\n```",
        "| setting | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        f"Licence: that of the base model, {settings['licence']}.",
        NOTICE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the Hub --------------------------------------------------------------------------------------------------------------------------


def push(source: Path, repository: str, token: str, private: bool) -> str:
    """Uploads a folder as a model of this token's owner, and returns its address. Raises ValueError with one sentence."""
    if not isinstance(token, str) or not token.strip():
        raise ValueError("There is no token; make one that may write on huggingface.co/settings/tokens.")
    api = HfApi(token=token.strip())
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:  # one that is there already stays as it is
            raise ValueError(
                f"The repository {made.repo_id} is there already and public; name another, or make it private first."
            )
        api.upload_folder(repo_id=made.repo_id, folder_path=source, commit_message="A DreamBooth training")
    except HFValidationError as error:
        raise ValueError(f"{repository[:60]!r} is no name of a repository; give one like name, or owner/name.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise ValueError("The Hub refuses this token; give one that may write to this repository.") from error
        raise ValueError(f"The Hub answered with an error ({code}); try again later.") from error
    except (OSError, RuntimeError, httpx2.HTTPError) as error:  # no network, cut off
        raise ValueError(f"The Hub could not be reached ({type(error).__name__}); try again later.") from error
    return str(made)


def staged() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dreambooth-")
