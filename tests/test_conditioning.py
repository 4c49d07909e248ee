"""Runs from pictures against diffusers' own pipelines, and what the strength card and the honesty panel say."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import toy_model
from diffusers import (
    DDPMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from core import conditioning, depth, latents, models, schedulers
from core.attention import Record
from core.conditioning import Depth, Inpaint, Pixels, Source, Upscale
from core.sampling import Fork, Request, denoise, size_of
from core.trace import Trace

ALL = list(schedulers.SCHEDULERS)


def picture(width=64, height=64, seed=0) -> Pixels:
    """Blobs of colour: something that an encoder and a depth estimator do not find flat."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Pixels.of(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def hole(width=64, height=64) -> Pixels:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = 255
    return Pixels.of(mask)


def source_of(kind: str, strength: float, size: int = 64) -> Source:
    if kind == "img2img":
        return Source(picture(size, size), strength)
    if kind == "inpaint":
        return Inpaint(picture(size, size), strength, mask=hole(size, size))
    if kind == "depth":
        return Depth(picture(size, size), strength)
    return Upscale(picture(size // 4, size // 4), noise_level=int(100 * strength))  # its latents are as large as the picture


def pipeline_latents(sd, request: Request) -> torch.Tensor:
    """The same run by diffusers."""
    source, (cls, extra) = request.source, schedulers.SCHEDULERS[request.scheduler]
    parts = {"vae": sd.vae, "text_encoder": sd.text_encoder, "tokenizer": sd.tokenizer, "unet": sd.unet}
    parts["scheduler"] = cls.from_config({**sd.scheduler_config, "clip_sample": False}, **extra)
    unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    asked = {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "image": source.picture.image,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "latent",
    }
    size = {"width": source.picture.width, "height": source.picture.height}
    if isinstance(source, Inpaint):
        pipe = StableDiffusionInpaintPipeline(**parts, **unsafe)
        asked |= {"strength": source.strength, "mask_image": source.mask.image, **size}
    elif isinstance(source, Depth):
        pipe = StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=sd.depth_estimator, feature_extractor=sd.depth_processor)
        asked |= {"strength": source.strength, "depth_map": source.depth.tensor()[0] if source.depth else None}
    elif isinstance(source, Upscale):
        low = DDPMScheduler.from_config(sd.low_res_config)
        pipe = StableDiffusionUpscalePipeline(**parts, low_res_scheduler=low, max_noise_level=350)
        asked |= {"noise_level": source.noise_level}
    else:
        pipe = StableDiffusionImg2ImgPipeline(**parts, **unsafe)
        asked |= {"strength": source.strength}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**asked).images


def end(sd, request: Request) -> torch.Tensor:
    *_, last = denoise(sd, request)
    return last.x_next


def differ(a, b) -> float:
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def toys():
    """A toy of each kind, and of each a second with SD 2's traits."""
    made = {}
    for kind in conditioning.KINDS:
        made[kind] = toy_model(kind=kind)
        made[kind, "sd2"] = toy_model(kind=kind, heads=(2, 4), linear=True, prediction_type="v_prediction", text_width=32, seed=1)
    return made


@pytest.mark.parametrize("strength", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize(("kind", "model"), [*((k, k) for k in conditioning.KINDS), ("inpaint", "img2img")])
def test_equals_the_pipeline(toys, kind, model, scheduler, strength):
    # Of five steps two, three or all run: enough for LMS and PNDM to reckon with all the predictions that they remember.
    request = Request("a dog", "a cat", 3, 5, 3.0, scheduler, source=source_of(kind, strength))
    for sd in (toys[model], toys[model, "sd2"]):
        assert differ(end(sd, request), pipeline_latents(sd, request)) <= 1e-5


@pytest.fixture(scope="module")
def member(emoji):
    """Of the embedded family, by name; each is loaded once."""
    return cache(lambda name: emoji if name == "emoji" else models.load(name, device="cpu"))


@pytest.mark.parametrize(
    ("kind", "model"), [("img2img", "emoji"), ("inpaint", "emoji"), ("inpaint", "emoji-inpaint"), ("depth", "emoji-depth")]
)
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_equals_the_pipeline_on_the_embedded_model(member, kind, model, strength):
    # Of ten steps three, seven or all run.
    request = Request("a fox", "", 3, 10, 4.0, "DDIM", source=source_of(kind, strength, 128))
    assert differ(end(member(model), request), pipeline_latents(member(model), request)) <= 1e-5


@pytest.mark.parametrize("noise_level", [0, 20, 200])
def test_equals_the_pipeline_on_the_embedded_upscaler(member, noise_level):
    # It has no strength, it always starts from noise. A quarter of the pixels that it was made for are enough to compare.
    request = Request("a fox", "", 3, 4, 4.0, "DDIM", source=Upscale(picture(), noise_level=noise_level))
    assert differ(end(member("emoji-upscale"), request), pipeline_latents(member("emoji-upscale"), request)) <= 1e-5


def test_a_depth_map_of_ones_own_equals_the_pipeline(toys):
    ramp = np.linspace(0, 5, 48, dtype=np.float32)[None, :] + np.zeros((40, 1), np.float32)
    request = Request("a dog", steps=4, source=Depth(picture(), 1.0, Pixels.of(ramp)))
    assert differ(end(toys["depth"], request), pipeline_latents(toys["depth"], request)) <= 1e-5


def test_other_shapes_than_squares(toys):
    wide = Request("a dog", steps=3, source=Source(picture(96, 72), 0.7))
    assert end(toys["img2img"], wide).shape == (1, 4, 9, 12)
    assert differ(end(toys["img2img"], wide), pipeline_latents(toys["img2img"], wide)) <= 1e-5
    up = Request("a dog", steps=2, source=Upscale(picture(24, 20)))
    assert end(toys["upscale"], up).shape == (1, 4, 20, 24) and size_of(toys["upscale"], up) == (80, 96)


# --- strength -----------------------------------------------------------------------------------------------------------------


def test_strength_decides_how_many_steps_run(toy):
    for strength, wanted in ((0.1, 2), (0.5, 10), (0.77, 15), (1.0, 20)):
        steps = list(denoise(toy, Request("a dog", steps=20, source=Source(picture(), strength))))
        assert [s.i for s in steps] == list(range(wanted)) and steps[0].count == wanted
        everything = schedulers.levels(schedulers.make("DDIM", toy.scheduler_config, 20))
        assert [s.t for s in steps] == [level.t for level in everything[20 - wanted : 20]]


def test_the_start_is_signal_and_noise_in_the_stated_shares(toy):
    first = next(iter(denoise(toy, Request("a dog", seed=4, steps=20, source=Source(picture(), 0.5)))))
    random = latents.generator(4)
    z = latents.encode(toy, picture().tensor(), random)
    noise = latents.noise(toy, 64, 64, random)
    assert differ(first.x_in, first.alpha_bar**0.5 * z + (1 - first.alpha_bar) ** 0.5 * noise) < 1e-5


@pytest.mark.parametrize("scheduler", ALL)
def test_heun_and_all_others_keep_the_strengths_share(toy, scheduler):
    steps = list(denoise(toy, Request("a dog", steps=10, scheduler=scheduler, source=Source(picture(), 0.5))))
    assert len(steps) == len(schedulers.make(scheduler, toy.scheduler_config, 10).timesteps) - 5 * (
        2 if scheduler == "Heun" else 1
    )


def test_exactly_n_steps():
    for strength in (0.2, 0.35, 0.6, 0.999, 1.0):
        n = conditioning.steps_for(15, strength)
        assert n - conditioning.skipped(n, strength) == 15
    with pytest.raises(ValueError, match="raise the strength"):
        conditioning.steps_for(30, 0.2)


def test_no_step_left_is_said(toy):
    for scheduler in ALL:
        with pytest.raises(ValueError, match="none of 20 steps runs"):
            end(toy, Request("a dog", steps=20, scheduler=scheduler, source=Source(picture(), 0.04)))


# --- inpainting ---------------------------------------------------------------------------------------------------------------


def test_a_plain_model_keeps_the_latents_outside_the_mask(toy):
    request = Request("a dog", seed=2, steps=6, source=Inpaint(picture(), 1.0, mask=hole()))
    z = latents.encode(toy, picture().tensor(), latents.generator(2))
    mask = conditioning.latent_mask(toy, request.source)
    result = end(toy, request)
    assert differ(result * (1 - mask), z * (1 - mask)) == 0
    assert differ(result * mask, z * mask) > 0.1


def test_the_nine_channels_are_latents_mask_and_masked_picture(toys):
    sd = toys["inpaint"]
    request = Request("a dog", seed=2, steps=2, source=Inpaint(picture(), 1.0, mask=hole()))
    first = next(iter(denoise(sd, request)))
    assert first.channels.shape == (1, 5, 8, 8)
    assert first.channels[0, 0].sum() == 4 * 2  # 32 x 16 pixels are 4 x 2 latents
    assert first.channels[0, 0, 2:4, 2:6].min() == 1


def test_fills(toys):
    sd = toys["img2img"]
    for fill in conditioning.FILLS:
        source = Inpaint(picture(), 0.5, mask=hole(), fill=fill)
        filled = conditioning.filled(source)
        outside = torch.from_numpy(hole().array) == 0
        assert torch.equal(filled[..., outside], picture().tensor()[..., outside])
        assert end(sd, Request("a dog", steps=4, source=source)).isfinite().all()
    blurred = conditioning.filled(Inpaint(picture(), 0.5, mask=hole(), fill="blur"))
    assert not torch.equal(blurred, picture().tensor()) and blurred.abs().max() <= 1
    almost = np.full((64, 64), 255, np.uint8)
    almost[0, 0] = 0  # one known pixel fills all the rest
    assert conditioning.filled(Inpaint(picture(), 0.5, mask=Pixels.of(almost), fill="blur")).isfinite().all()
    everything = Pixels.of(np.full((64, 64), 255, np.uint8))
    assert conditioning.filled(Inpaint(picture(), 0.5, mask=everything, fill="blur")).isfinite().all()


def test_outside_the_mask_the_composite_is_the_original_to_the_bit():
    original, made = picture(seed=1).array, picture(seed=2).array
    mask = hole().array / 255
    mixed = conditioning.composite(original, made, mask)
    assert np.array_equal(mixed[mask == 0], original[mask == 0]) and np.array_equal(mixed[mask == 1], made[mask == 1])


def test_the_region_around_a_mask_is_diffusers_own():
    random = np.random.default_rng(0)
    for _ in range(300):
        h, w = random.integers(64, 200, 2)
        mask = np.zeros((h, w), bool)
        y, x = random.integers(0, h), random.integers(0, w)
        mask[y : y + random.integers(1, h), x : x + random.integers(1, w)] = True
        width, height, padding = (*(8 * random.integers(8, 16, 2)), int(random.integers(0, 40)))
        theirs = VaeImageProcessor.get_crop_region(Image.fromarray(mask.astype(np.uint8) * 255), width, height, padding)
        assert conditioning.crop_region(mask, width, height, padding) == theirs


def test_the_region_holds_the_mask_and_has_the_models_shape():
    mask = np.zeros((100, 120), bool)
    mask[90:95, 3:13] = True
    assert conditioning.crop_region(mask, 64, 64, 8) == (0, 79, 21, 100), "moved inside, square"
    for padding in (-1, 2.5, "much", True):
        with pytest.raises(ValueError, match="from 0 to 1024"):
            conditioning.crop_region(mask, 64, 64, padding)
    with pytest.raises(ValueError, match="paint the part"):
        conditioning.crop_region(mask & False, 64, 64, 8)


def test_what_was_made_goes_back_to_its_place():
    original, made = picture(96, 80, seed=1).array, picture(64, 64, seed=2).array
    whole = conditioning.put_back(original, made, (16, 8, 48, 40))
    outside = np.ones((80, 96), bool)
    outside[8:40, 16:48] = False
    assert np.array_equal(whole[outside], original[outside]) and not np.array_equal(whole, original)
    assert np.array_equal(
        conditioning.put_back(original, picture(96, 80, seed=3).array, (0, 0, 96, 80)), picture(96, 80, seed=3).array
    )


def test_a_soft_mask_ends_after_three_deviations():
    mask = np.zeros((64, 64), bool)
    mask[24:40, 24:40] = True
    soft = conditioning.soft(mask, 4)
    assert soft[32, 23 - 11] > 0 and soft[32, 23 - 12] == 0, "the last pixel with a share is 12 = 3 x 4 away"
    assert 0.4 < soft[32, 24] < 0.6 and soft.max() <= 1
    assert np.array_equal(conditioning.soft(mask, 0), mask)
    original, made = picture(seed=1).array, picture(seed=2).array
    mixed = conditioning.composite(original, made, soft)
    assert conditioning.change(original, mixed)[soft == 0].max() == 0
    assert conditioning.change(original, mixed)[soft > 0].max() > 0
    for blur in (-1, 65, "much", float("nan")):
        with pytest.raises(ValueError, match="from 0 to 64"):
            conditioning.soft(mask, blur)


def test_the_masked_part_alone_is_drawn_at_the_models_size_and_put_back():
    canvas, painted = picture(320, 240), np.zeros((240, 320), bool)
    painted[100:131, 40:71] = True
    source = conditioning.inpainting(canvas, painted, 96, 72, padding=8, blur=2, strength=0.7, fill="blur")
    assert source.box == (25, 92, 87, 139) and source.picture.shape == (72, 96, 3) and source.mask.shape == (72, 96)
    assert abs(62 / 47 - 96 / 72) < 0.02, "the model's shape"
    made = picture(96, 72, seed=5).array
    raw, mixed = source.put_back(made), source.composited(made)
    assert raw.shape == mixed.shape == canvas.shape
    assert conditioning.change(canvas.array, raw)[92:139, 25:87].mean() > 1, "the VAE's box shows"
    assert np.array_equal(mixed[100:131, 40:71][10:20, 10:20], raw[100:131, 40:71][10:20, 10:20])
    far = conditioning.soft(painted, 2) == 0
    assert conditioning.change(canvas.array, mixed)[far].max() == 0
    whole = conditioning.inpainting(canvas, painted, 96, 72)
    assert whole.box == (0, 0, 320, 240) and whole.mask.array.astype(bool).sum() == pytest.approx(31 * 31 * 0.09, rel=0.3)
    assert whole.composited(made).shape == canvas.shape


def test_a_line_of_one_pixel_is_masked_at_any_size():
    painted = np.zeros((240, 320), bool)
    painted[101, :] = True
    assert conditioning.inpainting(picture(320, 240), painted, 96, 72).mask.array.any()
    with pytest.raises(ValueError, match="both must be of one size"):
        conditioning.inpainting(picture(320, 240), painted.T, 96, 72)


def test_an_inpainting_of_its_own_size_needs_no_canvas():
    source, made = Inpaint(picture(), mask=hole()), picture(seed=4).array
    assert source.box == (0, 0, 64, 64) and np.array_equal(source.put_back(made), made)
    assert np.array_equal(source.composited(made), conditioning.composite(picture().array, made, hole().array / 255))


def test_a_saved_inpainting_is_put_back_as_before(toys, tmp_path):
    painted = np.zeros((128, 128), bool)
    painted[30:50, 30:60] = True
    source = conditioning.inpainting(picture(128, 128), painted, 64, 64, padding=10, blur=3)
    sd, request = toys["inpaint"], Request("a dog", steps=2, source=source)
    trace = Trace.start(sd, request)
    *_, last = trace.follow(denoise(sd, request))
    trace.finish(sd, last.x_next)
    trace.save(tmp_path / "run.safetensors")
    opened = Trace.open(tmp_path / "run.safetensors")
    made = trace.picture.movedim(0, -1).numpy()
    assert opened.request == request and np.array_equal(opened.request.source.composited(made), source.composited(made))


def test_change_is_the_largest_of_the_three_colours():
    a, b = np.zeros((1, 2, 3), np.uint8), np.array([[[0, 200, 3], [255, 255, 255]]], np.uint8)
    assert conditioning.change(a, b).tolist() == conditioning.change(b, a).tolist() == [[200, 255]]


# --- what else a run can do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", conditioning.KINDS)
def test_recording_changes_nothing_and_a_trace_looks_again(toys, kind, tmp_path):
    sd, request = toys[kind], Request("a dog", seed=5, steps=4, guidance=3.0, source=source_of(kind, 0.75))
    trace = Trace.start(sd, request)
    *_, last = trace.follow(denoise(sd, request, Record()))
    trace.finish(sd, last.x_next)
    assert torch.equal(last.x_next, end(sd, request))
    again = trace.look_again(sd, 1, Record())
    assert all(torch.equal(again[layer], trace.steps[1].attention[layer]) for layer in again)

    trace.save(tmp_path / "run.safetensors")
    opened = Trace.open(tmp_path / "run.safetensors")
    assert opened.request == request
    assert opened.settings() == trace.settings()
    kept, seen = trace.steps[2].channels, opened.steps[2].channels
    assert (kept is None and seen is None) or torch.equal(kept, seen)
    assert Request.of(trace.settings()) == replace(request, source=None, model="toy")


@pytest.mark.parametrize("kind", conditioning.KINDS)
def test_a_run_from_a_picture_can_be_forked(toys, kind):
    sd, request = toys[kind], Request("a dog", seed=5, steps=8, guidance=3.0, source=source_of(kind, 1.0))
    steps = list(denoise(sd, request))
    went_on = [*denoise(sd, request, fork=Fork(request, tuple(steps[:4])))]
    assert differ(went_on[-1].x_next, steps[-1].x_next) <= 1e-5


WRONG = [
    (lambda: Source(None), "There is no picture"),
    (lambda: Source(Pixels.of(np.zeros((64, 64), np.uint8))), "There is no picture"),
    (lambda: Source(Pixels.of(np.zeros((64, 64, 4), np.uint8))), "There is no picture"),
    (lambda: Source(Pixels.of(np.full((64, 64, 3), 65535, np.uint16))), "whole ones from 0 to 255"),
    (lambda: Source(Pixels.of(np.zeros((64, 64, 3), np.float32))), "whole ones from 0 to 255"),
    (lambda: Source(picture(), 0), "above 0"),
    (lambda: Source(picture(), float("nan")), "above 0"),
    (lambda: Source(picture(), 1.01), "above 0"),
    (lambda: Source(picture(60, 64)), "multiple of 8"),
    (lambda: Source(picture(56, 64)), "from 64 to 1024"),
    (lambda: Inpaint(picture()), "paint the part"),
    (lambda: Inpaint(picture(), mask=Pixels.of(np.zeros((64, 64), np.uint8))), "paint the part"),
    (lambda: Inpaint(picture(), mask=hole(72, 64)), "both must be of one size"),
    (lambda: Inpaint(picture(), mask=hole(), fill="magic"), "choose one of original, noise, blur"),
    (lambda: Inpaint(picture(), mask=hole(), blur=65), "from 0 to 64"),
    (lambda: Inpaint(picture(), mask=hole(), canvas=picture(128, 128)), "both must be of one size"),
    (lambda: Depth(picture(), 0.8, picture()), "one number a pixel"),
    (lambda: Upscale(picture(), noise_level=351), "from 0 to 350"),
    (lambda: Upscale(picture(), noise_level=2.5), "from 0 to 350"),
    (lambda: Upscale(picture(), strength=0.5), "leave it at 1"),
    (lambda: Request("a dog", width=64, source=Source(picture())), "leave width and height empty"),
    (lambda: Request("a dog", source="cat.png"), "choose one again"),
]


@pytest.mark.parametrize(("make", "why"), WRONG)
def test_wrong_values_have_their_sentence(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_a_model_for_something_else_is_refused(toys):
    for kind, model in (("img2img", "inpaint"), ("depth", "img2img"), ("upscale", "img2img"), ("inpaint", "depth")):
        with pytest.raises(ValueError, match="was made for"):
            end(toys[model], Request("a dog", steps=2, source=source_of(kind, 1.0)))
    with pytest.raises(ValueError, match="not for words alone"):
        end(toys["inpaint"], Request("a dog", steps=2))


def test_a_flat_depth_map_is_refused(toys):
    flat = Pixels.of(np.ones((64, 64), np.float32))
    with pytest.raises(ValueError, match="same everywhere"):
        end(toys["depth"], Request("a dog", steps=2, source=Depth(picture(), 1.0, flat)))


def test_agreement_of_depth_maps():
    ramp = torch.linspace(0, 1, 64).repeat(64, 1)
    assert depth.agreement(ramp, ramp**3) == pytest.approx(1)
    assert depth.agreement(ramp, -ramp) == pytest.approx(-1)
    assert depth.agreement(ramp, torch.ones(8, 8)) == 0
