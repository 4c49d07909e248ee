"""Pictures from outside: three formats by content, sane sizes, upright, RGB, and nothing but pixels."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from core.images import SETTINGS, cover, fit, open_picture, read_settings


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def corner(size=(96, 64), mode="RGB") -> Image.Image:
    """White, with a red upper left corner."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((0, 0, 31, 31), fill="red")
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_three_formats_come_in(kind, tmp_path):
    path = tmp_path / "misnamed.gif"
    path.write_bytes(file_of(corner(), kind))
    picture = open_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (96, 64))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_and_their_metadata_stays_outside(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[2] = (35.0, 41.0, 22.0)  # GPS
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera held so has stored it, as Image.Transpose
    stored = corner() if orientation == 1 else corner().transpose(Image.Transpose(turned[orientation]))
    picture = open_picture(file_of(stored, "PNG", exif=exif))
    assert picture.size == (96, 64) and picture.getpixel((5, 5)) == (255, 0, 0)
    assert not picture.info and not picture.getexif()


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert open_picture(file_of(clear)).getpixel((9, 9)) == (255, 255, 255)
    palette = Image.new("P", (64, 64))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert open_picture(file_of(palette, transparency=0)).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    assert open_picture(file_of(corner(mode=mode))).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.full((64, 64), 32896, np.uint16))
    assert open_picture(file_of(deep)).getpixel((0, 0)) == (128, 128, 128)
    cmyk = open_picture(file_of(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.mode == "RGB" and cmyk.getpixel((0, 0))[0] > 200


REFUSED = {
    "no file": (b"", "not a PNG, JPEG or WebP"),
    "text": (b"<html></html>", "not a PNG, JPEG or WebP"),
    "gif": (file_of(corner(), "GIF"), "not a PNG, JPEG or WebP"),
    "tiff": (file_of(corner(), "TIFF"), "not a PNG, JPEG or WebP"),
    "tiny": (file_of(Image.new("RGB", (63, 200))), "at least 64"),
    "long": (file_of(Image.new("RGB", (64, 257))), "at most 4 times"),
    "cut off": (
        file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)))[:20000],
        "damaged or ends early",
    ),
    "bomb": (file_of(Image.new("1", (6000, 6000))), "over the limit of 25 megapixels"),
    "great bomb": (file_of(Image.new("1", (15000, 15000))), "over the limit of 25 megapixels"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_refused_is_refused_with_a_sentence(name):
    data, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as error:
        open_picture(data)
    assert str(error.value).endswith(".")


def settings_file(text: str, key: str = SETTINGS) -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text(key, text)
    return file_of(corner(), pnginfo=about)


def test_settings_come_back():
    assert read_settings(settings_file(json.dumps({"prompt": "犬"}))) == {"prompt": "犬"}


@pytest.mark.parametrize(
    "data, words",
    [
        (settings_file("{}", "parameters"), "no settings of this app"),
        (settings_file("not JSON"), "no settings of this app"),
        (settings_file("[1, 2]"), "no settings of this app"),
        (settings_file("[" * 100_000), "no settings of this app"),
        (file_of(corner()), "no settings of this app"),
        (file_of(corner(), "JPEG"), "JPEG picture, which carries no settings"),
        (settings_file("{}")[:-40], "damaged or ends early|no settings of this app"),
        (b"PNG", "not a PNG"),
    ],
)
def test_files_without_settings_say_so(data, words):
    with pytest.raises(ValueError, match=words):
        read_settings(data)


def test_a_picture_is_fitted_to_a_models_size():
    """As many pixels as the model works with, the picture's own shape, sides that latents can have."""
    sizes = {(500, 500): (128, 128), (640, 480): (144, 112), (64, 256): (64, 256), (1000, 500): (184, 88)}
    assert {size: fit(Image.new("RGB", size), 128).size for size in sizes} == sizes
    left_red = Image.new("RGB", (400, 100), "red")
    left_red.paste("blue", (100, 0, 400, 100))
    assert cover(left_red, 64, 64).getpixel((0, 32)) == (0, 0, 255), "the middle is kept, the ends are cut"
