"""The Upscale tab as a person meets it, in a headless Chromium: the card before Run, one lens over three pictures, tiles, Stop."""

import base64
import io
import re

import numpy as np
import pytest
from conftest import canvas_pixels
from PIL import Image

from core import images
from core.conditioning import Upscale
from ui import upscale

pytestmark = pytest.mark.page
WAIT = {"timeout": 120_000}


@pytest.fixture
def tab(visit):
    page = visit()
    page.open("tab_upscale")
    page.page.wait_for_selector("#upscale-lens .lens[data-kind=lens]", **WAIT)
    page.page.wait_for_selector("#upscale-before .figures", **WAIT)
    for control, value in (("side", 64), ("steps", 2), ("guidance", 1)):
        page.set(f"upscale-{control}", value)
    page.page.get_by_text("64 × 64 pixels, shrunk from 128 × 128").wait_for(**WAIT)
    return page


def pixels(p, selector: str) -> np.ndarray:
    return canvas_pixels(p, f"#upscale-lens {selector}")[..., :3]


def under_lens(p, name: str) -> np.ndarray:
    """What the lens shows of a picture, one value a pixel of it; the marked one in the middle left out."""
    side = int(re.search(r"(\d+) × \d+ pixels under", p.locator("#upscale-lens .where").inner_text())[1])
    large = pixels(p, f".{name} .glass")
    dots = large.shape[0] // side
    assert large.shape[0] == side * dots
    return large[dots // 2 :: dots, dots // 2 :: dots]


def cut(p, whole: np.ndarray) -> np.ndarray:
    """The part of a picture that should be under the lens."""
    x, y, side = map(int, re.findall(r"\d+", p.locator("#upscale-lens .where").inner_text())[:3])
    left, top = (min(max(v - side // 2, 0), whole.shape[1] - side) for v in (x, y))
    return whole[top : top + side, left : left + side]


def runs_of(engine) -> list:
    with engine._changed:
        return [job for job in engine._jobs.values() if job.request and isinstance(job.request.source, Upscale)]


def test_one_lens_moves_over_all_three_and_shows_their_own_pixels(tab, page_engine, page_example):
    p = tab.page
    said = p.locator("#upscale-before").inner_text()
    assert "256 × 256 pixels" in said and re.search(r"about 0\.\d GB of memory; [\d.]+ GB are free", said)
    p.get_by_text("as fast as this device was until now").wait_for(**WAIT)
    assert p.locator("#upscale-lens .made .glass").is_hidden(), "nothing is made yet"
    tab.set("upscale-level", 200)
    p.get_by_text("at noise level 200").wait_for(**WAIT)
    tab.set("upscale-level", 20)
    p.get_by_text("at noise level 20").first.wait_for(**WAIT)

    p.locator("#upscale-go").click()
    p.wait_for_selector("#upscale-lens .save:not([hidden])", **WAIT)
    (job,) = runs_of(page_engine)
    source, result = job.request.source, job.trace.picture.movedim(0, -1).numpy()
    assert (source.noise_level, source.picture.shape, job.request.steps) == (20, (64, 64, 3), 2)
    large = {
        "nearest": source.picture.array.repeat(4, 0).repeat(4, 1),
        "bicubic": np.asarray(upscale.enlarged(source.picture.image)),
        "made": result,
    }
    canvas = p.locator("#upscale-lens .bicubic .whole canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    p.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    before = p.locator("#upscale-lens .where").inner_text()
    p.locator("#upscale-lens .panes").focus()
    for key in ("ArrowRight", "Shift+ArrowDown", "+"):
        p.keyboard.press(key)
    moved = p.locator("#upscale-lens .where").inner_text()
    (x, y, side), (x2, y2, side2) = (list(map(int, re.findall(r"\d+", text)))[:3] for text in (before, moved))
    assert (x2, y2) == (x + 1, y + 16) and side2 == side // 2
    for name, whole in large.items():
        assert np.array_equal(pixels(p, f".{name} .whole canvas"), whole), name
        shown, wanted = under_lens(p, name), cut(p, whole)
        assert (shown != wanted).any(-1).sum() <= 9, f"{name}: to the bit, but for the frame of the pixel in the middle"
        r, g, b = map(int, re.findall(r"\d+", p.locator(f"#upscale-lens .{name} output").inner_text()))
        assert tuple(whole[y2, x2]) == (r, g, b), name

    made = upscale.fidelity(source.picture.image, Image.fromarray(result))
    assert f"PSNR of {made:.1f} dB" in p.locator("#upscale-lens .fidelity").inner_text()
    link = p.locator("#upscale-lens .save").get_attribute("href")
    file = base64.b64decode(link.partition(",")[2])
    assert images.read_settings(file)["start"]["noise_level"] == 20
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), result)
    for name, seen in (
        ("latents", "#latents .section[data-kind=run]"),
        ("guidance", "#anatomy .anatomy[data-kind=run]"),
        ("attention", ".microscope[data-kind=run]"),
    ):
        tab.open(f"tab_{name}")
        p.wait_for_selector(seen, **WAIT)


def test_a_larger_picture_is_made_in_tiles_and_can_be_stopped(tab, page_engine, tmp_path):
    p = tab.page
    blobs = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(blobs).resize((200, 120), Image.Resampling.BICUBIC).save(tmp_path / "wide.png")
    p.locator("#upscale-picture .icon-button").first.click()
    p.locator("#upscale-picture input[type=file]").set_input_files(tmp_path / "wide.png")
    tab.set("upscale-side", 160)
    tab.set("upscale-steps", 1)
    p.get_by_text("2 runs of 128 × 96 pixels").wait_for(**WAIT)
    p.locator("#upscale-tiled input").check()
    p.locator("#upscale-go").click()
    p.wait_for_selector("#upscale-lens .save:not([hidden])", **WAIT)
    assert p.locator("#upscale-lens .said").inner_text().startswith("Finished: 2 tiles in ")
    assert pixels(p, ".made .whole canvas").shape == (384, 640, 3)
    file = base64.b64decode(p.locator("#upscale-lens .save").get_attribute("href").partition(",")[2])
    assert images.read_settings(file)["tiles"].startswith("2 of 128 x 96")

    tab.set("upscale-steps", 40)
    p.locator("#upscale-go").click()
    p.get_by_text(re.compile(r"Tile 1 of 2, step \d+ of 40")).wait_for(**WAIT)
    p.locator("#upscale-stop").click()
    p.wait_for_selector("#upscale-go", **WAIT)
    p.get_by_text("Stopped before its first step").wait_for(**WAIT)


def test_what_cannot_be_is_said_before_run_and_refused_by_it(tab, tmp_path):
    p = tab.page
    tab.set("upscale-level", 351)
    p.locator("#upscale-before .cut").get_by_text("from 0 to 350").wait_for(**WAIT)
    p.locator("#upscale-go").click()
    p.locator(".toast-body").get_by_text("from 0 to 350").wait_for(**WAIT)
    p.wait_for_selector("#upscale-go", **WAIT)


def test_the_endpoint_takes_a_file_and_answers_with_the_picture_and_all_that_made_it(address, tmp_path):
    from gradio_client import Client, handle_file

    Image.effect_noise((300, 200), 60).convert("CMYK").save(tmp_path / "photo.jpg")
    client = Client(address, verbose=False, download_files=tmp_path)
    asked = {"noise_level": 50, "side": 64, "steps": 1, "guidance": 1.0, "seed": 5}
    path, settings = client.predict(handle_file(tmp_path / "photo.jpg"), "a dog", **asked, api_name="/upscale")
    assert Image.open(path).size == (256, 172) and Image.open(path).mode == "RGB"
    assert settings.pop("notices") == ["The picture was CMYK and is RGB now."]
    assert settings["start"]["noise_level"] == 50 and settings["seed"] == 5 and images.read_settings(path) == settings
    pieces, told = client.predict(handle_file(tmp_path / "photo.jpg"), "a dog", **asked, in_tiles=True, api_name="/upscale")
    assert np.array_equal(Image.open(pieces), Image.open(path)), "one tile is the plain run"
    assert told["tiles"].startswith("1 of 64 x 43")
    with pytest.raises(Exception, match="from 0 to 350"):
        client.predict(handle_file(tmp_path / "photo.jpg"), "a dog", noise_level=351, api_name="/upscale")
