"""The only door for pictures from outside: what comes in is upright, RGB, of a sane size, and carries nothing but its pixels.

A file is judged by its content, never by its name, and its size is read before a pixel of it is decoded: a PNG of 160 kB can unfold
to a gigabyte.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")
MEGAPIXELS = 25
SHORTEST = 64  # pixels
ASPECT = 4  # long side / short side
SETTINGS = "inside-stable-diffusion"  # the PNG text chunk that our own pictures carry


def _open(source: str | Path | bytes) -> Image.Image:
    """Reads the header only, within the three formats."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"The picture is far over the limit of {MEGAPIXELS} megapixels; make it smaller.") from None
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise ValueError("This is not a PNG, JPEG or WebP picture; choose one of these three.") from error
    width, height = image.size
    if width * height > MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"The picture has {width} x {height} pixels, over the limit of {MEGAPIXELS} megapixels; make it smaller."
        )
    return image


def open_picture(source: str | Path | bytes) -> Image.Image:
    """A file's path or its bytes -> an upright RGB picture without metadata; transparent parts become white.

    Raises ValueError with one sentence that says what is wrong and what is allowed.
    """
    image = _open(source)
    width, height = image.size
    if min(width, height) < SHORTEST:
        raise ValueError(f"The picture has {width} x {height} pixels; each side needs at least {SHORTEST}.")
    if max(width, height) > ASPECT * min(width, height):
        raise ValueError(
            f"The picture has {width} x {height} pixels; its long side may be at most {ASPECT} times its short side."
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # cut off or damaged: as many kinds again
        raise ValueError("The picture's file is damaged or ends early; save it again and choose the new file.") from error
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a value: scaled, where Pillow would clip
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    plain = image.convert("RGB")
    plain.info.clear()  # EXIF with its GPS, XMP, colour profile
    return plain


def fit(image: Image.Image, side: int, multiple: int = 8) -> Image.Image:
    """The picture at the size that a model of `side` x `side` pixels works at: as many pixels in all, its own shape, each side a
    multiple of `multiple`; what does not fit into that is cut off around the middle."""
    scale = side / (image.width * image.height) ** 0.5
    return cover(image, *(max(round(length * scale / multiple), 1) * multiple for length in image.size))


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at exactly this size; what does not fit into its shape is cut off around the middle."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def read_settings(source: str | Path | bytes) -> dict:
    """The settings that this app wrote into a PNG of its own.

    Raises ValueError with one sentence if the file is no such PNG. What it returns came from outside: check it before use.
    """
    image = _open(source)
    if image.format != "PNG":
        raise ValueError(f"This is a {image.format} picture, which carries no settings; drop a PNG that this app made.")
    try:
        image.load()  # text may stand behind the pixels
    except Exception as error:
        raise ValueError("The picture's file is damaged or ends early; save it again and choose the new file.") from error
    try:
        settings = json.loads(image.text[SETTINGS])
    except (AttributeError, KeyError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError("This PNG carries no settings of this app; drop one that was saved here, unchanged.")
    return settings
