"""What a run leaves behind: every step, small enough to keep, enough for every view, with no model needed to look at it again."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core import attention, latents, schedulers, text
from core.attention import Record
from core.conditioning import KINDS, Pixels, Source
from core.models import StableDiffusion
from core.sampling import Request, Step, predict
from core.text import Token, Tokens

MEGABYTES = 64  # the budget of one run's attention; a run that would go over it keeps the maps of its first steps and says so
TENSORS = ("x", "x_in", "eps_uncond", "eps_cond", "eps", "x0", "x_next")
SAVED = ("x", "eps_uncond", "eps_cond", "x0")  # the others follow from these


@dataclass
class Trace:
    """A run's steps on the CPU: latents to the bit, so that a run can be taken up again at any of them, attention in float16.

    Fills itself while a run passes through `follow`, replays it afterwards.

    trace = Trace.start(sd, request)
    for step in trace.follow(denoise(sd, request, Record())): ...
    trace.picture   # (3, H, W) uint8, after finish()
    """

    request: Request
    made_by: dict[str, str]  # model, source, revision, licence, device and dtype with its reason
    tokens: Tokens  # of the prompt
    negative_tokens: Tokens
    preview: Tensor  # (5, 3): latents to RGB
    layers: tuple[str, ...]  # cross-attention layers of the UNet, input to output
    steps: list[Step] = field(default_factory=list)  # as they were, on the CPU; attention in float16
    picture: Tensor | None = None  # (3, H, W) uint8, the finished run decoded; None until then
    stopped: bool = False  # ended before its last step
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    seconds: float = 0.0  # the run's wall time, decoding included

    @classmethod
    def start(cls, sd: StableDiffusion, request: Request) -> "Trace":
        made_by = {
            "model": sd.name,
            "source": sd.source,
            "revision": sd.revision,
            "licence": sd.licence,
            "device": sd.why,
            "prediction_type": sd.prediction_type,
        }
        return cls(
            request=request,
            made_by=made_by,
            tokens=text.tokenize(sd, request.prompt),
            negative_tokens=text.tokenize(sd, request.negative),
            preview=sd.preview.cpu(),
            layers=tuple(attention.layers_of(sd.unet)),
        )

    def follow(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Passes each step on, and keeps a copy."""
        room = MEGABYTES * 2**20
        for step in steps:
            small = {n: None if (v := getattr(step, n)) is None else pack(v) for n in TENSORS}
            maps = {layer: pack(p, torch.float16) for layer, p in step.attention.items()}
            room -= sum(p.nbytes for p in maps.values())
            if room < 0 and maps:
                maps = {}
                note = f"Attention was kept up to the budget of {MEGABYTES} MB; later steps have none."
                self.notes = [*self.notes, *([] if note in self.notes else [note])]
            self.steps.append(dataclasses.replace(step, **small, attention=maps, channels=self._channels(step)))
            yield step

    def _channels(self, step: Step) -> Tensor | None:
        """They are the same at every step: kept once."""
        if step.channels is None:
            return None
        return self.steps[0].channels if self.steps else pack(step.channels)

    def finish(self, sd: StableDiffusion, latent: Tensor) -> Tensor:
        """Decodes the run's last latents, keeps and returns the picture, (3, H, W) uint8."""
        self.picture = to_uint8(latents.decode(sd, latent))[0].cpu()
        return self.picture

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def size(self) -> tuple[int, int]:
        """The latents' (h, w)."""
        h, w = self.steps[0].x.shape[-2:]
        return h, w

    @property
    def attention_bytes(self) -> int:
        return sum(p.nbytes for s in self.steps for p in s.attention.values())

    @property
    def nbytes(self) -> int:
        kept = sum(v.nbytes for s in self.steps for n in TENSORS if (v := getattr(s, n)) is not None)
        kept += self.steps[0].channels.nbytes if self.steps and self.steps[0].channels is not None else 0  # all steps share them
        kept += sum(len(p.data) for p in pixels_of(self.request.source).values())
        return kept + self.attention_bytes + (0 if self.picture is None else self.picture.nbytes)

    def word_maps(
        self,
        *,
        steps: Iterable[int] | None = None,
        layers: Iterable[str] | None = None,
        negative: bool = False,
    ) -> Tensor:
        """attention.heat_maps over this run's steps, (77, h, w): of the prompt's tokens, or of the negative prompt's.

        Raises ValueError if that branch did not run (w = 0 reads no prompt, w = 1 no negative one) or was not recorded.
        """
        chosen = self.steps if steps is None else [self.steps[i] for i in steps]
        ran = [s.attention for s in chosen if (s.eps_uncond if negative else s.eps_cond) is not None]
        return attention.heat_maps(ran, size=self.size, layers=layers, branch=0 if negative else -1)

    @torch.no_grad()
    def look_again(self, sd: StableDiffusion, i: int, record: Record) -> dict[str, Tensor]:
        """Makes the UNet call of step i once more, for what is too large to keep: single heads, self-attention. float16, on the CPU,
        as `Recorder` has it.

        Raises ValueError if the model does not say what it said then: it was trained on meanwhile, or the step is another run's.
        """
        kept = self.steps[i]
        embeddings = {words: text.encode(sd, *words) for words in (self.request.words, self.request.no_words)}
        x_in = kept.x_in.to(sd.device, sd.dtype)
        channels = None if kept.channels is None else kept.channels.to(x_in)
        t = torch.tensor(kept.t, device=sd.device)
        (found,) = predict(sd, [self.request], i, t, x_in, [channels], embeddings, {}, record)
        eps = schedulers.eps_of(found.guided, x_in, kept.alpha_bar, sd.prediction_type).cpu().float()
        if (eps - kept.eps).norm() > 0.01 * kept.eps.float().norm():
            raise ValueError(
                f"The model no longer predicts what it did at step {i + 1} of this run, so its attention cannot be looked at again; "
                "draw the picture anew."
            )
        return {layer: pack(p, torch.float16) for layer, p in found.attention.items()}

    def record_again(self, sd: StableDiffusion) -> Iterator[int]:
        """Records the attention of a run that was made without, one UNet call a step, up to the budget; yields each step that it did.

        Raises ValueError as look_again does.
        """
        for i, step in enumerate(self.steps):
            if not step.attention and self.attention_bytes < MEGABYTES * 2**20:
                self.steps[i] = dataclasses.replace(step, attention=self.look_again(sd, i, Record()))
                yield i

    def settings(self) -> dict:
        """Everything that made the picture, as plain values: what a PNG carries and the API answers."""
        request = json.loads(json.dumps(self.request.facts()))  # lists for tuples, as a reader of the PNG finds them
        return {**request, **self.made_by, "stopped": self.stopped, "seconds": round(self.seconds, 2)}

    def save(self, path: str | Path) -> None:
        """One safetensors file: tensors by name, everything else as JSON in its header. No code, no pickle."""
        tensors: dict[str, Tensor] = {"preview": self.preview}
        facts = []
        for s in self.steps:
            tensors |= {f"{s.i}.{n}": v.contiguous() for n in SAVED if (v := getattr(s, n)) is not None}
            tensors |= {f"{s.i}.attention.{layer}": p.contiguous() for layer, p in s.attention.items()}
            facts.append({n: getattr(s, n) for n in ("i", "count", "t", "sigma", "alpha_bar", "w", "loss")})
        if self.steps:
            tensors["end"] = self.steps[-1].x_next.contiguous()
            if (channels := self.steps[0].channels) is not None:
                tensors["channels"] = channels.contiguous()
        if self.picture is not None:
            tensors["picture"] = self.picture.contiguous()
        tensors |= {f"source.{n}": torch.from_numpy(p.array.copy()) for n, p in pixels_of(self.request.source).items()}
        about = {
            "request": self.request.facts(),
            "made_by": self.made_by,
            "tokens": dataclasses.asdict(self.tokens),
            "negative_tokens": dataclasses.asdict(self.negative_tokens),
            "layers": self.layers,
            "steps": facts,
            "stopped": self.stopped,
            "notes": self.notes,
            "seconds": self.seconds,
        }
        save_file(tensors, path, {"trace": json.dumps(about)})

    @classmethod
    def open(cls, path: str | Path) -> "Trace":
        """Raises ValueError if the file is not a saved trace."""
        try:
            return cls._read(path)
        except Exception as error:  # safetensors', json's, and whatever a foreign header leads to
            raise ValueError("This file is not a saved run; choose a .safetensors file that this app made.") from error

    @classmethod
    def _read(cls, path: str | Path) -> "Trace":
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["trace"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
        steps = []
        for f in about["steps"]:
            i = f["i"]
            x, x0, eps_uncond, eps_cond = (tensors.get(f"{i}.{n}") for n in ("x", "x0", "eps_uncond", "eps_cond"))
            assert x is not None and x0 is not None
            prefix = f"{i}.attention."
            # What the file leaves out follows from what it has: the guided prediction, the UNet's input, the next step's start.
            eps = (
                eps_cond
                if eps_uncond is None
                else eps_uncond
                if eps_cond is None
                else eps_uncond + f["w"] * (eps_cond - eps_uncond)
            )
            assert eps is not None
            x_in = (f["alpha_bar"] ** 0.5 * x0.float() + (1 - f["alpha_bar"]) ** 0.5 * eps.float()).to(x0.dtype)
            x_next = tensors.get(f"{i + 1}.x", tensors["end"])
            maps = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            steps.append(
                Step(
                    **f,
                    x=x,
                    x_in=x_in,
                    eps_uncond=eps_uncond,
                    eps_cond=eps_cond,
                    eps=eps,
                    x0=x0,
                    x_next=x_next,
                    attention=maps,
                    channels=tensors.get("channels"),
                )
            )

        def tokens_of(d: dict) -> Tokens:
            return Tokens(tuple(Token(**t) for t in d["tokens"]), d["used"], d["cut"])

        request = Request.of(about["request"])
        if source := about["request"].get("start"):
            pictures = {n.removeprefix("source."): Pixels.of(t.numpy()) for n, t in tensors.items() if n.startswith("source.")}
            request = dataclasses.replace(request, source=KINDS[source.pop("kind")](**{**source, **pictures}))

        return cls(
            request=request,
            made_by=about["made_by"],
            tokens=tokens_of(about["tokens"]),
            negative_tokens=tokens_of(about["negative_tokens"]),
            preview=tensors["preview"],
            layers=tuple(about["layers"]),
            steps=steps,
            picture=tensors.get("picture"),
            stopped=about["stopped"],
            notes=about["notes"],
            seconds=about["seconds"],
        )


def pixels_of(source: Source | None) -> dict[str, Pixels]:
    """The pictures that a source carries, by the names of their fields."""
    values = {} if source is None else {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}
    return {name: value for name, value in values.items() if isinstance(value, Pixels)}


def pack(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on the CPU, which the loop cannot change any more."""
    return tensor.detach().to("cpu", dtype or tensor.dtype, copy=True)


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] -> 0..255, rounded as diffusers does, so that both give the same bytes."""
    return ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
