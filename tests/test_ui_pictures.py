"""What the tabs that start from a picture share, and what holds for all of their public endpoints."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.catalog import CATALOG
from ui import pictures, render, texts

MARK = b"Hasselberg"  # the place in the picture's metadata, in every way that a camera has of writing it


def photo() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = MARK.decode()
    exif[0x8825] = {1: "N", 2: (35.0, 41.0, 22.0), 3: "E", 4: (139.0, 41.0, 30.0), 27: MARK}  # GPS
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><exif:GPSLatitude>" + MARK + b"</exif:GPSLatitude></x:xmpmeta>"
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", exif=exif, xmp=xmp, comment=MARK, icc_profile=MARK * 20)
    return file.getvalue()


def told(data: bytes) -> list[bytes]:
    return [word for word in (MARK, b"Exif\0\0", b"xmpmeta", b"ICC_PROFILE") if word in data]


ASKED = {
    "img2img": ("a fox", "", 0.5, 3, 2, 2.5, "DDIM", False),
    "img2img, strength 0": ("a fox", "", 0, 3, 2, 2.5, "DDIM", False),
    "inpaint": ("a fox", "", 1, "original", 8, 2, 3, 2, 2.5, "DDIM", "emoji-inpaint"),
    "depth": (False, "a fox", "", 1, 3, 2, 2.5, "DDIM"),
    "upscale": ("a fox", 20, 64, "", 3, 1, 1.0, "DDIM", False),
}


@pytest.mark.parametrize("case", ASKED)
def test_where_a_photo_was_taken_is_in_no_answer(case, address, page_engine, tmp_path):
    from gradio_client import Client, handle_file

    name = case.split(",")[0]
    if name == "upscale" and "emoji-upscale" not in CATALOG:
        pytest.skip("assets/models has no emoji-upscale yet")
    (tmp_path / "photo.jpg").write_bytes(photo())
    assert len(told(photo())) == 4 and Image.open(tmp_path / "photo.jpg").getexif()
    mask = np.zeros((80, 96), np.uint8)
    mask[20:50, 30:70] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = [tmp_path / "photo.jpg", *{"inpaint": [tmp_path / "mask.png"], "depth": [tmp_path / "photo.jpg"]}.get(name, [])]

    client = Client(address, verbose=False, download_files=tmp_path)
    *made, settings = client.predict(*map(handle_file, files), *ASKED[case], api_name=f"/{name}")
    found = [json.dumps(settings).encode()]
    for path in made:
        data = Path(path).read_bytes()
        image = Image.open(io.BytesIO(data))
        image.load()
        assert not image.getexif() and not {"exif", "xmp", "icc_profile", "comment"} & image.info.keys()
        found.append(data)
        for form in ("PNG", "JPEG", "WEBP"):
            again = io.BytesIO()
            image.save(again, form)
            found.append(again.getvalue())

    runs = page_engine.mine(f"api {client.session_hash}")
    assert bool(runs) == (case != "img2img, strength 0"), "strength 0 is no run"
    for one in runs:  # and what the page makes of the same run
        trace = page_engine.result(one)
        trace.save(tmp_path / "run.safetensors")
        image = pictures.result_of(trace)
        found += [
            (tmp_path / "run.safetensors").read_bytes(),
            render.png(trace),
            render.encode(image, "PNG"),
            render.encode(image, "JPEG"),
        ]
    assert len(found) >= 5 and not [words for data in found if (words := told(data))]


def test_where_a_scheduler_goes_wrong_is_said_below_strength_1():
    assert set(pictures.OFF) == {"LMS", "PNDM"}
    for language in texts.LANGUAGES:
        for key in pictures.OFF.values():
            assert "diffusers" in texts.say(language, key)
