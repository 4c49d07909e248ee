"""The parts of a Stable Diffusion, loaded once, shared by everyone, changed by no one.

tokenizer     text -> 77 token ids
text_encoder  ids -> (1, 77, D)
unet          (x_in, t, text) -> noise prediction
vae           pictures (B, 3, H, W) <-> latents (B, 4, H / 8, W / 8)
scheduler     only its config: each run makes a scheduler of its own
"""

import copy
import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoImageProcessor, CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from core import attention, catalog, checkpoints

log = logging.getLogger(__name__)

SD_PREVIEW = [  # latents -> RGB for SD 1.x and 2.x, as published with ComfyUI's latent_formats; embedded models carry their own
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
]
X4_PREVIEW = [  # of the x4 upscaler, whose VAE has latents of another kind; published beside the above
    [-0.2340, -0.3863, -0.3257],
    [0.0994, 0.0885, -0.0908],
    [-0.2833, -0.2349, -0.3741],
    [0.2523, -0.0055, -0.1651],
    [0.0, 0.0, 0.0],
]


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A loaded checkpoint. Requests read it; none may write to it (no scheduler, processor, adapter or flag is ever set here)."""

    name: str  # as the catalogue or the caller named it
    source: str  # what was really loaded: repository or folder
    revision: str  # commit of the repository, or of a folder what check_manifest says
    licence: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]
    preview: Tensor  # (5, 3): four rows that turn latents into RGB, and a row for the offset
    device: torch.device
    dtype: torch.dtype  # of UNet and text encoder; the VAE is always float32
    why: str  # why this device and dtype
    depth_estimator: DPTForDepthEstimation | None = None  # of a depth model
    depth_processor: Any = None  # a picture -> the estimator's input
    low_res_config: dict[str, Any] | None = None  # of an upscaler: the noise schedule of its small picture
    # A tokenizer keeps the padding and truncation of its last call: eight threads on one gave 7 % wrong ids, silently.
    tokenizer_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def factor(self) -> int:
        """Pixels per latent, 8 in Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """The side in pixels that the UNet was trained at."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def prediction_type(self) -> str:
        return self.scheduler_config.get("prediction_type", "epsilon")


def choose_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for a device, and the reason, which the page shows."""
    if device.type == "cuda":
        return (
            torch.float16,
            "float16: half the memory of float32; the VAE stays in float32, where it cannot overflow to black",
        )
    if device.type == "mps":
        return torch.float32, "float32: half precision gives noise or black pictures on this device in some versions"
    return torch.float32, "float32: the precision that the tests hold against diffusers bit for bit"


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are fast on a device. A processor without such units imitates them: a step of training then takes
    fifteen times as long as in float32. An older PyTorch that cannot tell counts as one without."""
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def check_manifest(folder: Path) -> str:
    """Holds every weights file against manifest.json's sha256, where there is one, and names the whole by the manifest's own hash.
    Without one it goes by names, sizes and times: to read gigabytes at each start would take long.

    safetensors has no checksum: flipped bits load without a word. Raises ValueError that names the damaged or missing file.
    """
    manifest = folder / "manifest.json"
    if not manifest.exists():
        files = [(str(path.relative_to(folder)), path.stat()) for path in sorted(folder.glob("*/*.safetensors"))]
        facts = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]
    text = manifest.read_bytes()
    for name, digest in json.loads(text)["sha256"].items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"The model in {folder.name} is incomplete: {name} is missing; fetch the folder again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(
                f"The model in {folder.name} is damaged: {name} is not the file its manifest names; fetch the folder again."
            )
    return hashlib.sha256(text).hexdigest()[:12]


def load(
    name: str = "emoji", device: str | torch.device | None = None, dtype: torch.dtype | None = None, fetch: bool = True
) -> StableDiffusion:
    """Loads a catalogue entry, a local folder in diffusers' layout, or a Hub id. fetch: what is not on disk may be asked of the Hub.

    Raises ValueError with one sentence if the model is unknown, missing, damaged, gated or offline (see catalog.resolve).
    """
    found = catalog.resolve(name, fetch)
    folder = found.folder
    where = torch.device(device) if device is not None else choose_device()
    kind, why = (dtype, f"{dtype}, as asked") if dtype is not None else choose_dtype(where)
    revision = found.revision or check_manifest(folder)

    def part(name: str) -> dict[str, Any]:
        variant = catalog.variant_of(folder / name)
        return {"subfolder": name, "local_files_only": True, "use_safetensors": True, "variant": variant}

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        text_encoder = CLIPTextModel.from_pretrained(folder, **part("text_encoder"), dtype=kind)
        vae = AutoencoderKL.from_pretrained(folder, **part("vae"))
        unet = UNet2DConditionModel.from_pretrained(folder, **part("unet"), dtype=kind)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        estimator = processor = low_res = None
        if (folder / "depth_estimator").is_dir():
            estimator = DPTForDepthEstimation.from_pretrained(folder, **part("depth_estimator"))
            processor = AutoImageProcessor.from_pretrained(folder, subfolder="feature_extractor", local_files_only=True)
        if (folder / "low_res_scheduler").is_dir():
            low_res = json.loads((folder / "low_res_scheduler" / "scheduler_config.json").read_text())
    except Exception as error:  # each library has exceptions of its own for a missing, cut off or unreadable file
        log.exception("Opening %s failed", folder)
        raise ValueError(
            f"The model in {folder.name} could not be opened: a file is damaged or missing; fetch it again."
        ) from error
    parts: list[torch.nn.Module] = [part for part in (text_encoder, vae, unet, estimator) if part is not None]
    for part in parts:
        part.requires_grad_(False).eval().to(where)
    attention.make_recordable(unet)
    preview = folder / "preview.json"
    published = X4_PREVIEW if len(vae.config.block_out_channels) == 3 else SD_PREVIEW  # by the VAE's factor, 4 or 8
    return StableDiffusion(
        name=name,
        source=found.source,
        revision=revision,
        licence=found.licence,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler_config=config,
        preview=torch.tensor(json.loads(preview.read_text()) if preview.exists() else published, device=where),
        device=where,
        dtype=kind,
        why=f"{where.type}, {why}",
        depth_estimator=estimator,
        depth_processor=processor,
        low_res_config=low_res,
    )


# --- what was trained ---------------------------------------------------------------------------------------------------------------


def adapted(sd: StableDiffusion, checkpoint: Path, strength: float = 1.0) -> StableDiffusion:
    """A model of its own with what a training has learned (core/dreambooth.py): copies of UNet and text encoder, the adapter fused in.

    checkpoint: a folder step_000050 of a training of this model. strength: 0 = sd's own weights .. 1 = the trained ones, a straight line
    between; of an adapter up to 2. Raises ValueError if the checkpoint is not whole.
    """
    if not 0 <= strength <= 2:
        raise ValueError(f"The strength is {strength:g}; it must be a number from 0 to 2.")
    if not checkpoints.whole(checkpoint):
        raise ValueError(f"The checkpoint of step {checkpoints.step_of(checkpoint)} is damaged; choose another.")
    weights, scale = trained_weights(checkpoint)
    made = with_weights(sd, weights, scale, strength)
    revision = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()[:12]
    return replace(made, name=adapted_name(checkpoint, strength), source=f"DreamBooth on {sd.source}", revision=revision)


def adapted_name(checkpoint: Path, strength: float = 1.0) -> str:
    """dreambooth-<8 signs of the training's id>-<step>, and the strength where it is not 1."""
    name = f"dreambooth-{checkpoint.resolve().parent.parent.name[:8]}-{checkpoints.step_of(checkpoint)}"
    return name if strength == 1 else f"{name}-{strength:g}"


def trained_weights(checkpoint: Path) -> tuple[dict[str, Tensor], float]:
    """A checkpoint's weights, and alpha / rank of an adapter (1 where all weights were trained)."""
    with safe_open(checkpoints.weights_of(checkpoint), "pt") as file:
        about = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        weights = {key.replace("text_encoder.text_model.", "text_encoder."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, as this is no dict
    return weights, about["unet.lora_alpha"] / about["unet.r"] if about else 1.0


@torch.no_grad()
def with_weights(sd: StableDiffusion, weights: Mapping[str, Tensor], scale: float, strength: float = 1.0) -> StableDiffusion:
    """sd with other weights, in copies: "unet.<name>" or "text_encoder.<name>" is a weight itself, with .lora_A.weight and .lora_B.weight
    at its end an adapter's halves: W + strength * scale * B A (Hu et al. 2022, eq. 3)."""
    parts: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        if not any(key.startswith(f"{part}.") for key in weights):
            continue
        parts[part] = copy.deepcopy(getattr(sd, part))
        for name, own in parts[part].named_parameters():
            key = f"{part}.{name.removeprefix('text_model.')}"  # which transformers puts before a text encoder's names, or not
            new = weights.get(key)
            a, b = (weights.get(f"{key.removesuffix('weight')}lora_{half}.weight") for half in "AB")
            if new is not None:
                own.copy_(torch.lerp(own.float(), new.to(own.device).float(), strength))
            elif a is not None and b is not None:  # a convolution's halves are kernels, and B's is 1 x 1
                change = (b.to(own.device).float().flatten(1) @ a.to(own.device).float().flatten(1)).view_as(own)
                own.copy_(own.float() + strength * scale * change)
    return replace(sd, **parts)


def on(sd: StableDiffusion, device: torch.device) -> StableDiffusion:
    """sd itself, or a copy on another device, in the precision that is right there."""
    if sd.device == device:
        return sd
    dtype, why = choose_dtype(device)
    parts = {name: copy.deepcopy(getattr(sd, name)).to(device, dtype) for name in ("text_encoder", "unet")}
    vae: Any = copy.deepcopy(sd.vae)
    return replace(
        sd, **parts, vae=vae.to(device), preview=sd.preview.to(device), device=device, dtype=dtype, why=f"{device.type}, {why}"
    )
