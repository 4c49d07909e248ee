"""What the tabs that start from a picture share, and what holds for all of their public endpoints."""

import io
import json
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from conftest import toy_model
from PIL import Image

from core import conditioning, images
from core.catalog import ROLES
from core.engine import LocalEngine
from core.sampling import Request
from ui import depth, img2img, inpaint, pictures, render, texts, upscale

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


# --- whatever a file holds, three channels of bytes run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys():
    """One for each endpoint, under the names of the embedded models: of others an engine has three in memory at most."""
    return {"emoji" if kind == "img2img" else f"emoji-{kind}": toy_model(kind=kind) for kind in conditioning.KINDS}


@pytest.fixture(scope="module")
def toy_engine(toys):
    made = LocalEngine(lambda name: toys[name], {name: ROLES[sd.unet.config.in_channels] for name, sd in toys.items()})
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(toy_engine):
    """Of a server that has the four endpoints and no page: on toys, so that none waits for weights."""
    from gradio_client import Client

    with gr.Blocks(analytics_enabled=False) as demo:
        img2img.api(toy_engine, "emoji")
        inpaint.endpoint(toy_engine)
        depth.endpoint(toy_engine)
        upscale.endpoint(toy_engine)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, show_error=True)
    yield Client(url, verbose=False)
    demo.close()


def saved(mode: str, path: Path) -> Path:
    """A picture whose file has other channels than three of bytes."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 72, 4), np.uint8)
    if mode == "I;16":
        Image.fromarray(colours[..., 0] * np.uint16(257)).save(path, "PNG")
    elif mode == "RGBA":
        Image.fromarray(colours, "RGBA").save(path, "PNG")
    else:
        Image.fromarray(colours[..., :3]).convert("CMYK").save(path, "JPEG")
    assert Image.open(path).mode == mode
    return path


# What follows the files. Half of the noise, so that the picture itself is encoded; no noise on the small one.
RUN = {
    "img2img": ("a fox", "", 0.5, 3, 2, 2.5, "DDIM", False),
    "inpaint": ("a fox", "", 0.5, "original", None, 0, 3, 2, 2.5, "DDIM", "emoji-inpaint"),
    "depth": (False, "a fox", "", 0.5, 3, 2, 2.5, "DDIM"),
    "upscale": ("a fox", 0, 128, "", 3, 1, 1, "DDIM", False),
}


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("mode", ["RGBA", "I;16", "CMYK"])
def test_three_channels_run_whatever_the_file_holds(name, mode, client, toy_engine, toys, tmp_path):
    from gradio_client import handle_file

    path, mask = saved(mode, tmp_path / "picture"), tmp_path / "mask.png"
    Image.new("L", (72, 64), "white").save(mask)
    files = [handle_file(path), *{"inpaint": [handle_file(mask)], "depth": [None]}.get(name, [])]
    seen, toy = [], toys["emoji" if name == "img2img" else f"emoji-{name}"]
    part = toy.unet if name == "upscale" else toy.vae.encoder
    hook = part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        client.predict(*files, *RUN[name], api_name=f"/{name}")
    finally:
        hook.remove()

    source = toy_engine.request(toy_engine.mine(f"api {client.session_hash}")[-1]).source
    known = images.open_picture(path)
    assert (source.KIND, source.picture.kind) == (name, "uint8")
    assert np.array_equal(source.picture.array, known if name == "upscale" else images.fit(known, toy.size))
    channels = {"upscale": 4 + 3}.get(name, 3)  # an upscaler sees the small picture beside its latents
    assert {pixels.shape[1] for pixels in seen} == {channels}
    assert (seen[0][:, -3:] - source.picture.tensor()).abs().max() <= (0.06 if name == "upscale" else 0)


def test_an_upscalers_guidance_stays_with_upscalers():
    small = conditioning.Upscale(conditioning.Pixels.of(Image.new("RGB", (32, 32))), 1.0, 0)
    large = conditioning.Source(conditioning.Pixels.of(Image.new("RGB", (64, 64))), 0.5)
    fields = pictures.Controls.__dataclass_fields__
    for of_upscaler in (False, True):
        controls = pictures.Controls(*list(fields)[:6], of_upscaler=of_upscaler)
        for source in (small, large, None):
            restored = controls.restored(Request("a fox", guidance=1.5, source=source))
            assert ("guidance" in restored) == ((source is small) == of_upscaler)
            assert (restored["prompt"], restored["steps"]) == ("a fox", "20")


def test_an_empty_box_is_said_to_be_empty():
    pixels = conditioning.Pixels.of(Image.new("RGB", (64, 64)))
    for wrong in (None, ""):
        with pytest.raises(ValueError, match=r"^The strength is empty; it must"):
            conditioning.Source(pixels, wrong)
        with pytest.raises(ValueError, match=r"^The noise level is empty; it must"):
            conditioning.Upscale(pixels, 1, wrong)


def test_where_a_scheduler_goes_wrong_is_said_below_strength_1():
    assert set(pictures.OFF) == {"LMS", "PNDM"}
    for language in texts.LANGUAGES:
        for key in pictures.OFF.values():
            assert "diffusers" in texts.say(language, key)
