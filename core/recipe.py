"""What a DreamBooth training is asked to do: every setting, and the four recipes that the tab offers."""

import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from core.models import has_bfloat16
from core.sampling import check_number, check_text, check_whole

METHODS = ("lora", "full")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
MAX_PROMPTS = 8
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # the attention's four matrices
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Recipe:
    """Everything that a training depends on beside its pictures. Checked when made: ValueError with one sentence."""

    instance_prompt: str  # with a rare word for the one thing: "a photo of sks dog"
    class_prompt: str  # what kind of thing it is: "a photo of dog"
    model: str = "emoji"
    method: str = "lora"  # or "full": every weight of the UNet
    rank: int = 4  # LoRA: W + alpha / rank * B A, with B (out, rank) and A (rank, in)
    alpha: float = 4.0
    targets: tuple[str, ...] = UNET_TARGETS  # ends of the names of the UNet's modules that get one
    text_encoder: bool = False  # trained along
    prior_weight: float = 1.0  # of the class pictures' loss
    class_images: int = 0  # 0 = no prior preservation
    steps: int = 500  # updates of the weights
    batch: int = 1  # photos a pass; as many class pictures beside them
    accumulation: int = 1  # passes an update
    rate: float = 1e-4
    schedule: str = "constant"  # one of SCHEDULES
    warmup: int = 0  # steps
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023), 5 is usual; None = off
    noise_offset: float = 0.0
    grad_norm: float = 1.0  # gradients are cut to this length
    weight_decay: float = 1e-2
    gradient_checkpointing: bool = False  # less memory, a third more time
    adam8bit: bool = False  # where bitsandbytes and a GPU are; plain AdamW elsewhere
    precision: str = "fp32"  # of the passes; the weights that are trained stay in float32. "auto": see precision_on
    seed: int = 0
    flip: bool = False  # every photo mirrored too
    preview_every: int = 100  # 0 = never
    prompts: tuple[str, ...] = ()  # of the previews; none: the instance prompt. The class prompt is always drawn beside them
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name, words in (("instance prompt", self.instance_prompt), ("class prompt", self.class_prompt)):
            check_text(name, words)
            if not words.strip():
                raise ValueError(f"The {name} is empty; say what the photos show.")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError("The training names no model; choose one.")
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, ("auto", *PRECISIONS)),
        ):
            if value not in allowed:
                raise ValueError(f"There is no {name} {str(value)[:40]!r}; choose one of {', '.join(allowed)}.")
        for name, value, low, high in (
            ("rank", self.rank, 1, 256),
            ("number of class pictures", self.class_images, 0, 1000),
            ("number of steps", self.steps, 1, 20_000),
            ("batch", self.batch, 1, 64),
            ("accumulation", self.accumulation, 1, 64),
            ("warm-up", self.warmup, 0, 20_000),
            ("seed", self.seed, 0, 2**32 - 1),
            ("number of steps between two previews", self.preview_every, 0, 20_000),
            ("number of steps between two checkpoints", self.checkpoint_every, 1, 20_000),
        ):
            check_whole(name, value, low, high)
        for name, value, low, high in (
            ("alpha", self.alpha, 0.01, 1024),
            ("prior weight", self.prior_weight, 0, 10),
            ("learning rate", self.rate, 1e-8, 1),
            ("noise offset", self.noise_offset, 0, 1),
            ("gradient's length", self.grad_norm, 0.01, 1000),
            ("weight decay", self.weight_decay, 0, 1),
        ):
            check_number(name, value, low, high)
        if self.snr_gamma is not None:
            check_number("SNR gamma", self.snr_gamma, 0.1, 100)
        for name in ("text_encoder", "gradient_checkpointing", "adam8bit", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"The setting {name} is {str(getattr(self, name))[:40]}; it is true or false.")
        for name, words in (("prompts", self.prompts), ("targets", self.targets)):
            if not isinstance(words, tuple) or not all(isinstance(one, str) and one.strip() for one in words):
                raise ValueError(f"The {name} are no list of words; give one or more, or none.")
        if not self.targets:
            raise ValueError(f"LoRA has no modules to train; give some, as in {', '.join(UNET_TARGETS)}.")
        if len(self.prompts) > MAX_PROMPTS:
            raise ValueError(f"{len(self.prompts)} prompts are too many for a preview; give at most {MAX_PROMPTS}.")
        for words in self.prompts:
            check_text("preview's prompt", words)

    @classmethod
    def of(cls, values: Mapping) -> "Recipe":
        """A recipe from plain values, as JSON gives them back; names that it does not have are passed over.

        Raises ValueError for a value that no recipe can have, TypeError where a prompt is missing.
        """
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in cls.__dataclass_fields__
        }
        return cls(**known)

    def facts(self) -> dict:
        """The recipe as plain values."""
        return asdict(self)

    def precision_on(self, device: torch.device) -> str:
        """One of PRECISIONS. "auto" is bf16 where the device has it, fp32 elsewhere. A training that is taken up again ends in the
        same bits on the same machine; on one that chooses otherwise it goes on as well, but not to the same bits."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if has_bfloat16(device) else "fp32"

    @property
    def prior(self) -> bool:
        return self.class_images > 0 and self.prior_weight > 0

    @property
    def identifier(self) -> str:
        """The rare word, see name_in."""
        return name_in(self.instance_prompt, self.class_prompt)

    @property
    def shown(self) -> tuple[str, ...]:
        """The prompts of the subject's previews."""
        return self.prompts or (self.instance_prompt,)


def name_in(instance_prompt: str, class_prompt: str) -> str:
    """The words that the instance prompt says and the class prompt does not, capitals and punctuation apart. "" if there are none."""
    said, usual = ([word.strip(string.punctuation) for word in prompt.split()] for prompt in (instance_prompt, class_prompt))
    known = {"", *map(str.lower, usual)}
    return " ".join(dict.fromkeys(word for word in said if word.lower() not in known))


_SKS: dict[str, Any] = {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of dog"}
PRESETS: dict[str, Recipe] = {
    # Tuned by scripts/evaluate_dreambooth.py on the ten sample subjects.
    "embedded": Recipe(
        instance_prompt="a sks dog",
        class_prompt="a dog",
        rank=16,
        alpha=16.0,
        targets=(
            *UNET_TARGETS,
            "proj_in",
            "proj_out",
            "ff.net.0.proj",
            "ff.net.2",
            "conv1",
            "conv2",
        ),  # small: it needs all it has
        text_encoder=True,
        steps=220,
        batch=4,
        rate=2e-3,
        class_images=8,
        precision="auto",
        prompts=("a sks dog on a blue background", "a sks dog on a red background", "an oil painting of a sks dog"),
        preview_every=55,
        checkpoint_every=55,
    ),
    # The hackathon's notebook (huggingface/diffusion-models-class, hackathon/dreambooth.ipynb).
    "hackathon": Recipe(
        **_SKS,
        model="sd15",
        method="full",
        rate=2e-6,
        steps=400,
        gradient_checkpointing=True,
        adam8bit=True,
        seed=3434554,
        precision="fp16",
    ),
    # diffusers' examples/dreambooth/README.md, the LoRA recipe.
    "diffusers LoRA": Recipe(**_SKS, model="sd15", rate=1e-4, rank=4, alpha=4.0, steps=500, seed=0, precision="fp16"),
    # "Training Stable Diffusion with DreamBooth" (2022), the recipe for faces; class pictures as in diffusers' README.
    "faces": Recipe(
        instance_prompt="a photo of sks person",
        class_prompt="a photo of person",
        model="sd15",
        method="full",
        rate=1e-6,
        steps=1000,
        batch=2,
        class_images=200,
        gradient_checkpointing=True,
        adam8bit=True,
        precision="fp16",
    ),
}
