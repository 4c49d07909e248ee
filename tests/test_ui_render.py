"""Tensors as pictures: the right bytes, and nothing that a screen cannot show passed over in silence."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from core.attention import Record
from core.images import read_settings
from core.sampling import Request, denoise
from core.trace import Trace, to_uint8
from ui import render


def run(sd, **settings) -> Trace:
    request = Request("a red apple", steps=3, **settings)
    trace = Trace.start(sd, request)
    *_, last = trace.follow(denoise(sd, request, Record()))
    trace.finish(sd, last.x_next)
    return trace


@pytest.fixture(scope="module")
def trace(toy) -> Trace:
    return run(toy, guidance=4.0)


def of_uri(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_bytes_stay_as_they_are():
    values = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert np.array_equal(np.asarray(render.picture(values).image), values.permute(1, 2, 0).numpy())


def test_the_ends_of_the_range_are_black_and_white_and_what_lies_beyond_is_counted():
    values = torch.stack([torch.full((3, 2), v) for v in (-1.0, 1.0, 3.0)], 1).reshape(3, 3, 2)
    shown = render.picture(values)
    assert shown.wrong == 0 and shown.clipped == pytest.approx(1 / 3)
    assert np.asarray(shown.image)[:, 0, 0].tolist() == [0, 255, 255]


def test_what_is_no_number_is_marked_and_never_black():
    values = torch.zeros(3, 4, 4)
    values[0, 1, 1], values[2, 1, 2] = float("nan"), float("inf")
    shown = render.picture(values)
    pixels = np.asarray(shown.image)
    assert shown.wrong == 2 and shown.clipped == 0
    assert {tuple(pixels[1, 1]), tuple(pixels[1, 2])} == {(255, 0, 255), (0, 0, 0)}, "checks of magenta and black"
    assert render.picture(torch.full((3, 2, 2), float("nan"))).wrong == 4


def test_previews_equal_the_engine_s(trace):
    """numpy's preview of a kept step is torch's of the live one."""
    for step in trace:
        rgb = torch.einsum("bchw,cr->brhw", step.x0, trace.preview[:4]) + trace.preview[4][None, :, None, None]
        theirs = to_uint8(rgb)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(np.asarray(render.latent(trace, step.x0).image).astype(int) - theirs).max() <= 1


def test_a_png_carries_its_settings(trace):
    file = render.png(trace)
    assert read_settings(file) == trace.settings()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), trace.picture.permute(1, 2, 0).numpy())
    assert read_settings(base64.b64decode(render.png_uri(trace).split(",")[1])) == trace.settings()


def test_a_stopped_run_has_no_picture_to_sign(trace):
    with pytest.raises(ValueError, match="stopped"):
        render.png(Trace(**{**vars(trace), "picture": None, "stopped": True}))


def test_the_pictures_of_the_equation_add_up(toy):
    trace = run(toy, guidance=4.0)
    step = trace.steps[1]
    eps, uncond = (render.numbers(z) for z in (step.eps, step.eps_uncond))
    pull = step.w * (render.numbers(step.eps_cond) - uncond)
    assert np.abs(uncond + pull - eps).max() < 0.02, "float16 of each"
    shown = render.step(trace, step)
    assert shown["noise"].keys() == shown["strength"].keys() == {"eps", "uncond", "cond", "pull"}
    assert shown["strength"]["uncond"] == pytest.approx(float(step.eps_uncond.float().square().mean().sqrt()), abs=1e-4)


@pytest.mark.parametrize("guidance, kept", [(0.0, {"eps", "uncond"}), (1.0, {"eps", "cond"})])
def test_a_branch_that_did_not_run_is_not_shown(toy, guidance, kept):
    trace = run(toy, guidance=guidance)
    assert render.step(trace, trace.steps[0])["noise"].keys() == kept


def test_a_word_s_veil_is_clear_where_its_map_is_highest(trace):
    veil = np.asarray(render.heat(torch.tensor([[0.0, 0.2], [0.1, 0.4]])))
    assert veil[..., 3].tolist() == [[225, 112], [169, 0]]
    assert [w["word"] for w in render.words(trace)] == ["a", "red", "apple"]
    assert of_uri(render.words(trace)[0]["map"]).size == (trace.size[1], trace.size[0])


def test_small_pictures_travel_exactly_large_ones_small():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(of_uri(render.uri(small))), np.asarray(small))
    assert render.uri(small.resize((136, 136))).startswith("data:image/jpeg")
