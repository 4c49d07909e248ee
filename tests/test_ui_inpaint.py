"""The Inpaint tab without a browser: the canvas, masks in and out, and every number of the honesty panel."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_model
from PIL import Image

from core import attention, conditioning, images
from core.attention import Record
from core.conditioning import Pixels
from core.engine import LocalEngine
from core.sampling import Request
from ui import inpaint, pictures


def picture(width=64, height=64, seed=0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def hole(width=64, height=64) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = True
    return mask


def value(canvas: inpaint.Canvas, mask: np.ndarray, **other) -> str:
    """What the editor says."""
    return json.dumps({"kind": "mask", "name": canvas.picture.name, "bits": inpaint.packed_mask(mask)} | other)


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


@pytest.fixture(scope="module")
def engine():
    toys = {"toy": toy_model(), "toy-inpaint": toy_model(kind="inpaint")}
    made = LocalEngine(lambda name: toys[name], {"toy": "base", "toy-inpaint": "inpaint"})
    for name in toys:
        made.model(name)
    yield made
    made.close()


@pytest.fixture(scope="module")
def runs(engine):
    """A run of each model on a picture of twice the model's size, and one of the part around the mask."""
    canvas = inpaint.canvas_of(picture(130, 128), 64)
    found = {}
    for name, area in (("toy", "whole"), ("toy-inpaint", "whole"), ("toy-inpaint", "part")):
        source = inpaint.source_of(canvas, hole(128, 128), "1", "original", area, 8, "2")
        asked = Request("a dog", seed=3, steps=3, guidance=3.0, model=name, source=source)
        found[name, area] = engine.result(engine.submit(asked, "someone", Record()))
    return found


# --- the canvas and what is painted on it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side", "canvas", "drawn"), [
    ((128, 128), 128, (128, 128), (128, 128)),
    ((800, 600), 128, (720, 560), (144, 112)),
    ((100, 80), 128, (144, 112), (144, 112)),  # smaller than the model: enlarged
    ((5000, 2000), 512, (808, 320), (808, 320)),
])  # fmt: skip
def test_the_canvas_is_a_whole_multiple_of_what_is_drawn(size, side, canvas, drawn):
    found = inpaint.canvas_of(picture(*size), side)
    assert (found.picture.width, found.picture.height, found.width, found.height) == (*canvas, *drawn)


def test_a_picture_of_the_models_size_is_not_changed():
    assert np.array_equal(inpaint.canvas_of(picture(128, 128), 128).picture.array, np.asarray(picture(128, 128)))


def test_what_was_painted_arrives_to_the_pixel():
    canvas = inpaint.canvas_of(picture(130, 140), 64)
    mask = np.random.default_rng(1).random((canvas.picture.height, canvas.picture.width)) > 0.7
    assert np.array_equal(inpaint.painted_on(value(canvas, mask), canvas), mask)
    sent = json.loads(inpaint.mask_for(canvas, mask))
    assert np.array_equal(inpaint.painted_on(json.dumps(sent), canvas), mask), "also what the server has just sent there"
    laid = inpaint.laid_out(canvas, ["a", "dog"], mask)
    assert np.array_equal(inpaint.painted_on(laid, canvas), mask) and json.loads(laid)["words"] == ["a", "dog"]
    assert "bits" not in json.loads(inpaint.laid_out(canvas)), "the same picture once more leaves what was painted"


def test_nothing_painted_is_said_in_each_of_its_ways():
    canvas = inpaint.canvas_of(picture(), 64)
    empty = np.zeros((64, 64), bool)
    for page in (None, "", "{}", "[]", "no json", '{"bits": "!"}', '{"bits": 5}', value(canvas, empty)):
        with pytest.raises(ValueError, match=f"^{images.UNPAINTED}$"):
            inpaint.painted_on(page, canvas)
    for mask in (None, {"background": picture(), "layers": []}, {"background": None, "layers": []}):
        with pytest.raises(ValueError, match=f"^{images.UNPAINTED}$"):
            images.open_mask(mask, (64, 64))
    with pytest.raises(ValueError, match=f"^{images.UNPAINTED}$"):
        images.open_mask({"background": picture(), "layers": [Image.new("RGBA", (64, 64))]}, (64, 64))
    with pytest.raises(ValueError, match="no picture to start from"):
        inpaint.painted_on(value(canvas, hole()), None)
    with pytest.raises(ValueError, match=r"^This is not a PNG"):  # why the picture that came is on no canvas
        inpaint.painted_on(value(canvas, hole()), "This is not a PNG, JPEG or WebP picture; choose one of these three.")
    with pytest.raises(ValueError, match="another picture"):
        inpaint.painted_on(value(canvas, hole(), name="0"), canvas)


@pytest.mark.parametrize(("change", "why"), [
    ({"strength": "0"}, "above 0"), ({"strength": "1.01"}, "above 0"), ({"strength": "much"}, "above 0"),
    ({"fill": "magic"}, "choose one of original, noise, blur"), ({"blur": "65"}, "0 to 64"), ({"blur": ""}, "0 to 64"),
    ({"area": "part", "padding": -1}, "0 to 1024"), ({"area": "part", "padding": None}, "0 to 1024"),
])  # fmt: skip
def test_wrong_values_have_their_sentence(change, why):
    values = {"strength": "1", "fill": "original", "area": "whole", "padding": 8, "blur": "2"} | change
    with pytest.raises(ValueError, match=why):
        inpaint.source_of(inpaint.canvas_of(picture(), 64), hole(), **values)


# --- a mask from a word ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(engine):
    return engine.result(engine.submit(Request("a dog on a hat", seed=1, steps=3, model="toy"), "someone", Record()))


def test_a_word_s_map_fills_the_mask(drawn):
    assert list(inpaint.words_of(drawn)) == ["a", "dog", "on", "hat"] and inpaint.words_of(drawn)["a"] == (1,)
    heat = drawn.word_maps()[list(drawn.tokens.words[1][1])].mean(0)
    same = inpaint.canvas_of(pictures.result_of(drawn), 64)
    mask = inpaint.word_mask(drawn, "dog", 0.5, same)
    assert np.array_equal(mask, attention.upper(heat[None], (64, 64), 0.5)[0].numpy())
    large = inpaint.word_mask(drawn, "dog", 0.5, replace(same, picture=Pixels.of(picture(256, 256))))
    assert large.shape == (256, 256) and large.mean() == pytest.approx(mask.mean(), abs=0.05)
    assert inpaint.word_mask(drawn, "dog", 0.8, same).sum() < mask.sum()
    with pytest.raises(ValueError, match="recorded no such word"):
        inpaint.word_mask(drawn, "cat", 0.5, same)
    assert inpaint.thing_of(["a", "dog", "on"]) == "dog" and inpaint.thing_of(["the", "A"]) == ""


def test_a_map_of_a_run_that_drew_a_part_lies_in_that_part(runs):
    trace = runs["toy-inpaint", "part"]
    left, top, right, bottom = trace.request.source.box
    assert (right - left) < 128
    mask = inpaint.word_mask(trace, "dog", 0.5, inpaint.canvas_of(pictures.result_of(trace), 64))
    assert mask.shape == (128, 128) and mask[top:bottom, left:right].sum() == mask.sum() > 0


def test_a_picture_is_known_again_by_its_pixels(drawn, runs):
    kept = [("stopped", replace(drawn, picture=None)), ("one", runs["toy", "whole"]), ("two", drawn)]
    assert inpaint.came_from(pictures.result_of(drawn), kept)[0] == "two"
    assert inpaint.came_from(pictures.result_of(runs["toy", "whole"]), kept)[0] == "one", (
        "an inpainting by its composited picture"
    )
    other = np.array(pictures.result_of(drawn))
    other[0, 0, 0] ^= 1
    assert inpaint.came_from(Image.fromarray(other), kept) is None


# --- what is shown ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [("toy", "whole"), ("toy-inpaint", "whole"), ("toy-inpaint", "part")])
def test_outside_the_blurred_mask_the_composited_picture_is_the_original_to_the_bit(runs, which):
    trace = runs[which]
    shown, source = inpaint.outcome(trace, "en"), trace.request.source
    original, raw, mixed = (decoded(shown["pictures"][name]) for name in ("original", "raw", "composited"))
    outside = conditioning.soft(hole(128, 128), 2) == 0
    assert outside.any() and np.array_equal(mixed[outside], original[outside])
    assert not np.array_equal(raw[outside], original[outside]) and not np.array_equal(mixed, original)
    left, top, right, bottom = source.box
    assert np.array_equal(raw[:top], original[:top]) and np.array_equal(raw[bottom:], original[bottom:])
    assert np.array_equal(original, source.whole.array) and (shown["w"], shown["h"]) == (128, 128)
    size = f"{right - left} × {bottom - top}"
    assert shown["how"] == f"Drawn at 64 × 64 and enlarged {(right - left) / 64:.1f} times, to {size}."


def test_the_saved_picture_carries_the_settings(runs):
    uri = inpaint.outcome(runs["toy-inpaint", "part"], "en")["pictures"]["composited"]
    settings = images.read_settings(base64.b64decode(uri.partition(",")[2]))
    assert settings["start"]["kind"] == "inpaint" and settings["start"]["padding"] == 8 and settings["start"]["blur"] == 2
    assert settings["start"]["mask"] == runs["toy-inpaint", "part"].request.source.mask.name, "by name: masks are no text"


def test_the_panel_shows_the_nine_channels_that_the_unet_saw(runs):
    trace = runs["toy-inpaint", "whole"]
    shown, channels = inpaint.honesty(trace, "en"), trace.steps[0].channels
    grid = np.frombuffer(base64.b64decode(shown["mask"]["data"]), np.uint8).reshape(8, 8)
    assert np.array_equal(grid, channels[0, 0].numpy()) and grid.sum() == hole()[::8, ::8].sum() == 8
    assert shown["marked_says"].startswith("8 of 64 latents")
    known = numbers(shown["known"])
    assert np.abs(known - channels[0, 1:].numpy()).max() <= shown["known"]["scale"] and known.shape == (4, 8, 8)
    assert [one["i"] for one in shown["inputs"]] == [0, 1, 2]
    for one, step in zip(shown["inputs"], trace, strict=True):
        assert np.abs(numbers(one["x"]) - step.x_in[0].numpy()).max() <= one["x"]["scale"]
    assert "Nine channels" in shown["kind_says"]


def numbers(sent: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(sent["data"]), "<i2").reshape(-1, sent["h"], sent["w"]) * sent["scale"]


def test_of_a_plain_model_the_panel_says_that_its_unet_knew_nothing_of_the_mask(runs):
    shown = inpaint.honesty(runs["toy", "whole"], "en")
    assert shown["known"] is None and "Four channels" in shown["kind_says"]
    assert np.frombuffer(base64.b64decode(shown["mask"]["data"]), np.uint8).sum() == 8


@pytest.mark.parametrize("which", [("toy", "whole"), ("toy-inpaint", "part")])
def test_change_outside_the_mask_is_what_it_says(runs, which):
    trace = runs[which]
    source, shown = trace.request.source, inpaint.honesty(trace, "en")
    made = np.moveaxis(trace.picture.numpy(), 0, -1).astype(int)
    apart = np.abs(made - source.picture.array).max(2)
    outside = source.mask.array == 0
    raw, mixed = shown["changes"]["raw"], shown["changes"]["composited"]
    assert raw["mean"] == pytest.approx(apart[outside].mean()) and raw["most"] == apart[outside].max() > 0
    assert raw["says"] == f"Mean {apart[outside].mean():.2f}, at most {apart[outside].max()} of 255"
    assert (mixed["mean"], mixed["most"], mixed["says"]) == (0, 0, "Mean 0.00, at most 0 of 255")
    sent = np.frombuffer(base64.b64decode(raw["data"]), np.uint8).reshape(64, 64)
    assert np.array_equal(sent, np.where(outside, apart, 0))
    covered = np.frombuffer(base64.b64decode(mixed["hidden"]), np.uint8).reshape(128, 128)
    assert np.array_equal(covered, conditioning.soft(hole(128, 128), 2) > 0)


def test_blur_acts_after_the_run(runs):
    trace = runs["toy-inpaint", "whole"]
    softer = replace(trace, request=replace(trace.request, source=replace(trace.request.source, blur=9)))
    few, many = (decoded(inpaint.outcome(t, "en")["pictures"]["composited"]) for t in (trace, softer))
    assert not np.array_equal(few, many) and torch.equal(trace.picture, softer.picture)
    assert inpaint.honesty(softer, "en")["changes"]["composited"]["most"] == 0


def test_a_large_map_of_changes_loses_no_change():
    before = np.zeros((700, 1030, 3), np.uint8)
    after, hidden = before.copy(), np.zeros((700, 1030), bool)
    after[699, 1029, 1], hidden[:300, :300] = 7, True
    shown = inpaint.change(before, after, hidden, "en")
    sent = np.frombuffer(base64.b64decode(shown["data"]), np.uint8).reshape(shown["h"], shown["w"])
    assert max(sent.shape) <= 512 and sent[-1, -1] == 7 and (sent > 0).sum() == 1 and shown["most"] == 7
    assert inpaint.change(before, after, hidden | True, "en")["says"] == "The mask covers everything."


def test_the_forecast_counts_what_the_unet_will_see():
    canvas = inpaint.canvas_of(picture(128, 128), 64)
    whole = inpaint.forecast(inpaint.source_of(canvas, hole(128, 128), 1, "original", "whole", 8, 0), 8, "en")
    assert whole["says"] == "All 128 × 128 pixels are drawn at 64 × 64. 8 of 64 latents are marked to be made anew."
    part = inpaint.forecast(inpaint.source_of(canvas, hole(128, 128), 1, "original", "part", 8, 0), 8, "en")
    assert part["box"] == (24, 8, 104, 88) and part["says"].startswith("The framed 80 × 80 pixels are drawn at 64 × 64.")
    line = np.zeros((128, 128), bool)
    line[4:10] = True
    thin = inpaint.forecast(inpaint.source_of(canvas, line, 1, "original", "whole", 8, 0), 8, "en")
    assert "0 of 64" in thin["says"] and "falls between the latents" in thin["says"]


def test_other_runs_are_no_inpaintings(drawn, runs):
    with pytest.raises(ValueError, match="no inpainting"):
        inpaint.outcome(drawn, "en")
    with pytest.raises(ValueError, match="no finished picture"):
        inpaint.honesty(replace(runs["toy", "whole"], picture=None), "en")


# --- through Gradio -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(engine):
    from gradio_client import Client

    import app

    demo = app.make_app(engine, "toy")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH)
    yield Client(url, verbose=False)
    demo.close()


def test_the_api_inpaints_files(client, tmp_path):
    from gradio_client import handle_file

    photo = picture(200, 192).convert("CMYK")
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (35.0, 41.0, 22.0)  # GPS
    photo.save(tmp_path / "photo.jpg", exif=exif)
    Image.fromarray(hole(200, 192).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    files = [handle_file(tmp_path / "photo.jpg"), handle_file(tmp_path / "mask.png")]

    def ask(*values, model="toy-inpaint", files=files):
        return client.predict(*files, "a dog", "", *values, 3, 2, 2.5, "Euler", model, api_name="/inpaint")

    mixed, raw, settings = ask(1, "original", 10, 2)
    canvas = inpaint.canvas_of(images.open_picture(tmp_path / "photo.jpg"), 64)
    painted = images.open_mask(tmp_path / "mask.png", (canvas.picture.width, canvas.picture.height)) >= 0.5
    outside = conditioning.soft(painted, 2) == 0
    made, whole = np.asarray(Image.open(mixed)), canvas.picture.array
    assert np.array_equal(made[outside], whole[outside]) and not np.array_equal(made, whole)
    assert not np.array_equal(np.asarray(Image.open(raw)), made)
    assert settings["start"]["padding"] == 10 and "is RGB now" in settings["notices"][-1]
    assert settings["notices"][0].startswith("200 × 192 pixels, worked on at ")
    assert images.read_settings(mixed)["start"]["kind"] == "inpaint"
    assert not Image.open(mixed).getexif() and b"GPS" not in Path(mixed).read_bytes()
    assert ask(0.5, "blur", None, 0, model="toy")[2]["model"] == "toy"

    (tmp_path / "black.png").write_bytes((tmp_path / "mask.png").read_bytes())
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:300])
    Image.new("RGB", (5000, 100)).save(tmp_path / "long.png")
    wrong = [
        ((0, "original", 10, 2), {}, "above 0"),
        (("much", "original", 10, 2), {}, "above 0"),
        ((1, "magic", 10, 2), {}, "choose one of original, noise, blur"),
        ((1, "original", 1.5, 2), {}, "0 to 1024"),
        ((1, "original", 10, 99), {}, "0 to 64"),
        ((1, "original", 10, 2), {"model": "emoji"}, "for this; choose one of toy-inpaint, toy"),
        ((1, "original", 10, 2), {"files": [files[0], None]}, images.UNPAINTED),
        ((1, "original", 10, 2), {"files": [files[0], handle_file(tmp_path / "black.png")]}, images.UNPAINTED),
        ((1, "original", 10, 2), {"files": [None, files[1]]}, "no picture to start from"),
        ((1, "original", 10, 2), {"files": [handle_file(tmp_path / "cut.jpg"), files[1]]}, "damaged"),
        ((1, "original", 10, 2), {"files": [handle_file(tmp_path / "long.png"), files[1]]}, "5000 x 100"),
    ]
    for values, how, why in wrong:
        with pytest.raises(Exception, match=why):
            ask(*values, **how)
