"""The sampling loop: noise in, picture out, every intermediate on the way. Read this file first, and in it `denoise_many`.

B batch · h, w latent height and width · D text width
x     latents in the scheduler's coordinates                  (1, 4, h, w)
x_in  the same as the UNet sees them, variance preserving      (1, 4, h, w)
t     the time that the UNet was told, 999 (noise) .. 0 (picture)
eps   predicted noise;  x0  the clean latents it points to     (1, 4, h, w)
w     guidance scale: eps = eps_uncond + w (eps_cond - eps_uncond)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature

import torch
from torch import Tensor

from core import conditioning, latents, losses, schedulers, text
from core.attention import Record, Recorder
from core.conditioning import Source, shown
from core.models import StableDiffusion

Words = tuple[str, tuple[text.Edit, ...]]  # a prompt and the edits of its numbers
Start = tuple[int, Source | None]  # what the first latents depend on: seed and picture
Row = tuple[int | Start, Words]  # a row of a UNet call: whose latents (by number; at the first step by their start), which words
MAX_EDITS, MAX_NUMBERS = 32, 2**15  # a PNG must carry them in its text
MAX_PROMPT = 2000  # characters; 77 tokens are far fewer, and a megabyte would keep the tokenizer busy


@dataclass(frozen=True)
class Request:
    """Everything that a picture depends on. Checked when made: ValueError with one sentence, never a silent correction."""

    prompt: str
    negative: str = ""  # what the unconditional branch reads instead of nothing
    seed: int = 0  # 0 .. 2**32 - 1
    steps: int = 20  # 1 .. 100
    guidance: float = 7.5  # w, 0 .. 30; 0 = unconditional, 1 = the prompt alone
    scheduler: str = "DDIM"  # a key of schedulers.SCHEDULERS
    width: int | None = None  # pixels, a multiple of 8, 64 .. 1024; None = the size the model was trained at
    height: int | None = None
    interval: tuple[int, int] | None = None  # guidance acts in steps start <= i < stop and is 1 elsewhere; None = always
    model: str = "emoji"  # which model the engine takes; denoise() uses the one it is given
    edits: tuple[text.Edit, ...] = ()  # changes of the prompt's numbers between the words and the UNet
    source: Source | None = None  # a picture to start from, and how; width and height are then that picture's

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative prompt", self.negative)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        check_whole("number of steps", self.steps, 1, 100)
        check_number("guidance", self.guidance, 0, 30)
        if not isinstance(self.scheduler, str) or self.scheduler not in schedulers.SCHEDULERS:
            raise ValueError(
                f"There is no scheduler {str(self.scheduler)[:40]!r}; choose one of {', '.join(schedulers.SCHEDULERS)}."
            )
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                check_whole(name, side, 64, 1024)
                if side % 8:
                    raise ValueError(f"The {name} is {side}, but latents are an eighth of a picture; choose a multiple of 8.")
        if self.interval is not None:
            if len(self.interval) != 2:
                raise ValueError("The guidance interval is a first step and the step it ends before; give two numbers.")
            check_whole("interval's start", self.interval[0], 0, 200)
            check_whole("interval's stop", self.interval[1], 0, 200)
            if self.interval[0] > self.interval[1]:
                raise ValueError(
                    f"The guidance interval starts at step {self.interval[0]}, after its end {self.interval[1]}; swap them."
                )
        if not isinstance(self.edits, tuple) or not all(isinstance(edit, text.Edit) for edit in self.edits):
            raise ValueError("The edits are no list of edits; leave them out.")
        if len(self.edits) > MAX_EDITS or sum(len(edit.vector) for edit in self.edits) > MAX_NUMBERS:
            raise ValueError(f"At most {MAX_EDITS} edits are made, of {MAX_NUMBERS:,} numbers in all; take some back.")
        for edit in self.edits:
            check_text("other prompt", edit.words)
        if self.source is not None and not isinstance(self.source, Source):
            raise ValueError("The picture to start from is no picture; choose one again.")
        if self.source is not None and (self.width or self.height):
            raise ValueError("A run from a picture has that picture's size; leave width and height empty.")

    @classmethod
    def of(cls, values: Mapping) -> "Request":
        """A request from plain values, as JSON gives them back; names that it does not have are passed over, and so is a source, of
        which plain values have the name only.

        Raises ValueError for a value that no request can have, TypeError for one of another shape.
        """
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__ and name != "source"}
        if isinstance(known.get("interval"), list):
            known["interval"] = tuple(known["interval"])
        if isinstance(known.get("edits"), list):
            known["edits"] = tuple(text.Edit(**{**edit, "vector": tuple(edit.get("vector", ()))}) for edit in known["edits"])
        return cls(**known)

    def facts(self) -> dict:
        """The request as plain values; the picture it starts from as "start", its pixels by name ("source" says where a model is from)."""
        plain = asdict(replace(self, source=None))
        del plain["source"]
        return {**plain, "start": self.source.facts() if self.source else None}

    @property
    def words(self) -> Words:
        return self.prompt, self.edits

    @property
    def no_words(self) -> Words:
        """What the unconditional branch reads."""
        return self.negative, ()


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"The {name} is {type(value).__name__}, not text; type words.")
    if len(value) > MAX_PROMPT:
        raise ValueError(
            f"The {name} has {len(value):,} characters; at most {MAX_PROMPT:,} are read, and 77 tokens used: shorten it."
        )
    for c in value:
        if (c < " " and c not in "\n\t") or "\ud800" <= c <= "\udfff":
            raise ValueError(f"The {name} holds the character U+{ord(c):04X}, which is no text; delete it and type it again.")


def check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"The {name} is {shown(value)}; it must be a whole number from {low} to {high}.")


def check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise ValueError(f"The {name} is {shown(value)}; it must be a number from {low:g} to {high:g}.")


@dataclass(frozen=True)
class Step:
    """One turn of the loop. Tensors are on the model's device and belong to the loop: copy what you keep."""

    i: int  # 0, 1, ..
    count: int  # turns in all: request.steps, or up to twice as many with a second-order scheduler
    t: float  # the time that the UNet was told
    sigma: float  # the noise's standard deviation beside a clean picture of 1
    alpha_bar: float  # the signal's share of the variance, 1 / (1 + sigma^2)
    w: float  # the guidance scale that acted in this step
    x: Tensor  # latents before the step, in the scheduler's coordinates
    x_in: Tensor  # the same as the UNet saw them: sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps
    eps_uncond: Tensor | None  # prediction without the prompt (or with the negative one); None where w = 1
    eps_cond: Tensor | None  # prediction with the prompt; None where w = 0
    eps: Tensor  # the guided prediction
    x0: Tensor  # the clean latents it points to
    x_next: Tensor  # latents after the step; the last one's are the result
    attention: Mapping[str, Tensor] = field(default_factory=dict)  # layer -> (branches, h w, 77); empty without a record
    channels: Tensor | None = None  # what the UNet saw beside x_in: mask, masked picture, depth, small picture; (1, C, h, w)
    loss: float | None = None  # what the loss said of x0 decoded, before it moved the latents; None without one


@dataclass(frozen=True)
class Loss:
    """Another thing that guides, beside the words: at every n-th step, x0 is moved down the slope of a measure of its picture."""

    measure: losses.Measure  # of a picture (1, 3, H, W), 0 .. 1; core/losses.py has some
    scale: float = 200.0  # 0 .. 10,000: how far down
    every: int = 5  # acts in steps 0, every, 2 every ..

    def __post_init__(self) -> None:
        check_number("loss scale", self.scale, 0, 10_000)
        check_whole("number of steps between two pushes", self.every, 1, 100)


@dataclass(frozen=True)
class Fork:
    """Where another run is taken up again: its first steps are not predicted anew."""

    request: Request  # that run's
    steps: tuple[Step, ...]  # its first steps, as many as are kept


def denoise(
    sd: StableDiffusion, request: Request, record: Record | None = None, fork: Fork | None = None, loss: Loss | None = None
) -> Iterator[Step]:
    """Runs Stable Diffusion one step at a time, yielding each step as it is made.

        *_, last = denoise(sd, Request("a fox"));  picture = latents.decode(sd, last.x_next)

    With a fork, the run begins with another run's first steps and goes on with its own words and guidance. The scheduler takes those
    steps in again, so even one that remembers goes on as if they were its own; the UNet rests. Another seed gives the picture, as it
    was guessed at the fork, new noise of the next step's level.
    With a loss, the latents are also moved towards what it measures; its value is in each step.
    Raises ValueError as soon as a prediction is not finite, or if the fork's run does not fit.
    """
    for (step,) in denoise_many(sd, [request], record, fork=fork, loss=loss):
        yield step


@torch.no_grad()
def denoise_many(
    sd: StableDiffusion,
    requests: Sequence[Request],
    record: Record | None = None,
    known: dict[Row, Tensor] | None = None,
    fork: Fork | None = None,
    loss: Loss | None = None,
) -> Iterator[list[Step]]:
    """The loop (Ho et al. 2020, algorithm 2; guidance: Ho & Salimans 2022, eq. 6), for N pictures of one size, scheduler and step count.

    Yields a list with one Step a request. What requests have in common is computed once: a prompt's embedding, and the first
    prediction of those that start from the same noise, which goes into `known` for the next call's use.
    Each picture is that of its own single run, to 1e-4: a larger batch rounds otherwise.
    Raises ValueError if the requests differ in what they must share, or as soon as a prediction is not finite.
    """
    check_alike(sd, requests, known, record, fork, loss)
    first, known = requests[0], {} if known is None else known
    scheduler = schedulers.make(first.scheduler, sd.scheduler_config, first.steps, sd.device)
    alpha_bars = schedulers.alpha_bars(scheduler).tolist()
    embeddings = {words: text.encode(sd, *words) for r in requests for words in (r.words, r.no_words)}  # (1, 77, D) each

    # Start from noise, or from a picture with noise on it, and from the time that is as noisy.
    height, width = size_of(sd, first)
    randoms = [latents.generator(fork.request.seed if fork and fork.steps else r.seed) for r in requests]
    extra = {"generator": randoms} if "generator" in signature(scheduler.step).parameters else {}
    starts = [
        conditioning.start(sd, r.source, scheduler, r.steps, height, width, random)
        for r, random in zip(requests, randoms, strict=True)
    ]
    times, alpha_bars = scheduler.timesteps[starts[0].first :], alpha_bars[starts[0].first :]
    check_interval(requests, len(times))
    x = torch.cat([s.x for s in starts])  # (N, 4, h, w)
    channels = [s.channels for s in starts]

    for i, t in enumerate(times):
        if fork and i == len(fork.steps) > 0 and first.seed != fork.request.seed:
            randoms[:] = [latents.generator(first.seed)]  # in place: `extra` holds the list too
            x = scheduler.add_noise(fork.steps[-1].x0.to(x), latents.noise(sd, height, width, randoms[0]), t[None])
        x_in = scheduler.scale_model_input(x, t)  # (N, 4, h, w)

        if fork and i < len(fork.steps):  # predicted before
            predictions = [kept_prediction(sd, fork.steps[i], x_in)]
        else:
            predictions = predict(sd, requests, i, t, x_in, channels, embeddings, known if i == 0 else {}, record)

        guided = torch.cat([p.guided for p in predictions])  # (N, 4, h, w)
        x_moved, guided, value = steer(sd, loss, i, x, x_in, guided, alpha_bars[i]) if loss else (x, guided, None)
        x_next = scheduler.step(guided, t, x_moved, **extra, return_dict=False)[0]  # (N, 4, h, w)
        if starts[0].restore:  # inpainting by a plain UNet, one picture at a time
            x_next = starts[0].restore(x_next, times[i + 1] if i + 1 < len(times) else None)
        yield [
            make_step(sd, i, t, alpha_bars, p, x[n : n + 1], x_in[n : n + 1], x_next[n : n + 1], channels[n], value)
            for n, p in enumerate(predictions)
        ]
        x = x_next


@dataclass(frozen=True)
class Prediction:
    """What the UNet said of one picture at one step; eps, or v in a model that predicts v."""

    w: float
    uncond: Tensor | None  # (1, 4, h, w); None where w = 1
    cond: Tensor | None  # None where w = 0
    guided: Tensor
    attention: Mapping[str, Tensor]


def predict(
    sd: StableDiffusion,
    requests: Sequence[Request],
    i: int,
    t: Tensor,
    x_in: Tensor,
    channels: Sequence[Tensor | None],
    embeddings: Mapping[Words, Tensor],
    known: dict[Row, Tensor],
    record: Record | None,
) -> list[Prediction]:
    """One call of the UNet for all pictures, with only the branches that each one's w needs, and guidance. What is in `known` is not asked
    again, and what was asked is added to it."""
    ws = [r.guidance if r.interval is None or r.interval[0] <= i < r.interval[1] else 1.0 for r in requests]
    # Pictures of one seed start from the same noise.
    whose: list[int | Start] = [(r.seed, r.source) if i == 0 else n for n, r in enumerate(requests)]
    seen = [x if c is None else torch.cat([x, c], dim=1) for x, c in zip(x_in.split(1), channels, strict=True)]
    inputs = dict(zip(whose, seen, strict=True))
    label = conditioning.label(requests[0].source)
    uncond: list[Row | None] = [None if w == 1 else (k, r.no_words) for k, w, r in zip(whose, ws, requests, strict=True)]
    cond: list[Row | None] = [None if w == 0 else (k, r.words) for k, w, r in zip(whose, ws, requests, strict=True)]
    rows = [row for row in dict.fromkeys(uncond + cond) if row and row not in known]
    recorder = Recorder(record) if record else None
    if rows:
        output = sd.unet(
            torch.cat([inputs[k] for k, _ in rows]),  # (rows, 4 and more, h, w)
            t,
            encoder_hidden_states=torch.cat([embeddings[words] for _, words in rows]),  # (rows, 77, D)
            class_labels=None if label is None else torch.tensor([label] * len(rows), device=sd.device),
            cross_attention_kwargs={"record": recorder} if recorder else None,
            return_dict=False,
        )[0]
        if not output.isfinite().all():
            raise ValueError(f"The noise prediction of step {i + 1} is not finite; try a lower guidance, or float32.")
        known.update(zip(rows, output.split(1), strict=True))

    predictions = []
    for w, u, c in zip(ws, uncond, cond, strict=True):
        out_uncond, out_cond = known[u] if u else None, known[c] if c else None
        mine = [rows.index(row) for row in (u, c) if row and recorder]
        whole = mine == list(range(len(rows)))  # one picture alone: nothing to pick, nothing to copy
        maps = {layer: p if whole else p[mine] for layer, p in recorder.maps.items()} if recorder else {}
        predictions.append(Prediction(w, out_uncond, out_cond, guide(out_uncond, out_cond, w), maps))
    return predictions


def guide(uncond: Tensor | None, cond: Tensor | None, w: float) -> Tensor:
    """Classifier-free guidance: from the unconditional prediction through the conditional one, and for w > 1 beyond."""
    if uncond is None or cond is None:  # w = 1 or w = 0 needs one of them only
        one = cond if uncond is None else uncond
        assert one is not None
        return one
    return uncond + w * (cond - uncond)


def steer(
    sd: StableDiffusion, loss: Loss, i: int, x: Tensor, x_in: Tensor, output: Tensor, alpha_bar: float
) -> tuple[Tensor, Tensor, float]:
    """Guidance by a loss (fast.ai's Deep Dive, 2022): x0 goes scale * sigma^2 down the slope of the loss of its picture, under the same
    noise. Returns the latents and the UNet's output that say so to the scheduler, and what the loss was before."""
    eps = schedulers.eps_of(output, x_in, alpha_bar, sd.prediction_type)
    x0 = schedulers.x0_of(x_in, eps, alpha_bar)
    if i % loss.every:
        return x, output, losses.value(sd, loss.measure, x0)
    value, slope = losses.slope(sd, loss.measure, x0)
    if not slope.isfinite().all():
        raise ValueError(f"The loss of step {i + 1} has no finite slope; try a lower loss scale.")
    move = -loss.scale * schedulers.sigma_of(alpha_bar) ** 2 * alpha_bar**0.5 * slope  # of x_in, where x0 counts sqrt(alpha_bar)
    longer = x.norm() / x_in.norm()  # the scheduler's coordinates beside the UNet's
    return x + longer * move, schedulers.output_of(eps, x_in + move, alpha_bar, sd.prediction_type), value


def make_step(
    sd: StableDiffusion,
    i: int,
    t: Tensor,
    alpha_bars: list[float],
    p: Prediction,
    x: Tensor,
    x_in: Tensor,
    x_next: Tensor,
    channels: Tensor | None,
    loss: float | None,
) -> Step:
    """Everything of one turn in the terms that the page and the papers use: eps, x0, sigma."""
    alpha_bar, kind = alpha_bars[i], sd.prediction_type
    eps = schedulers.eps_of(p.guided, x_in, alpha_bar, kind)
    return Step(
        i=i,
        count=len(alpha_bars),
        t=float(t),
        sigma=schedulers.sigma_of(alpha_bar),
        alpha_bar=alpha_bar,
        w=p.w,
        x=x,
        x_in=x_in,
        eps_uncond=None if p.uncond is None else schedulers.eps_of(p.uncond, x_in, alpha_bar, kind),
        eps_cond=None if p.cond is None else schedulers.eps_of(p.cond, x_in, alpha_bar, kind),
        eps=eps,
        x0=schedulers.x0_of(x_in, eps, alpha_bar),
        x_next=x_next,
        attention=p.attention,
        channels=channels,
        loss=loss,
    )


def kept_prediction(sd: StableDiffusion, step: Step, x_in: Tensor) -> Prediction:
    """What the UNet said in a step that was kept. Without its attention: that was paid to the old run's words."""

    def output(eps: Tensor) -> Tensor:
        return schedulers.output_of(eps.to(x_in), x_in, step.alpha_bar, sd.prediction_type)

    uncond = None if step.eps_uncond is None else output(step.eps_uncond)
    cond = None if step.eps_cond is None else output(step.eps_cond)
    return Prediction(step.w, uncond, cond, output(step.eps), {})


def size_of(sd: StableDiffusion, request: Request) -> tuple[int, int]:
    """Height and width in pixels of the result: those of the picture it starts from, or four times that; else what the request says; what
    it leaves open is the size the model was trained at."""
    if request.source:
        scale = sd.factor if isinstance(request.source, conditioning.Upscale) else 1
        return request.source.picture.height * scale, request.source.picture.width * scale
    return request.height or sd.size, request.width or sd.size


def check_alike(
    sd: StableDiffusion,
    requests: Sequence[Request],
    known: Mapping | None,
    record: Record | None,
    fork: Fork | None,
    loss: Loss | None,
) -> None:
    alike = [*requests, fork.request] if fork else requests
    if len({(r.scheduler, r.steps, size_of(sd, r), r.source) for r in alike}) > 1:
        raise ValueError(
            "These pictures differ in size, scheduler, steps or the picture they start from, which one run must share; "
            "make them one after the other."
        )
    if len(requests) > 1 and isinstance(requests[0].source, conditioning.Inpaint):
        raise ValueError("An inpainting puts back what it keeps of one picture; make the others one after the other.")
    if known and record:
        raise ValueError("Predictions that are already known leave no attention to record; record one run by itself.")
    if loss and len(requests) > 1:
        raise ValueError("A loss guides one picture; make the others one after the other.")
    if fork and any(step.loss is not None for step in fork.steps):
        raise ValueError("This run was guided by a loss, which cannot be taken up in the middle; fork one without.")
    if fork and len(requests) > 1:
        raise ValueError("A fork goes on with one picture; take the others up one after the other.")
    if fork and requests[0].seed != fork.request.seed and requests[0].scheduler not in schedulers.FORGETFUL:
        raise ValueError(
            f"{requests[0].scheduler} remembers steps of the old noise, so the seed cannot change on the way; "
            f"keep the seed, or use {', '.join(schedulers.FORGETFUL)}."
        )


def check_interval(requests: Sequence[Request], turns: int) -> None:
    for r in requests:
        if r.interval is not None and r.interval[0] >= turns:
            raise ValueError(
                f"The guidance interval starts at step {r.interval[0] + 1}, but this run has {turns}; let it start earlier."
            )
