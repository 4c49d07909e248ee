"""The CFG sweep: one prompt at many guidance scales, and at several values of a second thing, sharing every UNet pass that can be.

All cells of one seed start from the same noise, so their first two predictions are the same, and scales 0 and 1 need one branch. For N
scales, T steps, k of the scales being 0 or 1, the UNet makes 2 + (T - 1)(2 N - k) passes instead of 2 N T: 306 for N = 9, T = 20, k = 2.
"""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import latents, schedulers
from core.engine import Part, Work
from core.models import StableDiffusion
from core.sampling import Request, Step, Words, check_number, denoise_many, size_of
from core.trace import Trace, to_uint8

MAX_CELLS = 64
AXES = ("none", "seed", "steps", "scheduler", "negative", "swap")
KEPT_BYTES = 256 * 2**20  # of the cells' steps; 64 cells of 100 steps of the embedded model are 183 MB


@dataclass(frozen=True)
class Sweep:
    """A grid: a row for each value of the second axis, a column for each guidance scale."""

    request: Request  # what all cells have in common
    guidances: tuple[float, ...]
    axis: str = "none"  # one of AXES
    values: tuple[str, ...] = ("",)  # of the second axis, as typed; swap: "dog -> cat", or "dog" for the prompt as it is

    def __post_init__(self) -> None:
        if not self.guidances:
            raise ValueError('There are no guidance scales; give some, as in "0, 1, 2, 10" or "1-9 (+2)".')
        for w in self.guidances:
            check_number("guidance", w, 0, 30)
        if self.axis not in AXES:
            raise ValueError(f"There is no axis {self.axis!r}; choose one of {', '.join(AXES)}.")
        if not self.values:
            raise ValueError(f"The axis {self.axis} has no values; give some, divided by commas.")
        if (cells := len(self.guidances) * len(self.values)) > MAX_CELLS:
            raise ValueError(f"This grid has {cells} cells; at most {MAX_CELLS} are drawn: give fewer scales or values.")
        self.rows()  # every cell is a request that can be made

    def rows(self) -> list[list[Request]]:
        """The cells, row by row. Raises ValueError for a value that no request can have."""
        return [[replace(self._changed(value), guidance=w) for w in self.guidances] for value in self.values]

    def _changed(self, value: str) -> Request:
        if self.axis == "none":
            return self.request
        if self.axis in ("seed", "steps"):
            if not value.strip().isdecimal():
                raise ValueError(f"The {self.axis} {value.strip()!r} is no whole number; give numbers divided by commas.")
            return replace(self.request, **{self.axis: int(value)})
        if self.axis == "swap":
            old, arrow, new = (words.strip() for words in value.partition("->"))
            word = re.compile(rf"\b{re.escape(old)}\b")
            if not old or not word.search(self.request.prompt):
                raise ValueError(f'The prompt does not hold {old!r}; swap one of its words, as in "dog -> cat".')
            if arrow and self.request.edits:
                raise ValueError(
                    "Edits belong to places among the words, which a swap changes; take them back, or take another axis."
                )
            return replace(self.request, prompt=word.sub(lambda _: new, self.request.prompt)) if arrow else self.request
        return replace(self.request, **{self.axis: value.strip()})


@dataclass(frozen=True)
class Cost:
    """What a sweep takes. A pass is one picture through the UNet once."""

    first: int  # passes of the first step, which pictures of one seed share
    rest: int  # passes of all later steps
    naive: int  # passes if each picture were drawn by itself, with two branches at every step
    pictures: int

    @property
    def passes(self) -> int:
        return self.first + self.rest

    @property
    def saved(self) -> int:
        return self.naive - self.passes


@dataclass
class Meter:
    """How long the work of a sweep has taken so far; it runs along."""

    passes: int = 0
    unet: float = 0.0  # seconds that the passes took
    pictures: int = 0
    decoding: float = 0.0  # seconds that decoding them took

    def seconds(self, passes: int, pictures: int) -> float | None:
        """What so many more would take at this speed; None as long as nothing was measured."""
        if not self.passes:
            return None
        return passes * self.unet / self.passes + (pictures * self.decoding / self.pictures if self.pictures else 0)


@dataclass(frozen=True)
class Cell:
    """One picture of the grid, or what it looks like so far."""

    row: int
    column: int
    step: Step  # the newest; the last one's x_next is the result
    done: bool
    picture: Tensor | None  # (1, 3, H, W) in [-1, 1] when done


@dataclass(frozen=True)
class Strengths:
    """The noise predictions of one step as root mean squares: unit noise has 1."""

    uncond: float | None  # None where w = 1
    cond: float | None  # None where w = 0
    pull: float | None  # of cond - uncond, before w; None where one of them is missing
    eps: float  # of the guided prediction


@dataclass(frozen=True)
class Tile:
    """A cell after one of its steps, on the CPU, as long as its sweep is kept."""

    sweep: Sweep
    row: int
    column: int
    i: int
    count: int
    preview: Tensor  # (3, h, w) uint8: what x0 looks like
    strengths: Strengths
    trace: Trace | None = None  # with the last step: the run. Without its steps, if KEPT_BYTES were full
    passes: int = 0  # of the whole sweep, until now
    seconds: float = 0.0  # that it has taken until now
    seconds_left: float | None = None

    @property
    def nbytes(self) -> int:
        return self.preview.nbytes + (0 if self.trace is None else self.trace.nbytes)


# --- reading what people type -------------------------------------------------------------------------------------------------------

RANGE = re.compile(r"(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*(?:\(\s*\+\s*(\d+(?:\.\d+)?)\s*\))?")


def parse_scales(typed: str) -> tuple[float, ...]:
    """ "0, 1, 2, 10", "1-9 (+2)" or both: numbers, and ranges with a step (1 if none is said).

    Raises ValueError that names the part it cannot read.
    """
    scales: list[float] = []
    for part in filter(None, map(str.strip, typed.split(","))):
        if m := RANGE.fullmatch(part):
            scales += spread(part, float(m[1]), float(m[2]), float(m[3] or 1))
        elif re.fullmatch(r"\d+(?:\.\d+)?", part):
            scales.append(float(part))
        else:
            raise ValueError(f'{part[:40]!r} is no guidance scale; give numbers divided by commas, or a range as in "1-9 (+2)".')
    return tuple(dict.fromkeys(scales))


def spread(part: str, low: float, high: float, by: float) -> list[float]:
    if by == 0 or low > high or (high - low) / by > MAX_CELLS:
        raise ValueError(f"The range {part!r} has no end; write it as in 1-9 (+2), the smaller number first.")
    return [round(low + k * by, 6) for k in range(int((high - low) / by + 1e-9) + 1)]


def parse_values(axis: str, typed: str, request: Request) -> tuple[str, ...]:
    """The values of the second axis, each once.

    Seeds and steps: numbers and ranges as in parse_scales. Negative prompts: one a line, after the request's own, so that there is
    something to compare with. Swaps ("dog -> cat"): divided by commas or lines, after the word that they take away. Schedulers: names.
    Raises ValueError for a range without an end.
    """
    parts = [part.strip() for part in re.split(r"\n" if axis == "negative" else r"[,\n]", typed)]
    parts = [part for part in parts if part]
    if axis == "none":
        return ("",)
    if axis in ("seed", "steps"):
        ranges = [(part, RANGE.fullmatch(part)) for part in parts]
        spreads = [
            [f"{v:.10g}" for v in spread(part, *map(float, (m[1], m[2], m[3] or 1)))] if m else [part] for part, m in ranges
        ]
        parts = [value for values in spreads for value in values]
    elif axis == "negative" and parts:
        parts = [request.negative.strip(), *parts]
    elif axis == "swap":
        parts = [part for swap in parts for part in (swap.partition("->")[0].strip(), swap)]
    return tuple(dict.fromkeys(parts))


# --- what it costs ------------------------------------------------------------------------------------------------------------------


def branches(r: Request, i: int) -> set[Words]:
    """What the UNet reads for a picture in its i-th step: one pass for each."""
    w = r.guidance if r.interval is None or r.interval[0] <= i < r.interval[1] else 1.0
    return ({r.no_words} if w != 1 else set()) | ({r.words} if w != 0 else set())


def turns(sd: StableDiffusion, r: Request) -> int:
    """Calls of the UNet that a picture needs: its steps, or more with a second-order scheduler."""
    return len(schedulers.make(r.scheduler, sd.scheduler_config, r.steps).timesteps)


def cost(sd: StableDiffusion, sweep: Sweep) -> Cost:
    """What a sweep will take, before it runs. Raises ValueError for more steps than a scheduler can make."""
    rest = naive = pictures = 0
    first: set[tuple] = set()
    for row in sweep.rows():
        count = turns(sd, row[0])
        for r in row:
            first |= {(r.scheduler, r.steps, r.seed, words) for words in branches(r, 0)}
            rest += sum(len(branches(r, i)) for i in range(1, count))
            naive += 2 * count
            pictures += 1
    return Cost(len(first), rest, naive, pictures)


def batch_of(sd: StableDiffusion, request: Request) -> int:
    """How many cells to draw at once. A call of the UNet costs something whatever its size: on one core, a pass of the embedded model
    takes 27 ms in a call of two and 18 ms in one of eight or more, while large latents fill a CPU by themselves. A GPU takes eight
    cells, and fewer where its memory ends (see run)."""
    height, width = size_of(sd, request)
    return 8 if sd.device.type != "cpu" else max(1, 2048 * sd.factor**2 // (height * width))


# --- drawing ------------------------------------------------------------------------------------------------------------------------


def run(sd: StableDiffusion, sweep: Sweep, batch: int | None = None, meter: Meter | None = None) -> Iterator[Cell]:
    """Draws the grid row by row, at most `batch` cells at a time (batch_of), yielding every cell after every step.

    Stop it whenever you like. Where the device's memory ends, the cells begin again, half as many at a time.
    Raises ValueError as soon as a prediction is not finite.
    """
    batch, meter = batch or batch_of(sd, sweep.request), meter or Meter()
    known: dict[tuple, dict] = {}  # the first predictions, for each scheduler and step count
    for k, row in enumerate(sweep.rows()):
        shared = known.setdefault((row[0].scheduler, row[0].steps), {})
        start = 0
        while start < len(row):
            left = len(row) - start
            some = row[start : start + math.ceil(left / math.ceil(left / batch))]  # 9 cells at most 8 at a time: 5 and 4
            try:
                for cells in together(sd, some, shared, meter):
                    for column, (step, picture) in enumerate(cells, start):
                        yield Cell(k, column, step, picture is not None, picture)
                start += len(some)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                batch = len(some) // 2


def together(sd: StableDiffusion, row: list[Request], known: dict, meter: Meter) -> Iterator[list[tuple[Step, Tensor | None]]]:
    """Some cells of a row, step by step, each decoded after its last, and how long that took."""
    steps = denoise_many(sd, row, known=known)
    while True:
        before, began = len(known), time.perf_counter()
        made = next(steps, None)
        if made is None:
            return
        i, last = made[0].i, made[0].i == made[0].count - 1
        meter.unet += time.perf_counter() - began
        meter.passes += len(known) - before if i == 0 else sum(len(branches(r, i)) for r in row)
        began = time.perf_counter()
        pictures = [latents.decode(sd, step.x_next) if last else None for step in made]
        if last:
            meter.decoding += time.perf_counter() - began
            meter.pictures += len(made)
        yield list(zip(made, pictures, strict=True))


def work(sweep: Sweep, batch: int | None = None, meter: Meter | None = None) -> Work:
    """The sweep as work for the engine: a Tile for every cell and step. Stopped, or at a prediction that is not finite, it keeps what is
    done; then its last value is the sentence that says why."""
    clock = meter or Meter()

    def draw(sd: StableDiffusion) -> Iterator[Part]:
        rows, whole = sweep.rows(), cost(sd, sweep)
        count = sum(turns(sd, row[0]) * len(row) for row in rows)
        traces: dict[tuple[int, int], Trace] = {}
        over: dict[tuple[int, int], int] = {}  # steps that each cell has behind it
        kept, began = 0, 0.0
        try:
            for cell in run(sd, sweep, batch, clock):
                place, step = (cell.row, cell.column), cell.step
                if step.i == 0:
                    began = time.perf_counter()
                    traces[place] = Trace.start(sd, rows[cell.row][cell.column])
                over[place] = step.i + 1
                trace = traces[place]
                for _ in trace.follow([step]):
                    pass
                tile = tile_of(trace, -1, sweep, place)
                if cell.picture is not None:
                    trace.picture = to_uint8(cell.picture)[0].cpu()
                    trace.seconds = time.perf_counter() - began
                    if kept + trace.nbytes > KEPT_BYTES:
                        trace.steps = []
                    kept += trace.nbytes
                    del traces[place]
                left = clock.seconds(whole.passes - clock.passes, whole.pictures - clock.pictures)
                done = trace if cell.picture is not None else None
                spent = {"passes": clock.passes, "seconds": clock.unet + clock.decoding, "seconds_left": left}
                yield Part(sum(over.values()) - 1, count, replace(tile, trace=done, **spent))
        except ValueError as error:
            if not any(place not in traces for place in over):  # nothing is done that could be kept
                raise
            yield Part(sum(over.values()) - 1, count, str(error))

    return draw


def tile_of(trace: Trace, i: int, sweep: Sweep, place: tuple[int, int] = (0, 0)) -> Tile:
    """One step of a run as a page shows it in a grid; with the last one comes the run."""
    s = trace.steps[i]
    rgb = torch.einsum("bchw,cr->brhw", s.x0.float(), trace.preview[:4]) + trace.preview[4][None, :, None, None]
    last = trace if s.i == s.count - 1 and trace.picture is not None else None
    return Tile(sweep, *place, s.i, s.count, to_uint8(rgb)[0], strengths(s), last)


def tiles_of(trace: Trace) -> list[Tile]:
    """A run that was made elsewhere as a grid of one cell."""
    sweep = Sweep(trace.request, (trace.request.guidance,))
    return [tile_of(trace, i, sweep) for i in range(len(trace))]


def measure(sd: StableDiffusion, sweep: Sweep) -> Meter:
    """How fast the device is at such a sweep: its first cells in two steps, and once more in three if that was quick, for the first call
    of all is slow."""
    clock, some = Meter(), sweep.guidances[: batch_of(sd, sweep.request)]
    for steps in (2, 3):
        clock = Meter()
        for _ in run(sd, Sweep(replace(sweep.request, steps=steps, interval=None), some), meter=clock):
            pass
        if clock.unet + clock.decoding > 1:
            break
    return clock


# --- looking at it afterwards -------------------------------------------------------------------------------------------------------


def strengths(s: Step) -> Strengths:
    def rms(z: Tensor | None) -> float | None:
        return None if z is None else float(z.float().square().mean().sqrt())

    pull = None if s.eps_uncond is None or s.eps_cond is None else s.eps_cond - s.eps_uncond
    eps = rms(s.eps)
    assert eps is not None
    return Strengths(rms(s.eps_uncond), rms(s.eps_cond), rms(pull), eps)


def apart(a: Trace, b: Trace) -> list[float]:
    """How far two runs' latents are from each other after 0, 1, .. steps: the root mean square of their difference, as the UNet sees them.

    Runs of one seed begin at 0. After the first step they are as far apart as their guidance scales, for all saw the same two predictions.
    """
    pairs = [(s.x_in, r.x_in) for s, r in zip(a, b, strict=False)]
    if pairs and len(a) == len(b):
        pairs.append((a.steps[-1].x_next, b.steps[-1].x_next))
    return [float((x.float() - y.float()).square().mean().sqrt()) for x, y in pairs]


def halfway(distances: list[float]) -> int:
    """After how many steps two runs are half as far apart as at the end."""
    return next(k for k, d in enumerate(distances) if d >= distances[-1] / 2)
