"""DreamBooth: a few photos of one thing, a rare word for it, and a model that has learned to draw it (Ruiz et al. 2023).

Read `train` first, then `Learner.loss`. A training step is the way into noise and one look back, with the photo's noise known:

    z = VAE(photo)      x = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps      loss = |UNet(x, t, "a photo of sks dog") - eps|^2

Prior preservation adds the same loss for pictures that the base model itself drew of the class ("a photo of dog"): so it does not forget
what other dogs look like. The VAE's latents and the text's embeddings are computed once; a step is the UNet's alone.

B batch · h, w latent height and width · D text width
"""

import copy
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from core import checkpoints, models, schedulers, text
from core.models import StableDiffusion
from core.previews import Preview, Watch, pixels_of
from core.recipe import PRECISIONS, TEXT_TARGETS, Recipe

SIZES = (3, 30)  # photos
AT_ONCE = 8 * 128 * 128  # pixels that the VAE reads at once: eight photos of 512 px would need more memory than the training


class Diverged(ValueError):
    """The loss left all bounds; what was saved before is good, but leads here again."""


@dataclass(frozen=True)
class TrainStep:
    """One update of the weights."""

    step: int  # from 1
    count: int
    loss: float  # instance_loss + prior_weight * prior_loss
    instance_loss: float
    prior_loss: float | None  # None without class pictures
    rate: float  # the learning rate of this step
    grad_norm: float  # the gradient's length, before it was cut
    seconds: float  # of the step, the preview not counted
    preview: Preview | None = None


def train(
    sd: StableDiffusion,
    recipe: Recipe,
    pictures: Sequence[Image.Image],
    class_pictures: Sequence[Image.Image] = (),
    folder: Path | None = None,
    accelerator: Any = None,
    watch: Watch | None = None,
) -> Iterator[TrainStep]:
    """Teaches a copy of sd what the pictures show, one update at a time. sd stays as it is.

    With a folder, checkpoints are written into it (core/checkpoints.py), and a training that was stopped, or killed, goes on from the
    newest: whoever closes the generator can go on from exactly there. accelerator: accelerate's, of a training on several devices.
    watch: draws the previews; made here where it is not given. core/preflight.py looks at everything beforehand.
    Raises ValueError if the model or the number of pictures does not fit, Diverged as soon as the loss does.
    """
    check(sd, recipe, len(pictures), len(class_pictures))
    learner = Learner(sd, recipe, accelerator)
    photos = moments(sd, pictures, recipe.flip, learner.device)  # (N, 2, 4, h, w)
    priors = moments(sd, class_pictures, False, learner.device) if recipe.prior else None
    watch = watch or Watch(sd, recipe, pictures, learner.device)
    begun = learner.resume(folder) if folder else 0

    for step in range(begun + 1, recipe.steps + 1):
        began, rate = time.perf_counter(), float(learner.schedule.get_last_lr()[0])
        random = random_of(recipe.seed, step, learner.process)
        torch.manual_seed(int(torch.randint(2**31, (), generator=random)))  # for dropout, of models that have it
        said = torch.zeros(2, device=learner.device)
        for turn in range(recipe.accumulation):
            place = ((step - 1) * recipe.accumulation + turn) * learner.processes + learner.process  # of this pass among all
            batch = draw(photos, recipe, place, random, 0)
            prior = None if priors is None else draw(priors, recipe, place, random, 1)
            said += learner.backward(batch, prior, random, last=turn + 1 == recipe.accumulation)
        instance_loss, prior_loss = learner.mean(said / recipe.accumulation)
        loss = instance_loss + recipe.prior_weight * prior_loss
        learner.watch_loss(step, loss, rate)
        grad_norm = learner.update(step, rate)
        seconds = time.perf_counter() - began

        due = recipe.preview_every and learner.process == 0 and (step % recipe.preview_every == 0 or step == recipe.steps)
        preview = watch.look(step, learner.model()) if due else None
        save = step % recipe.checkpoint_every == 0 or step == recipe.steps
        try:
            prior_said = prior_loss if priors is not None else None
            yield TrainStep(step, recipe.steps, loss, instance_loss, prior_said, rate, grad_norm, seconds, preview)
        except GeneratorExit:
            save = True
            raise
        finally:
            if save and folder:
                learner.save(folder, step)


def check(sd: StableDiffusion, recipe: Recipe, pictures: int, class_pictures: int) -> None:
    """Raises ValueError with one sentence if this cannot be trained."""
    if sd.unet.config.in_channels != sd.vae.config.latent_channels:
        raise ValueError(f"The model {sd.name} sees more than latents; train a base model.")
    check_count(pictures)
    if recipe.prior and class_pictures < recipe.class_images:
        raise ValueError(f"There are {class_pictures} class pictures of {recipe.class_images}; let them be drawn first.")


def check_count(pictures: int) -> None:
    low, high = SIZES
    if not low <= pictures <= high:
        raise ValueError(f"There are {pictures} pictures; give {low} to {high} of one thing.")


# --- randomness: step n depends on n alone, so a training can be taken up again without having to remember its dice -------------------


def random_of(*numbers: int) -> torch.Generator:
    """A generator of its own for (seed, step, process): neighbouring numbers give unrelated draws."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def draw(moments: Tensor, recipe: Recipe, place: int, random: torch.Generator, kind: int) -> Tensor:
    """The place-th batch of latents, (B, 4, h, w): each round goes through all pictures in an order of its own, and the VAE's posterior
    is sampled anew, mean + std * noise. moments: (N, 2, 4, h, w); kind: 0 photos, 1 class pictures."""
    rounds = [divmod(place * recipe.batch + row, len(moments)) for row in range(recipe.batch)]
    orders = {n: torch.randperm(len(moments), generator=random_of(recipe.seed, kind, n, 1)) for n, _ in rounds}
    mean, std = moments[torch.stack([orders[n][at] for n, at in rounds]).to(moments.device)].unbind(1)
    return mean + std * torch.randn(mean.shape, generator=random).to(mean)


# --- what is computed once ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def moments(sd: StableDiffusion, pictures: Sequence[Image.Image], flip: bool, device: torch.device) -> Tensor:
    """Mean and standard deviation of each picture's latents, (N, 2, 4, h, w) float32; with flip, those of the mirrored ones follow."""
    vae = models.on(sd, device).vae
    pixels = pixels_of(sd, pictures)
    if flip:
        pixels = torch.cat([pixels, pixels.flip(-1)])
    found = []
    for few in pixels.split(max(1, AT_ONCE // pixels[0, 0].numel())):
        posterior = vae.encode(few.to(device, vae.dtype)).latent_dist
        found.append(torch.stack([posterior.mean, posterior.std], 1).float() * sd.vae.config.scaling_factor)
    return torch.cat(found)


# --- the training itself --------------------------------------------------------------------------------------------------------------


class Learner:
    """The copies that are trained, the optimizer, and how one pass and one update go."""

    def __init__(self, sd: StableDiffusion, recipe: Recipe, accelerator: Any = None):
        self.sd, self.recipe, self.accelerator = sd, recipe, accelerator
        self.device: torch.device = accelerator.device if accelerator else sd.device
        self.process, self.processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        precision = recipe.precision_on(self.device)
        self.dtype, self.half = PRECISIONS[precision], precision == "fp16"
        self.bars = schedulers.training_bars(sd.scheduler_config).float().to(self.device)  # (1000,)

        self.unet = self.prepared(sd.unet, recipe.targets)
        # The fused kernel's backward is slow in bfloat16 on a CPU: 29 samples a second against 46. In float32 it is the
        # faster one: 25 against 20.
        plain = self.device.type == "cpu" and self.dtype == torch.bfloat16
        self.unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
        self.encoder = self.prepared(sd.text_encoder, TEXT_TARGETS) if recipe.text_encoder else None
        if recipe.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            if self.encoder is not None:
                self.encoder.gradient_checkpointing_enable()
        self.trained = {key_of(part, n): p for part, m in self.parts.items() for n, p in m.named_parameters() if p.requires_grad}

        self.optimizer = optimizer(recipe, list(self.trained.values()), self.device)
        self.schedule = get_scheduler(
            recipe.schedule, self.optimizer, num_warmup_steps=recipe.warmup, num_training_steps=recipe.steps
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        self.course = Course()
        prompts = [recipe.instance_prompt, *([recipe.class_prompt] if recipe.prior else [])]
        self.ids = torch.tensor([text.tokenize(sd, prompt).ids for prompt in prompts], device=self.device)  # (1 or 2, 77)
        self.words = self.embedded(prompts) if self.encoder is None else None  # (1 or 2, 77, D)
        self.forward: Any = self.unet  # what is called: with several processes, wrapped so that they share their gradients
        self.encode: Any = self.encoder
        if accelerator:
            self.forward = accelerator.prepare(self.unet)
            self.encode = accelerator.prepare(self.encoder) if self.encoder is not None else None

    def prepared(self, shared: Any, targets: tuple[str, ...]) -> Any:
        """A copy that can be trained: with an adapter beside its own weights, or with all of them."""
        module = copy.deepcopy(shared).to(self.device).train()
        if self.recipe.method == "full":
            return module.float().requires_grad_(True)
        module.requires_grad_(False)
        frozen = self.dtype if self.device.type == "cuda" and self.dtype else torch.float32  # those need no more
        if module.dtype != frozen:
            module.to(frozen)
        with torch.random.fork_rng(devices=[]):  # A is drawn, B is zero: the first picture is the base model's
            torch.manual_seed(self.recipe.seed)
            config = LoraConfig(
                r=self.recipe.rank,
                lora_alpha=self.recipe.alpha,  # pyright: ignore[reportArgumentType]
                target_modules=list(targets),
                init_lora_weights="gaussian",
            )
            try:
                module.add_adapter(config)
            except ValueError as error:
                raise ValueError(f"The model has no modules {', '.join(targets)}; name others for LoRA.") from error
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return module

    @torch.no_grad()
    def embedded(self, prompts: list[str]) -> Tensor:
        there = models.on(self.sd, self.device)
        return torch.cat([text.encode(there, prompt) for prompt in prompts]).float()

    def loss(self, batch: Tensor, prior: Tensor | None, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The two losses of one pass, as in diffusers' train_dreambooth: photos and class pictures go through the UNet together.

        batch, prior: clean latents (B, 4, h, w)."""
        recipe = self.recipe
        z = batch if prior is None else torch.cat([batch, prior])  # (B or 2 B, 4, h, w)
        t = torch.randint(len(self.bars), (len(z),), generator=random).to(self.device)
        noise = torch.randn(z.shape, generator=random)
        if recipe.noise_offset:
            noise = noise + recipe.noise_offset * torch.randn((*z.shape[:2], 1, 1), generator=random)
        noise = noise.to(z)
        bar = self.bars[t][:, None, None, None]
        x = bar.sqrt() * z + (1 - bar).sqrt() * noise
        # What the UNet should say: the noise, or v (Salimans & Ho 2022, appendix D).
        target = noise if self.sd.prediction_type == "epsilon" else bar.sqrt() * noise - (1 - bar).sqrt() * z

        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            words: Any = self.words if self.encode is None else self.encode(self.ids)[0]  # (1 or 2, 77, D)
            said = self.forward(x, t, words.repeat_interleave(recipe.batch, 0), return_dict=False)[0]
        error = (said.float() - target).square().mean((1, 2, 3))  # (B or 2 B,)
        own = error[: recipe.batch]
        if recipe.snr_gamma is not None:
            snr = (bar / (1 - bar)).flatten()[: recipe.batch]
            own = own * snr.clamp(max=recipe.snr_gamma) / (snr if self.sd.prediction_type == "epsilon" else snr + 1)
        return own.mean(), error[recipe.batch :].mean() if prior is not None else torch.zeros((), device=self.device)

    def backward(self, batch: Tensor, prior: Tensor | None, random: torch.Generator, last: bool) -> Tensor:
        """One pass forth and back. Returns both losses, (2,)."""
        wait = nullcontext() if last or not self.accelerator else self.accelerator.no_sync(self.forward)
        with wait:
            own, others = self.loss(batch, prior, random)
            loss = (own + self.recipe.prior_weight * others) / self.recipe.accumulation
            self.scaler.scale(loss).backward()
        return torch.stack([own.detach(), others.detach()])

    def mean(self, losses: Tensor) -> list[float]:
        """Over all processes."""
        return (self.accelerator.reduce(losses, "mean") if self.accelerator else losses).tolist()

    def watch_loss(self, step: int, loss: float, rate: float) -> None:
        """Raises Diverged before the weights take in what is not finite, or where the smoothed loss has left its best far behind."""
        if not np.isfinite(loss):
            raise Diverged(
                f"The loss was not finite at step {step}, with a learning rate of {rate:.1e}; what was saved before is good: "
                "use its settings with a lower rate."
            )
        if self.course.left(loss):
            raise Diverged(
                f"The loss rose to {self.course.smooth:.2g}, over {Course.FAR} times its best of {self.course.best:.2g}, at step "
                f"{step} with a learning rate of {rate:.1e}; what was saved before is good: use its settings with a lower rate."
            )

    def update(self, step: int, rate: float) -> float:
        """The gradients become a step of the weights. Returns their length before it was cut.

        In half precision a step whose gradients are not finite is left out, and the next one scaled less; where that is no help any more,
        or in any other precision, Diverged is raised."""
        self.scaler.unscale_(self.optimizer)
        length = float(nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.grad_norm))
        if not np.isfinite(length) and (not self.half or self.scaler.get_scale() < 1):
            self.watch_loss(step, length, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return length if np.isfinite(length) else 0.0

    # --- what is kept ---

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in self.trained.items()}

    def model(self) -> StableDiffusion:
        """The model as it is now, for drawing: the same copy that a checkpoint of this step would give."""
        scale = self.recipe.alpha / self.recipe.rank
        return models.on(models.with_weights(self.sd, {n: p.detach() for n, p in self.trained.items()}, scale), self.device)

    def save(self, folder: Path, step: int) -> None:
        if self.accelerator:
            self.accelerator.wait_for_everyone()
        if self.process == 0:
            if not all(p.isfinite().all() for p in self.trained.values()):
                raise Diverged(
                    f"The weights are not finite after step {step}; what was saved before is good: use its settings with a lower "
                    "rate."
                )
            checkpoints.write(folder, step, lambda stage: self.write(stage, step))
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def write(self, stage: Path, step: int) -> None:
        if self.recipe.method == "lora":
            write_lora(stage, self.weights(), {p: m.peft_config["default"].to_dict() for p, m in self.parts.items()})
        else:
            save_file(self.weights(), stage / "weights.safetensors")
        state = {
            "step": step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "course": self.course.__dict__,
        }
        with (stage / checkpoints.STATE).open("wb") as file:
            torch.save(state, file)

    def resume(self, folder: Path) -> int:
        """Takes up the newest checkpoint that is whole, and returns its step; 0 if there is none."""
        found = checkpoints.newest(folder, state=True)
        if found is None:
            return 0
        weights, _ = models.trained_weights(found)
        for name, parameter in self.trained.items():
            parameter.data.copy_(weights[name])
        state = torch.load(found / checkpoints.STATE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.course = Course(**state["course"])
        return state["step"]

    @property
    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, **({"text_encoder": self.encoder} if self.encoder is not None else {})}


@dataclass
class Course:
    """Where the loss is going: the mean of some fifty steps, as single ones jump by a factor of a hundred with their time t."""

    smooth: float = 0.0
    best: float = float("inf")
    seen: int = 0
    above: int = 0  # steps in a row that the mean has been FAR above its best

    FAR = 5
    LONG = 50  # steps

    def left(self, loss: float) -> bool:
        """Takes in one more loss; true once the mean has been far above its best for long."""
        self.seen += 1
        share = max(1 / self.seen, 1 / self.LONG)
        self.smooth += share * (loss - self.smooth)
        if self.seen >= self.LONG:
            self.best = min(self.best, self.smooth)
            self.above = self.above + 1 if self.smooth > self.FAR * self.best else 0
        return self.above >= self.LONG


def key_of(part: str, name: str) -> str:
    """A parameter's name in a checkpoint: "unet.<name>" or "text_encoder.<name>", as models.with_weights takes them."""
    return f"{part}.{name.replace('.default.', '.').removeprefix('text_model.')}"


def has_adam8bit(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


def optimizer(recipe: Recipe, parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """AdamW; its 8-bit form where it was asked for and can be had: preflight says where it cannot."""
    if recipe.adam8bit and has_adam8bit(device):
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)


def write_lora(folder: Path, weights: Mapping[str, Tensor], configs: Mapping[str, dict]) -> None:
    """The file that StableDiffusionPipeline.load_lora_weights reads, rank and alpha in its header."""
    layers: dict[str, Any] = {}
    for part in configs:
        start, inner = f"{part}.", "text_model." if part == "text_encoder" else ""  # as every version of diffusers knows it
        layers[f"{part}_lora_layers"] = {inner + n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
    about: dict[str, Any] = {f"{part}_lora_adapter_metadata": config for part, config in configs.items()}
    StableDiffusionPipeline.save_lora_weights(str(folder), **layers, **about)
