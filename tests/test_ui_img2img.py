"""The tab Image to image as plain Python: what it says of a strength before a run, and what runs then."""

import base64
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_model
from PIL import Image

from core import conditioning, latents
from core.attention import Record
from core.conditioning import Pixels, Source
from core.engine import LocalEngine
from core.sampling import Request, denoise
from core.schedulers import SCHEDULERS
from core.trace import Trace
from ui import fork, img2img, pictures, prompt, render, schedulers, vae
from ui import latents as latents_tab

SETTINGS = ("a house", "", 3, 10, 4, "DDIM")  # prompt, negative, w, steps, seed, scheduler: as the tab's controls


@pytest.fixture(scope="module")
def toy():
    return replace(toy_model(), name="toy")


@pytest.fixture(scope="module")
def engine(toy):
    made = LocalEngine(lambda name: toy, allowed=("toy",))
    yield made
    made.close()


def picture(width=64, height=64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def asked(strength, exactly=False, settings=SETTINGS) -> Request:
    return img2img.request_of(picture(), strength, exactly, "toy", *settings)


def run(sd, request) -> Trace:
    kept = Trace.start(sd, request)
    *_, last = kept.follow(denoise(sd, request, Record()))
    kept.finish(sd, last.x_next)
    return kept


# --- the card -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.13, 0.5, 1.0])
def test_the_card_says_what_then_runs(toy, scheduler, strength):
    request = asked(strength, settings=(*SETTINGS[:5], scheduler))
    said = img2img.plan(toy.scheduler_config, scheduler, request.steps, strength)
    first = next(denoise(toy, request))
    assert said.turns == first.count
    assert (said.level.t, said.level.sigma, said.level.alpha_bar) == pytest.approx((first.t, first.sigma, first.alpha_bar))
    assert said.start == request.steps - int(request.steps * strength), "the notebook's start_step"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_picture_that_the_page_mixes_is_the_one_that_the_unet_sees(toy, scheduler):
    """ui/img2img.js works out sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise for whatever strength the slider is at."""
    source = Source(Pixels.of(picture()), 0.5)
    z, noise = img2img.begin(toy, picture(), 4)
    _, _, level, x = conditioning.noised_start(toy, 10, scheduler, 4, source)
    assert torch.allclose(level.alpha_bar**0.5 * z + (1 - level.alpha_bar) ** 0.5 * noise, x, atol=1e-5)
    card = img2img.card(toy.scheduler_config, scheduler, 10, None, {}, True, "en")
    first = conditioning.skipped(10, 0.5) * card["order"]
    assert card["levels"][first] == pytest.approx([level.t, level.sigma, level.alpha_bar])


def test_the_page_is_given_the_latents_to_a_65000th(toy):
    z, noise = img2img.begin(toy, picture(), 4)
    sent = img2img.mixture(picture(), z, noise, toy.preview)
    for tensor, packed in ((z, sent["z"]), (noise, sent["noise"])):
        numbers = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(4, 8, 8) * packed["scale"]
        assert np.abs(numbers - tensor[0].numpy()).max() <= packed["scale"]
    assert (sent["w"], sent["h"]) == (64, 64)


def test_exactly_so_many_steps_run(toy):
    request = asked(0.3, exactly=True)
    assert request.steps == 34 and len(run(toy, request)) == 10
    assert len(run(toy, asked(0.3))) == 3
    with pytest.raises(ValueError, match="takes a schedule of over 100"):
        asked(0.05, exactly=True)


def test_the_strength_at_which_a_step_comes_first():
    """strengthFrom in ui/img2img.js."""
    for steps in range(1, 101):
        for start in range(steps):
            tried = [(math.ceil(p * (steps - start) / steps - 1e-9) + more) / p for p in (100, 1000) for more in (0, 1)]
            assert any(conditioning.skipped(steps, strength) == start for strength in tried if strength <= 1)


# --- strength 0 ---------------------------------------------------------------------------------------------------------------


def test_strength_0_is_no_run_but_the_way_through_the_vae(toy):
    assert all(map(img2img.is_zero, (0, 0.0, "0", "0.0", "0,0")))
    assert not any(map(img2img.is_zero, (0.01, "", "much", None, "1")))
    back, psnr = img2img.there_and_back(toy, picture(), 4)
    z, _ = img2img.begin(toy, picture(), 4)
    with torch.no_grad():
        decoded = latents.decode(toy, z)
    assert psnr == pytest.approx(latents.psnr(Pixels.of(picture()).tensor(), decoded))
    assert np.abs(np.asarray(back, float) - (decoded[0].movedim(0, -1).numpy() + 1) * 127.5).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    "strength, said", [(1.01, "1.01"), ("much", "much"), (-0.5, "-0.5"), ("", "empty"), (float("nan"), "nan")]
)
def test_a_strength_that_is_none_is_refused_in_a_sentence(strength, said):
    with pytest.raises(ValueError, match=f"The strength is {said}; it must be a number above 0, up to 1"):
        asked(strength)


def test_a_strength_that_leaves_no_step_says_which_does(toy):
    for steps in (3, 7, 10, 29):
        request = asked(0.01, settings=(*SETTINGS[:3], steps, *SETTINGS[4:]))
        with pytest.raises(ValueError, match="raise the strength to at least") as refused:
            next(denoise(toy, request))
        least = float(str(refused.value).split("at least ")[1].split(",")[0])
        assert conditioning.skipped(steps, least) == steps - 1, "exactly one step runs"


# --- a row of strengths -------------------------------------------------------------------------------------------------------


def test_strengths_of_a_row():
    assert img2img.strengths_of("0.2, 0.5,,1") == [0.2, 0.5, 1]
    assert img2img.strengths_of("0; 0.5、1, 0.5") == [0, 0.5, 1]
    for wrong, said in {
        "": "0 strengths",
        "0.5, 2": "'2'",
        "a": "'a'",
        "nan": "'nan'",
        "0,.1,.2,.3,.4,.5,.6": "7 strengths",
    }.items():
        with pytest.raises(ValueError, match=said):
            img2img.strengths_of(wrong)


def test_a_row_is_as_its_single_runs_and_each_is_kept(toy, engine):
    wanted = [0.0, asked(0.2), asked(0.7)]
    done = list(img2img.row(engine, "me", wanted, picture(), 4)(toy))
    assert [part.i for part in done] == list(range(done[0].count)), "it is known how long it will take"
    ends = [part.value for part in done if not isinstance(part.value[1], Image.Image)]
    assert [k for k, _ in ends] == [0, 1, 2]
    assert ends[0][1][0] == img2img.there_and_back(toy, picture(), 4)[0]
    for k, one in ends[1:]:
        kept = engine.result(one)
        assert torch.equal(kept.picture, run(toy, wanted[k]).picture) and kept.request == wanted[k]
        assert kept.seconds > 0 and kept.steps[0].attention
    assert engine.mine("me") == [one for _, one in ends[1:]]
    html = img2img.row_html([img2img.Cell(0.2, "a < b", picture(), "abc"), img2img.Cell(1.0)], "en")
    assert "data-job='abc'" in html and "a &lt; b" in html and html.count("<button") == 1


# --- the picture --------------------------------------------------------------------------------------------------------------


def saved(tmp_path, image, name="a.png", **options) -> str:
    image.save(tmp_path / name, **options)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    "size, fitted, said",
    [
        ((64, 64), (64, 64), "nothing is cut off"),
        ((640, 480), (72, 56), "11.4 pixels are cut off at the left"),
        ((480, 640), (56, 72), "11.4 pixels are cut off at the top"),
    ],
)
def test_what_was_cut_off_is_said(tmp_path, size, fitted, said):
    found = pictures.fitted(saved(tmp_path, picture(*size)), 64)
    assert found.image.size == fitted and said in found.said("en")
    left, top, right, bottom = found.kept
    assert left == pytest.approx(size[0] - right) and top == pytest.approx(size[1] - bottom), "as much on either side"
    assert (right - left) / (bottom - top) == pytest.approx(fitted[0] / fitted[1]), "nothing is stretched"
    assert f"{size[0]} × {size[1]}" in found.said("ja")


def test_what_was_done_to_a_picture_is_said_and_what_is_refused_too(tmp_path):
    note = pictures.note_html(saved(tmp_path, picture().convert("CMYK"), "a.jpg"), 64, "en")
    assert "The picture was CMYK and is RGB now." in note
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert "transparent parts became white" in pictures.note_html(saved(tmp_path, clear, "b.png"), 64, "en")
    (tmp_path / "no.png").write_text("<b>no picture</b>")
    assert "This is not a PNG, JPEG or WebP picture" in pictures.note_html(str(tmp_path / "no.png"), 64, "en")
    assert "5000 x 100 pixels" in pictures.note_html(saved(tmp_path, Image.new("RGB", (5000, 100)), "c.png"), 64, "en")
    assert pictures.note_html(None, 64, "en") == ""
    with pytest.raises(ValueError, match="choose one first"):
        pictures.fitted(None, 64)


# --- the other tabs, on such a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(toy) -> Trace:
    return run(toy, asked(0.5))


def test_a_run_says_that_it_began_from_a_picture(half, tmp_path):
    settings = half.settings()
    assert settings["start"] == {"kind": "img2img", "picture": half.request.source.picture.name, "strength": 0.5}
    assert settings["source"] == "made by the tests", "where the model is from"
    card = prompt.runs_html([("abc", half)], "", "en")
    assert "from a picture, strength 0.5" in card
    plain = replace(half, request=replace(half.request, source=None))
    assert "from a picture" not in prompt.runs_html([("abc", plain)], "", "en")
    assert "strength 0.5" in prompt.difference(plain, half, "en")
    again = prompt.settings_of(prompt.read_settings(render.png(half)), ("toy",))[0]
    assert again == plain.request, "a PNG has no room for the picture"
    half.save(tmp_path / "a.safetensors")
    assert Trace.open(tmp_path / "a.safetensors").request == half.request, "a saved run has"


def test_the_latents_tab_does_not_take_the_first_step_for_pure_noise(half, toy):
    view = latents_tab.view(half, "en")
    assert view["count"] == len(view["steps"]) == 5 and view["steps"][0]["t"] == half.steps[0].t < 500
    assert "began from a picture" in view["texts"]["spread_note"]
    assert (
        "began from a picture" not in latents_tab.view(run(toy, replace(half.request, source=None)), "en")["texts"]["spread_note"]
    )
    with pytest.raises(ValueError, match="did not begin with noise alone"):
        vae.between_starts(half, None, None, None)


def test_a_fork_goes_on_from_the_noised_picture(half, toy):
    request, taken_up = fork.forked(half, 3, half.request.prompt, half.request.guidance, half.request.seed)
    *_, last = denoise(toy, request, fork=taken_up)
    assert torch.equal(last.x_next, half.steps[-1].x_next)
    assert fork.view(half, "en")["count"] == 5
    request, taken_up = fork.forked(half, 1, "a cat", 2.0, 9)  # from the first step on: a run of its own
    *_, last = denoise(toy, request, fork=taken_up)
    *_, fresh = denoise(toy, request)
    assert torch.equal(last.x_next, fresh.x_next), "with the new seed"


@pytest.mark.parametrize("scheduler", ["DDIM", "Heun", "PNDM"])
def test_the_schedulers_view_knows_where_the_run_began(toy, scheduler):
    made = run(toy, asked(0.5, settings=(*SETTINGS[:5], scheduler)))
    levels = schedulers.levels_of(toy.scheduler_config, scheduler, 10)
    out = schedulers.left_out(made, levels)
    assert levels[out].t == made.steps[0].t and len(levels) - 1 - out == len(made)
    drawn = schedulers.curves({scheduler: levels}, "en", {scheduler: out})
    assert f'"marks":[{out}]' in drawn["t"]
