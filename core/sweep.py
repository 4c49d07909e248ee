"""The CFG sweep: one prompt at many guidance scales, and at several values of a second thing, sharing every UNet pass that can be.

All cells of one seed start from the same noise, so their first two predictions are the same, and scales 0 and 1 need one branch. For N
scales, T steps, k of the scales being 0 or 1, the UNet makes 2 + (T - 1)(2 N - k) passes instead of 2 N T: 306 for N = 9, T = 20, k = 2.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from core import latents, schedulers
from core.models import StableDiffusion
from core.sampling import Request, Step, check_number, denoise_many

MAX_CELLS = 64
AXES = ("none", "seed", "steps", "scheduler", "negative", "swap")


@dataclass(frozen=True)
class Sweep:
    """A grid: a row for each value of the second axis, a column for each guidance scale."""

    request: Request  # what all cells have in common
    guidances: tuple[float, ...]
    axis: str = "none"  # one of AXES
    values: tuple[str, ...] = (
        "",
    )  # of the second axis, as typed; swap: "dog -> cat", the first row of "dog" is the prompt itself

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
            return replace(self.request, prompt=word.sub(new, self.request.prompt)) if arrow else self.request
        return replace(self.request, **{self.axis: value.strip()})


@dataclass(frozen=True)
class Cost:
    """UNet passes of a sweep: one pass is one picture through the UNet once."""

    passes: int
    naive: int  # two branches at every step of every cell


@dataclass(frozen=True)
class Cell:
    """One picture of the grid, or what it looks like so far."""

    row: int
    column: int
    step: Step  # the newest; the last one's x_next is the result
    done: bool
    picture: Tensor | None  # (1, 3, H, W) in [-1, 1] when done


def parse_scales(typed: str) -> tuple[float, ...]:
    """ "0, 1, 2, 10", "1-9 (+2)" or both: numbers, and ranges with a step (1 if none is said).

    Raises ValueError that names the part it cannot read.
    """
    scales: list[float] = []
    for part in (p.strip() for p in typed.split(",")):
        if m := re.fullmatch(r"(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*(?:\(\s*\+\s*(\d+(?:\.\d+)?)\s*\))?", part):
            low, high, by = float(m[1]), float(m[2]), float(m[3] or 1)
            if by == 0 or low > high or (high - low) / by > MAX_CELLS:
                raise ValueError(f"The range {part!r} has no end; write it as in 1-9 (+2), the smaller number first.")
            scales += [round(low + k * by, 6) for k in range(int((high - low) / by + 1e-9) + 1)]
        elif re.fullmatch(r"\d+(?:\.\d+)?", part):
            scales.append(float(part))
        elif part:
            raise ValueError(f'{part[:40]!r} is no guidance scale; give numbers divided by commas, or a range as in "1-9 (+2)".')
    return tuple(dict.fromkeys(scales))


def cost(sd: StableDiffusion, sweep: Sweep) -> Cost:
    """What a sweep will take, before it runs."""
    passes = naive = 0
    first: set[tuple] = set()
    for row in sweep.rows():
        turns = len(schedulers.make(row[0].scheduler, sd.scheduler_config, row[0].steps).timesteps)
        for r in row:
            branches = ([] if r.guidance == 1 else [r.negative]) + ([] if r.guidance == 0 else [r.prompt])
            first |= {(r.scheduler, r.steps, r.seed, words) for words in branches}
            passes += len(branches) * (turns - 1)
            naive += 2 * turns
    return Cost(passes + len(first), naive)


def run(sd: StableDiffusion, sweep: Sweep, batch: int = 8) -> Iterator[Cell]:
    """Draws the grid, at most `batch` cells at a time, yielding every cell after every step. Stop it whenever you like."""
    known: dict[tuple, dict] = {}  # the first predictions, for each scheduler and step count
    for k, row in enumerate(sweep.rows()):
        shared = known.setdefault((row[0].scheduler, row[0].steps), {})
        for start in range(0, len(row), batch):
            for steps in denoise_many(sd, row[start : start + batch], known=shared):
                for column, step in enumerate(steps, start):
                    done = step.i == step.count - 1
                    yield Cell(k, column, step, done, latents.decode(sd, step.x_next) if done else None)
