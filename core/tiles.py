"""Super-resolution in tiles: a picture too large for one run is cut into overlapping pieces, each a run of its own through denoise().

The model sees a tile and knows nothing of the next, so what it invents may differ between them; in the overlap one is faded into the
other, linearly. Each tile has noise of its own: the k-th (row by row, from 0) runs with the request's seed + k, so the first is the run
that it would be alone.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from core import latents, room
from core.conditioning import Pixels, Upscale
from core.engine import Part, Work
from core.models import StableDiffusion
from core.sampling import Request, denoise
from core.trace import to_uint8

OVERLAP = 16  # pixels of the small picture that neighbours share at least


@dataclass(frozen=True)
class Tile:
    """A piece of the small picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Turn:
    """One step of one tile: what a work hands over."""

    tile: int  # 0, 1, ..
    tiles: int
    i: int  # its step, 0, 1, ..
    count: int
    preview: Tensor  # (3, h, w) uint8, what its x0 looks like
    picture: np.ndarray | None  # (H, W, 3) uint8 after its last step

    @property
    def nbytes(self) -> int:
        return self.preview.nbytes + (0 if self.picture is None else self.picture.nbytes)


def side_of(sd: StableDiffusion) -> int:
    """The side in pixels of a tile: the small pictures that the upscaler was trained for, which have a pixel for each latent."""
    return max(int(sd.unet.config.sample_size), 4 * OVERLAP)


def starts(length: int, side: int, overlap: int = OVERLAP) -> list[int]:
    """Where tiles of `side` begin on an edge of `length`: as few as cover it with at least `overlap` between neighbours, evenly spread."""
    if length <= side:
        return [0]
    count = math.ceil((length - overlap) / (side - overlap))
    return [round(k * (length - side) / (count - 1)) for k in range(count)]


def cut(height: int, width: int, side: int, overlap: int = OVERLAP) -> list[Tile]:
    """The tiles of a small picture, row by row; one alone if it is no larger than a tile. `overlap` is less than `side`."""
    return [
        Tile(top, left, min(side, height), min(side, width))
        for top in starts(height, side, overlap)
        for left in starts(width, side, overlap)
    ]


def requests(request: Request, tiles: list[Tile]) -> list[Request]:
    """The run of each tile: its piece of the picture, and a seed of its own."""
    source = request.source
    assert isinstance(source, Upscale)
    whole = source.picture.array
    pieces = [whole[t.top : t.top + t.height, t.left : t.left + t.width] for t in tiles]
    return [
        replace(request, seed=(request.seed + k) % 2**32, source=replace(source, picture=Pixels.of(piece)))
        for k, piece in enumerate(pieces)
    ]


def ramp(edges: set[int], length: int) -> int:
    """How far tiles of `length` that begin at these edges reach into each other; 1 if there is but one."""
    first = sorted(edges)
    return length - max(b - a for a, b in pairwise(first)) if len(first) > 1 else 1


def weights(length: int, ramp: int) -> np.ndarray:
    """How much a tile counts along one of its sides: rising linearly over `ramp` pixels, then 1, then falling; (length,) float32."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(from_end / ramp, 1).astype(np.float32)


def blend(tiles: list[Tile], pictures: Mapping[int, np.ndarray], under: np.ndarray) -> np.ndarray:
    """The tiles that are made so far, by number, faded into each other, (H, W, 3) uint8; where there is none yet, `under` of that shape.

    Where tiles agree, the result is what they agree on, to the bit: it is their weighted mean.
    """
    total = np.zeros(under.shape, np.float32)
    weight = np.zeros((*under.shape[:2], 1), np.float32)
    rows = ramp({t.top for t in tiles}, tiles[0].height)
    columns = ramp({t.left for t in tiles}, tiles[0].width)
    for k, picture in pictures.items():
        (height, width, _), scale = picture.shape, picture.shape[0] // tiles[k].height
        counts = weights(height, rows * scale)[:, None, None] * weights(width, columns * scale)[None, :, None]
        y, x = tiles[k].top * scale, tiles[k].left * scale
        total[y : y + height, x : x + width] += counts * picture
        weight[y : y + height, x : x + width] += counts
    return np.where(weight > 0, (total / np.maximum(weight, 1e-9)).round(), under).astype(np.uint8)


def draw(sd: StableDiffusion, request: Request, side: int | None = None) -> Iterator[Turn]:
    """Runs the tiles one after the other, a Turn a step. side: of a tile; None = what the model was trained for."""
    picture = request.source.picture if request.source else None
    assert picture is not None
    runs = requests(request, cut(picture.height, picture.width, side or side_of(sd)))
    for k, run in enumerate(runs):
        room.check(sd, run, "free some: this is one tile, and there are no smaller ones")
        for step in denoise(sd, run):
            made = None
            if step.i == step.count - 1:
                made = np.ascontiguousarray(to_uint8(latents.decode(sd, step.x_next))[0].movedim(0, -1).cpu().numpy())
            preview = to_uint8(latents.preview(sd, step.x0))[0].cpu()
            yield Turn(k, len(runs), step.i, step.count, preview, made)


def work(request: Request, side: int | None = None) -> Work:
    """The tiles as work for the engine, which stops between two steps."""

    def run(sd: StableDiffusion) -> Iterator[Part]:
        for turn in draw(sd, request, side):
            yield Part(turn.tile * turn.count + turn.i, turn.tiles * turn.count, turn)

    return run
