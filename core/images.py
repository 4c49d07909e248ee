"""The only door for pictures from outside: what comes in is upright, RGB, of a sane size, and carries nothing but its pixels.

A file is judged by its content, never by its name, and its size is read before a pixel of it is decoded: a PNG of 160 kB can unfold
to a gigabyte. What was done to a picture on its way in is told with it; what is refused is refused with one sentence (ValueError).
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, PngImagePlugin

FORMATS = ("PNG", "JPEG", "WEBP")
MEGAPIXELS = 25
SHORTEST = 64  # pixels
ASPECT = 4  # long side / short side
LONGEST = 1024  # pixels, of what a run draws
SCANS = 50  # a progressive JPEG has about ten; 40 bytes more are a scan more, and of 25 megapixels it takes 30 ms
ARITHMETIC = 4  # as many of them does a scan count for that is coded arithmetically: it takes 60 to 150 ms
SETTINGS = "inside-stable-diffusion"  # the PNG text chunk that our own pictures carry

PngImagePlugin.MAX_TEXT_MEMORY = 4 * PngImagePlugin.MAX_TEXT_CHUNK  # Pillow's own limit lets 60 kB of text unfold to 250 MB

Source = (
    str | Path | bytes | Image.Image | np.ndarray
)  # a file's path or bytes; a Pillow picture; uint8 of (H, W), (H, W, 3 or 4)

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")  # how a file of the three formats begins
OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"%!PS": "EPS", b"8BPS": "PSD"}
KINDS = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "F": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # a JPEG's markers, but for those that have no length
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

DAMAGED = "The picture's file is damaged or ends early; save it again and choose the new file."
UNPAINTED = "Paint the part to change first."


@dataclass(frozen=True)
class Opened:
    """A picture that has come in through the door."""

    image: Image.Image  # RGB, upright, without metadata
    notices: tuple[str, ...]  # what was done to it, a sentence each; that metadata is dropped goes without saying


# --- what is in the file ----------------------------------------------------------------------------------------------------------


def _open(source: Source) -> Image.Image:
    """A picture of at most 25 megapixels, of a file its header only. Raises ValueError."""
    if source is None:
        raise ValueError("There is no picture yet; choose one.")
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] not in ((), (3,), (4,)) or source.ndim < 2 or not source.size:
            raise ValueError(
                f"The array is {source.dtype} of shape {source.shape}; give uint8 of (height, width, 3), with values 0 to 255."
            )
        image = Image.fromarray(source)
    else:
        return _open_file(source)
    _check_area(image)
    return image


def _open_file(source: str | Path | bytes) -> Image.Image:
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise ValueError("This file cannot be read; choose it again.") from error
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # far over, and all that Pillow tells
        found = re.search(r"(\d+) pixels", str(error))
        size = f"{int(found[1]) // 1_000_000} megapixels" if found else "far too many pixels"
        raise ValueError(f"The picture has {size}, over the limit of {MEGAPIXELS}; make it smaller.") from None
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise ValueError(_what_is(data)) from error
    _check_area(image)
    # In a JPEG each block of 8 x 8 takes at least a bit. A shorter file is cut off, and libjpeg would fill it up with grey.
    short = image.width * image.height > 64 * 8 * len(data)
    if image.format in ("JPEG", "MPO") and (short or _scans(data) > SCANS):  # MPO: several JPEGs in one file
        raise ValueError(DAMAGED)
    return image


def _scans(data: bytes) -> int:
    """How many scans of a JPEG are decoded, those coded arithmetically counted as several. It goes from segment to segment as libjpeg
    does, over whatever lies between two of them, and ends with the picture: a thumbnail, or a phone's film behind it, has its own."""
    at, scans, each = 2, 0, 1
    while (marker := SEGMENT.search(data, at)) and marker[0] != b"\xff\xd9":
        each = ARITHMETIC if marker[0] in (b"\xff\xc9", b"\xff\xca") else each
        scans += each if marker[0] == b"\xff\xda" else 0
        at = marker.end() + max(int.from_bytes(data[marker.end() : marker.end() + 2], "big"), 2)  # its length
    return scans


def _what_is(data: bytes) -> str:
    """Why this cannot be opened, by how it begins."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "This is a HEIC file, not a PNG, JPEG or WebP picture; on an iPhone choose Most Compatible as the camera's format."
    if data.startswith(SIGNATURES) and (data[:4] != b"RIFF" or data[8:12] == b"WEBP"):
        return DAMAGED
    for signature, name in OTHERS.items():
        if data.startswith(signature):
            return f"This is a {name} file, not a PNG, JPEG or WebP picture; choose one of these three."
    return "This is not a PNG, JPEG or WebP picture; choose one of these three."


def _check_area(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"The picture has {width} x {height} pixels, over the limit of {MEGAPIXELS} megapixels; make it smaller."
        )


def _check_sides(image: Image.Image, shortest: int = SHORTEST) -> None:
    width, height = image.size
    if min(width, height) < shortest:
        raise ValueError(f"The picture has {width} x {height} pixels; each side needs at least {shortest}.")
    if max(width, height) > ASPECT * min(width, height):
        raise ValueError(
            f"The picture has {width} x {height} pixels; its long side may be at most {ASPECT} times its short side."
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the picture upright. Broken EXIF is no reason to refuse a picture: it is dropped in any case."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as many kinds as there are ways to be broken
        return None


def _decoded(source: Source, shortest: int = SHORTEST) -> tuple[Image.Image, list[str]]:
    """The picture upright, RGB or RGBA, of 8 bits a value, and what was done for that. Raises ValueError."""
    image = _open(source)
    _check_sides(image, shortest)
    notices = []
    if (count := getattr(image, "n_frames", 1)) > 1:
        notices.append(f"The file holds {count} pictures; the first one is used.")
    if image.mode.startswith("I") or any("16" in str(tile.args) for tile in getattr(image, "tile", ())):
        notices.append("The picture had 16 bits a value, which were scaled to 8.")
    if kind := KINDS.get(image.mode.partition(";")[0]):
        notices.append(f"The picture was {kind} and is RGB now.")
    try:
        image.load()
        if (turn := _turn(image)) is not None:
            image = image.transpose(turn)
            notices.append("The picture was turned upright, as its camera had noted.")
        if image.mode.startswith("I"):  # where Pillow would clip
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image.convert("RGBA" if image.has_transparency_data else "RGB"), notices
    except Exception as error:  # cut off or damaged: as many kinds again
        raise ValueError(DAMAGED) from error


def _opaque(alpha: Image.Image) -> bool:
    return alpha.getextrema() == (255, 255)


# --- pictures ---------------------------------------------------------------------------------------------------------------------


def look_in(source: Source, shortest: int = SHORTEST) -> Opened:
    """A picture from outside -> upright, RGB and without metadata, with the notices that a page should show.

    shortest: pixels that each side must have. Raises ValueError with one sentence that says what is wrong and what is allowed.
    """
    image, notices = _decoded(source, shortest)
    if image.mode == "RGBA":
        if not _opaque(image.getchannel("A")):
            notices.append("The picture's transparent parts became white.")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    image.info.clear()  # EXIF with its GPS, XMP, colour profile
    return Opened(image, tuple(notices))


def open_picture(source: Source) -> Image.Image:
    """The picture of `look_in`, for where nobody asks what was done to it."""
    return look_in(source).image


def fit(image: Image.Image, side: int, multiple: int = 8) -> Image.Image:
    """The picture at the size of `size_for`; what does not fit into that shape is cut off around the middle."""
    return cover(image, *size_for(image, side, multiple))


def size_for(image: Image.Image, side: int, multiple: int = 8) -> tuple[int, int]:
    """The size (width, height) at which a model of `side` x `side` pixels works on a picture: as many pixels in all, or as many as a long
    side of 1024 leaves; the picture's own shape, each side a multiple of `multiple`."""
    scale = min(side / (image.width * image.height) ** 0.5, LONGEST / max(image.size))
    width, height = (max(round(length * scale / multiple), 1) * multiple for length in image.size)
    return width, height


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at exactly this size; what does not fit into its shape is cut off around the middle."""
    return fitted(image, width, height, "crop")[0]


def fitted(image: Image.Image, width: int, height: int, how: str = "crop") -> tuple[Image.Image, tuple[float, ...]]:
    """The picture at exactly this size, and a box (left, top, right, bottom) that says what the rule did.

    "crop": it fills the size, and the ends are cut off; the box is what is left of `image`, in its pixels (they may be fractions).
    "pad": it lies whole in the middle, with white beside it; the box is where it lies, in pixels of the result.
    A mask ("L") is padded with black and enlarged without overshoot. Raises ValueError for another rule.
    """
    sample = Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.LANCZOS
    wider = image.width * height > width * image.height  # than the size asked for
    if how == "crop":
        w, h = (width * image.height / height, image.height) if wider else (image.width, height * image.width / width)
        left, top = (image.width - w) / 2, (image.height - h) / 2
        box = (left, top, left + w, top + h)
        return image.resize((width, height), sample, box), box
    if how == "pad":
        w, h = (width, image.height * width / image.width) if wider else (image.width * height / image.height, height)
        w, h = max(round(w), 1), max(round(h), 1)
        left, top = (width - w) // 2, (height - h) // 2
        whole = Image.new(image.mode, (width, height), "black" if image.mode == "L" else "white")
        whole.paste(image.resize((w, h), sample), (left, top))
        return whole, (left, top, left + w, top + h)
    raise ValueError(f"There is no way of fitting called {how}; choose crop or pad.")


# --- masks ------------------------------------------------------------------------------------------------------------------------


def open_mask(source: Source | dict | None, size: tuple[int, int], how: str = "crop") -> np.ndarray:
    """A mask for a picture of `size` (width, height) -> (H, W) float32 in [0, 1], where 1 is "change here".

    Takes a picture of its own, white on black or painted on nothing, or a mask editor's value (see `mask_of`). A mask of another size is
    fitted by the rule `how`, as its picture is. Raises ValueError if nothing is marked, or for what `look_in` refuses.
    """
    mask = mask_of(source) if source is None or isinstance(source, dict) else _marked(source)
    marked = np.asarray(fitted(mask, *size, how)[0], np.float32) / 255
    if not marked.any():
        raise ValueError(UNPAINTED)
    return marked


def mask_of(value: dict | None) -> Image.Image:
    """What was painted in a mask editor whose value is {"background": picture, "layers": [picture, ...]} -> "L", 255 where any layer
    is not transparent. A layer that is nowhere transparent is read as a mask of its own, white on black: programs send such.

    Raises ValueError in all the ways of nothing being painted: no value, no background, no layers, layers that are transparent.
    """
    mask = None
    if value is not None and value.get("background") is not None:
        for layer in value.get("layers") or []:
            image = _decoded(layer)[0].convert("RGBA")
            alpha = image.getchannel("A")
            painted = image.convert("L") if _opaque(alpha) else alpha.point([0] + [255] * 255)
            mask = painted if mask is None else ImageChops.lighter(mask, painted.resize(mask.size))
    if mask is None or mask.getbbox() is None:
        raise ValueError(UNPAINTED)
    return mask


def _marked(source: Source) -> Image.Image:
    """A mask's own picture -> "L": its light, as seen on black; what is painted if that has one colour, on nothing."""
    image, _ = _decoded(source)
    light = image.convert("L")
    if image.mode == "RGB":
        return light
    alpha = image.getchannel("A")
    one_colour = sum(count > 0 for count in light.histogram(alpha)) <= 1  # where anything can be seen
    return alpha if one_colour and not _opaque(alpha) else ImageChops.multiply(light, alpha)


# --- settings ---------------------------------------------------------------------------------------------------------------------


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
        raise ValueError(DAMAGED) from error
    try:
        settings = json.loads(image.text[SETTINGS])
    except (AttributeError, KeyError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError("This PNG carries no settings of this app; drop one that was saved here, unchanged.")
    return settings
