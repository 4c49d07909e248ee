"""The Upscale tab's functions: what goes in, what is said before a run, what stands under the lens."""

import base64
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_model
from PIL import Image
from test_conditioning import picture

from core import conditioning, images, latents, models, room, schedulers, tiles
from core.catalog import MODELS
from core.conditioning import Pixels, Upscale
from core.engine import Snapshot
from core.sampling import Request, denoise
from core.sweep import Meter
from core.trace import Trace, to_uint8
from ui import texts, upscale


@pytest.fixture(scope="module")
def toy():
    return toy_model(kind="upscale")


@pytest.fixture(scope="module")
def trace(toy) -> Trace:
    request = Request("a dog", seed=7, steps=2, guidance=2.0, source=Upscale(picture(32, 24)))
    made = Trace.start(toy, request)
    *_, last = made.follow(denoise(toy, request))
    made.finish(toy, last.x_next)
    made.seconds = 3.0
    return made


def saved(path, image: Image.Image) -> str:
    image.save(path)
    return str(path)


def blobs(width, height) -> Image.Image:
    return picture(width, height).image


def small(width=32, height=24) -> upscale.Small:
    return upscale.Small(blobs(width, height), (width, height), ())


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def content(uri: str) -> bytes:
    assert uri.startswith("data:image/png;base64,"), "what is looked at closely is no JPEG"
    return base64.b64decode(uri.split(",")[1])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(content(uri)))


# --- what goes in -------------------------------------------------------------------------------------------------------------


def test_a_large_picture_is_shrunk_as_in_training_and_a_small_one_left_alone(tmp_path):
    large = blobs(400, 300)
    found = upscale.small_of(saved(tmp_path / "large.png", large), 128)
    assert (found.image.size, found.was) == ((128, 96), (400, 300))
    assert np.array_equal(found.image, large.resize((128, 96), Image.Resampling.BICUBIC))
    little = blobs(100, 80)
    found = upscale.small_of(saved(tmp_path / "little.png", little), 128)
    assert np.array_equal(found.image, little) and found.was == (100, 80)


@pytest.mark.parametrize("size", [(64, 256), (1000, 251), (250, 999), (64, 64), (2000, 500)])
@pytest.mark.parametrize("side", [64, 127, 512])
def test_every_shape_that_comes_in_makes_a_request(tmp_path, size, side):
    found = upscale.small_of(saved(tmp_path / "a.png", Image.new("RGB", size, "red")), side)
    request = upscale.request_of(found, "20", "emoji-upscale", "a dog", "", "4", "20", 1, "DDIM")
    assert max(found.image.size) <= side and request.source.noise_level == 20


def test_a_runs_small_picture_comes_back_as_it_was(tmp_path):
    flat = upscale.small_of(saved(tmp_path / "flat.png", blobs(1000, 400)), 128).image
    assert flat.size == (128, 51), "less than a picture from outside needs"
    back = upscale.small_of(saved(tmp_path / "back.png", flat), 128).image
    assert back.tobytes() == flat.tobytes()


def test_what_is_no_picture_or_no_number_has_its_sentence(tmp_path):
    good = saved(tmp_path / "good.png", blobs(64, 64))
    controls = ("emoji-upscale", "a dog", "", "4", "20", 1, "DDIM")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for wrong, why in [
        (lambda: upscale.small_of(None, 128), "There is no picture"),
        (lambda: upscale.small_of(str(broken), 128), "damaged"),
        (lambda: upscale.small_of(saved(tmp_path / "thin.png", Image.new("RGB", (5000, 100))), 128), "at most 4 times"),
        (lambda: upscale.small_of(good, 63), "from 64 to 512"),
        (lambda: upscale.small_of(good, "much"), "small picture's long side is much"),
        (lambda: upscale.request_of(small(), "351", *controls), "from 0 to 350"),
        (lambda: upscale.request_of(small(), "2.5", *controls), "from 0 to 350"),
        (lambda: upscale.request_of(small(), "20", *controls[:4], "0", 1, "DDIM"), "steps"),
    ]:
        with pytest.raises(ValueError, match=why) as error:
            wrong()
        assert re.search("[ぁ-ん]", texts.sentence("ja", error.value)), error.value
    see_through = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    assert upscale.small_of(saved(tmp_path / "clear.png", see_through), 64).notices


# --- before Run ---------------------------------------------------------------------------------------------------------------


def test_the_noised_picture_is_the_one_that_the_run_sees(toy, trace):
    shown = upscale.noised(toy, trace.request)
    assert np.array_equal(shown, to_uint8(trace.steps[0].channels)[0].movedim(0, -1))


def test_the_card_says_what_the_level_leaves_of_the_picture(toy):
    for level in (0, 20, 200, 350):
        request = Request("a dog", source=Upscale(picture(32, 24), noise_level=level))
        said = words(upscale.card(toy, request, small(), None, "en"))
        signal, noise = (float(v) for v in re.search(r"([\d.]+) × the picture \+ ([\d.]+) × noise", said).groups())
        assert signal**2 + noise**2 == pytest.approx(1, abs=2e-3)
        clean = Pixels.of(np.zeros((64, 64, 3), np.uint8)).tensor() * 0
        source = replace(request.source, picture=Pixels.of(np.full((64, 64, 3), 127, np.uint8)))
        seen = conditioning.noised(toy, source, latents.generator(0))
        assert float((seen - clean).std()) == pytest.approx(noise, abs=0.02), "the noise that is said is the noise that is there"
    assert schedulers.training_bars(toy.low_res_config)[0] < 1


def test_the_card_says_size_memory_and_time_before_anything_runs(toy, monkeypatch):
    request = Request("a dog", steps=20, guidance=2.0, source=Upscale(picture(32, 24)))
    monkeypatch.setattr(room, "free", lambda device: 8_000_000_000)
    said = words(upscale.card(toy, request, small(), None, "en"))
    need = room.needed(toy, request) / 1e9
    assert "32 × 24 pixels, as it is" in said and "128 × 96 pixels" in said
    assert f"about {need:.1f} GB of memory; 8.0 GB are free" in said
    assert "known after the first step" in said and "one tile holds it all" in said
    # 40 passes of 0.1 s on 64 x 64 pixels and 2 s of decoding are 6 s; 32 x 24 pixels are 3/16 of that.
    speed = upscale.Speed(Meter(passes=10, unet=1.0, pictures=1, decoding=2.0))
    assert "About 1.1 s" in words(upscale.card(toy, request, small(), speed, "en"))
    assert upscale.Speed(speed.meter, 10.0).seconds(toy, request) == pytest.approx(11.25)
    assert "bicubic" in words(upscale.card(toy, request, replace(small(), was=(320, 240)), None, "en"))


def test_what_does_not_fit_is_offered_in_tiles(toy, monkeypatch):
    request = Request("a dog", steps=20, guidance=2.0, source=Upscale(picture(256, 160)))
    speed = upscale.Speed(Meter(passes=10, unet=1.0, pictures=1, decoding=2.0))
    monkeypatch.setattr(room, "free", lambda device: room.needed(toy, request) - 1)
    said = words(upscale.cost(toy, request, speed, "en"))
    cut = upscale.tiles_of(toy, request)
    assert "at once would take about" in said and "tick the box" in said and "as fast as this device" not in said
    assert f"{len(cut)} runs of 64 × 64 pixels" in said
    assert f"about {len(cut) * 6} s" in said, "each tile is 64 x 64 pixels and takes 6 s"


def test_the_cost_is_of_what_will_run(toy):
    request = Request("a dog", steps=20, guidance=2.0, source=Upscale(picture(256, 160)))
    speed = upscale.Speed(Meter(passes=10, unet=1.0, pictures=1, decoding=2.0))
    whole, tiled = (words(upscale.cost(toy, request, speed, "en", tiled)) for tiled in (False, True))
    assert "as fast as this device" in whole and "as fast as this device" not in tiled
    assert "1024 × 640 pixels" in whole and "1024 × 640 pixels" in tiled and "All tiles together" in tiled


def test_a_speed_is_set_right_by_a_whole_run(toy, trace):
    speed = upscale.Speed(Meter(passes=10, unet=1.0, pictures=1, decoding=2.0))
    speed.learn(toy, trace)
    assert speed.seconds(toy, trace.request) == pytest.approx(3.0)
    assert upscale.Speed.of_run(toy, trace).seconds(toy, trace.request) == pytest.approx(3.0)
    speed.learn(toy, trace)
    assert speed.seconds(toy, trace.request) == pytest.approx(3.0)


def test_a_speed_is_measured_on_a_small_picture(toy, trace):
    speed = upscale.Speed.measured(toy, trace.request)
    assert speed.meter.passes > 0 and speed.seconds(toy, trace.request) > 0


# --- under the lens -----------------------------------------------------------------------------------------------------------


def test_under_the_lens_lie_the_pictures_own_pixels(trace):
    value = upscale.finished(trace, "en", "done")
    little = picture(32, 24).image
    assert np.array_equal(decoded(value["small"]), little)
    assert np.array_equal(decoded(value["bicubic"]), little.resize((128, 96), Image.Resampling.BICUBIC))
    assert np.array_equal(decoded(value["made"]), trace.picture.movedim(0, -1))
    assert (value["width"] * value["scale"], value["height"] * value["scale"]) == (128, 96)
    assert images.read_settings(content(value["made"]))["start"]["kind"] == "upscale"
    assert "made" not in upscale.lens(little, "en"), "before a run there is no third picture"


def test_the_lens_begins_where_something_is_to_be_seen():
    plain = Image.new("RGB", (128, 96), "blue")
    plain.paste(blobs(16, 16), (100, 20))
    x, y = upscale.lively(plain)
    assert 88 * 4 < x < 124 * 4 and 8 * 4 < y < 48 * 4


def test_an_enlargement_shrunk_again_is_held_against_what_went_in(trace):
    little = blobs(64, 48)
    assert upscale.fidelity(little, upscale.enlarged(little)) > 40
    flat = Image.new("RGB", (64, 48), (100, 100, 100))
    off = Image.new("RGB", (256, 192), (110, 100, 100))
    assert upscale.fidelity(flat, off) == pytest.approx(10 * np.log10(255**2 * 3 / 100), abs=1e-6)
    source = picture(32, 24).image
    made = upscale.fidelity(source, Image.fromarray(trace.picture.movedim(0, -1).numpy()))
    assert f"PSNR of {made:.1f} dB" in upscale.finished(trace, "en", "")["fidelity"]


# --- tiles --------------------------------------------------------------------------------------------------------------------


def test_tiles_become_one_picture_with_everything_that_made_it(toy):
    request = Request("a dog", seed=3, steps=1, guidance=1.0, source=Upscale(picture(100, 70)))
    turns = [part.value for part in tiles.work(request)(toy)]
    made = {t.tile: t.picture for t in turns if t.picture is not None}
    whole = upscale.assembled(toy, request, made, 9.0)
    assert whole.picture.shape == (3, 280, 400) and whole.picture.dtype == torch.uint8
    settings = images.read_settings(content(upscale.finished(whole, "en", "")["made"]))
    assert settings["tiles"].startswith(f"{len(made)} of 64 x 64") and settings["seed"] == 3 and settings["stopped"] is False
    partly = upscale.assembled(toy, request, {0: made[0]}, 9.0)
    bicubic = np.asarray(upscale.enlarged(picture(100, 70).image))
    assert partly.stopped and np.array_equal(partly.picture[:, 256:].movedim(0, -1), bicubic[256:])
    assert upscale.finished(partly, "en", "")["file"] == "", "what is not finished is not saved"


def test_a_work_says_which_tile_it_is_at(toy):
    turn = tiles.Turn(2, 9, 4, 20, torch.zeros(3, 2, 2, dtype=torch.uint8), None)
    snapshot = Snapshot("x", "running", i=45, count=180, seconds_left=33.4)
    assert upscale.tile_status(snapshot, [turn], "en") == "Tile 3 of 9, step 5 of 20, 33 s left."
    assert "place 2" in upscale.tile_status(Snapshot("x", "queued", place=2), [], "en")


def test_an_upscaler_without_a_preview_of_its_own_takes_the_published_one(tmp_path):
    copy = tmp_path / "bare"
    shutil.copytree(MODELS / "emoji-upscale", copy)
    (copy / "preview.json").unlink(missing_ok=True)
    assert models.load(str(copy), device="cpu").preview.tolist() == torch.tensor(models.X4_PREVIEW).tolist()
