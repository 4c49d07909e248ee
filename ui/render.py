"""Tensors become pictures here, and nowhere else.

Pictures leave as PIL images, as PNG bytes with their settings inside, or as `data:` addresses for the page: those need no file on the
server, and no one else can ask for them. What a screen cannot show is marked: NaN and infinite values are painted in magenta and black
checks, and how much was clipped is counted.
"""

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from core.images import SETTINGS
from core.sampling import Step
from core.trace import Trace

WRONG = (np.array([255, 0, 255]), np.array([0, 0, 0]))  # the checks that mark what is no number
SMALL = 128  # pixels a side; what is enlarged square by square must be exact, so it goes as a PNG


@dataclass(frozen=True)
class Rendered:
    """A picture, and what it could not show."""

    image: Image.Image
    wrong: int  # pixels that are NaN or infinite, marked
    clipped: float  # share of the values that lie outside the screen's range, shown at its ends


def picture(values: Tensor | np.ndarray) -> Rendered:
    """(3, H, W) in [-1, 1] as floats, or in 0..255 as uint8."""
    v = np.moveaxis(numbers(values), 0, -1)  # (H, W, 3)
    if v.dtype == np.uint8:
        return Rendered(Image.fromarray(np.ascontiguousarray(v)), 0, 0.0)
    wrong = ~np.isfinite(v).all(-1)  # (H, W)
    clipped = float((np.abs(v[~wrong]) > 1.0005).mean()) if not wrong.all() else 0.0
    rgb = np.round(np.clip(np.nan_to_num(v), -1, 1) * 127.5 + 127.5).astype(np.uint8)
    rows, columns = np.nonzero(wrong)
    for parity in (0, 1):
        here = (rows + columns) % 2 == parity
        rgb[rows[here], columns[here]] = WRONG[parity]
    return Rendered(Image.fromarray(rgb), int(wrong.sum()), clipped)


def numbers(values: Tensor | np.ndarray) -> np.ndarray:
    """As numpy, uint8 or float32. Work on so few numbers is done without torch, whose threads wait for a busy device's."""
    v = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return v if v.dtype == np.uint8 else v.astype(np.float32)


def latent(trace: Trace, z: Tensor | np.ndarray, *, difference: bool = False) -> Rendered:
    """Latents (1, 4, h, w) by the trace's linear preview. difference: of noise, not of a picture, so zero is mid-grey."""
    matrix = numbers(trace.preview)  # (5, 3)
    rgb = np.einsum("chw,cr->rhw", numbers(z)[0], matrix[:4])
    return picture(rgb if difference else rgb + matrix[4][:, None, None])


def heat(share: Tensor) -> Image.Image:
    """A word's heat map (h, w) as a veil to lay over the picture: clear where the map is highest, dark where it is zero."""
    v = numbers(share)
    veil = np.zeros((*v.shape, 4), np.uint8)
    veil[..., 3] = np.round(225 * (1 - v / max(float(v.max()), 1e-9))).astype(np.uint8)
    return Image.fromarray(veil)


def numbers_of(values: Tensor | np.ndarray, low: float | None = None, high: float | None = None) -> dict:
    """(h, w) numbers for ui/maps.html, which draws them and tells each: float32, and the ends of the colour scale (None: the data's)."""
    v = np.ascontiguousarray(numbers(values), np.float32)
    known = v[np.isfinite(v)]
    ends = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return {
        "data": base64.b64encode(v.tobytes()).decode(),
        "h": v.shape[0],
        "w": v.shape[1],
        "low": ends[0] if low is None else low,
        "high": ends[1] if high is None else high,
    }


def uri(image: Image.Image, kind: str | None = None) -> str:
    """The picture as a `data:` address, of kind "PNG" or "JPEG"."""
    kind = kind or ("PNG" if max(image.size) <= SMALL or image.mode == "RGBA" else "JPEG")
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encode(image, kind)).decode()}"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def signed(trace: Trace, image: Image.Image | None = None) -> Image.Image:
    """The finished picture (or what became of it), with everything that made it beside it: a PNG of it carries that as a text chunk.

    Raises ValueError for a stopped run.
    """
    if trace.picture is None:
        raise ValueError("This run was stopped, so it has no finished picture.")
    image = image or picture(trace.picture).image
    image.info[SETTINGS] = json.dumps(trace.settings())
    return image


def png(trace: Trace, image: Image.Image | None = None) -> bytes:
    """The finished picture (or what became of it) as a file, in which core.images.read_settings finds the settings again."""
    image = signed(trace, image)
    about = PngImagePlugin.PngInfo()
    about.add_text(SETTINGS, image.info[SETTINGS])
    return encode(image, "PNG", pnginfo=about)


def png_uri(trace: Trace, image: Image.Image | None = None) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(trace, image)).decode()}"


def thumbnail(trace: Trace, side: int = 192) -> str:
    """A small picture of a run: the finished one, or the last guess of a stopped one, at pixel truth."""
    if trace.picture is None:
        return uri(latent(trace, trace.steps[-1].x0).image)
    image = picture(trace.picture).image
    image.thumbnail((side, side))
    return uri(image, "JPEG")


def strength(z: Tensor | np.ndarray) -> float:
    """Root mean square: 1 is as strong as unit noise."""
    return round(float(np.sqrt(np.mean(np.square(numbers(z))))), 4)


def step(trace: Trace, s: Step) -> dict:
    """One step as the page's viewer takes it: pictures and numbers, nothing that needs a model."""
    pull = None if s.eps_uncond is None or s.eps_cond is None else s.w * (numbers(s.eps_cond) - numbers(s.eps_uncond))
    noisy, guess = latent(trace, s.x_in), latent(trace, s.x0)
    noises = {"eps": s.eps, "uncond": s.eps_uncond, "cond": s.eps_cond, "pull": pull}
    # An upscaler's latents are four times as many: 20 steps of them would be 7 MB of PNG.
    kind = "PNG" if max(noisy.image.size) <= 96 else "JPEG"
    return {
        "t": round(s.t, 1),
        "sigma": s.sigma,
        "alpha_bar": s.alpha_bar,
        "w": s.w,
        "x": uri(noisy.image, kind),
        "x0": uri(guess.image, kind),
        "clipped": [round(noisy.clipped, 4), round(guess.clipped, 4)],
        "wrong": [noisy.wrong, guess.wrong],
        "noise": {name: uri(latent(trace, z, difference=True).image, kind) for name, z in noises.items() if z is not None},
        "strength": {name: strength(z) for name, z in noises.items() if z is not None},
    }


def words(trace: Trace) -> list[dict]:
    """Each word of the prompt with its heat map over all steps and layers; no maps if the run recorded none."""
    try:
        maps = trace.word_maps()  # (77, h, w)
    except ValueError:  # not recorded, or w = 0, where the prompt was not read
        return []
    return [{"word": word, "map": uri(heat(maps[list(positions)].mean(0)))} for word, positions in trace.tokens.words]
