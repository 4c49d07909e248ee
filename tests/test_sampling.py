"""The loop against diffusers' pipeline, and the properties that a student may rely on."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from conftest import pipeline_latents

from core import latents, schedulers, text
from core.attention import Record
from core.sampling import Request, denoise, denoise_many

ALL = list(schedulers.SCHEDULERS)


def end(sd, request, record=None):
    *_, last = denoise(sd, request, record)
    return last.x_next


def differ(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize(("steps", "side"), [(8, 128), (20, 64)])
def test_equals_the_pipeline_on_the_embedded_model(emoji, scheduler, steps, side):
    words = "a fox in a top hat on a blue background", "a banana"
    request = Request(*words, seed=7, steps=steps, guidance=5.0, scheduler=scheduler, width=side, height=side)
    assert differ(end(emoji, request), pipeline_latents(emoji, request)) == 0


@pytest.mark.parametrize("scheduler", ALL)
def test_equals_the_pipeline_with_v_prediction_and_heads_of_sd2(toy_sd2, scheduler):
    request = Request("a dog", "a cat", seed=1, steps=8, guidance=3.0, scheduler=scheduler)
    assert differ(end(toy_sd2, request), pipeline_latents(toy_sd2, request)) == 0


def test_equals_the_pipeline_at_another_size(toy):
    request = Request("a dog", seed=1, steps=4, width=96, height=72)
    result = end(toy, request)
    assert result.shape == (1, 4, 9, 12)
    assert differ(result, pipeline_latents(toy, request)) == 0


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM", "Euler", "Euler a", "Heun", "DPM++ 2M"])
@pytest.mark.parametrize("model", ["toy", "toy_sd2"])
def test_x0_equals_the_schedulers_own(request, scheduler, model):
    sd = request.getfixturevalue(model)
    wanted = Request("a dog", seed=1, steps=6, guidance=3.0, scheduler=scheduler)
    theirs = schedulers.make(scheduler, sd.scheduler_config, 6)
    source = torch.Generator().manual_seed(0)
    for step, t in zip(denoise(sd, wanted), theirs.timesteps, strict=True):
        out = step.eps
        if sd.prediction_type == "v_prediction":  # back from eps to what this UNet says
            out = (step.eps - (1 - step.alpha_bar) ** 0.5 * step.x_in) / step.alpha_bar**0.5
        assert differ(theirs.scale_model_input(step.x, t), step.x_in) < 1e-5
        extra = {"generator": source} if scheduler in ("DDPM", "Euler a") else {}
        result = theirs.step(out, t, step.x, **extra)
        own = getattr(result, "pred_original_sample", None)
        if scheduler == "DPM++ 2M":
            own = theirs.model_outputs[-1]  # this one keeps its x0 inside
        assert own is not None
        assert differ(own, step.x0) < 2e-4 * max(1.0, step.sigma)


def test_one_formula_joins_input_noise_and_picture(toy):
    for scheduler in ALL:
        for step in denoise(toy, Request("a dog", steps=5, scheduler=scheduler)):
            assert differ(step.alpha_bar**0.5 * step.x0 + (1 - step.alpha_bar) ** 0.5 * step.eps, step.x_in) < 1e-5
            assert math.isclose(step.alpha_bar, 1 / (1 + step.sigma**2), rel_tol=1e-9)


def test_lms_has_the_deep_dives_sigmas(toy):
    known = [
        14.6146,
        9.6826,
        6.6780,
        4.7746,
        3.5221,
        2.6666,
        2.0606,
        1.6156,
        1.2768,
        1.0097,
        0.7913,
        0.6056,
        0.4397,
        0.2780,
        0.0292,
    ]
    found = [schedulers.sigma_of(a) for a in schedulers.alpha_bars(schedulers.make("LMS", toy.scheduler_config, 15))]
    assert found == pytest.approx(known, abs=2e-4)


def test_same_seed_same_bits_other_seed_other_picture(toy):
    a, b, c = (end(toy, Request("a dog", seed=s, steps=4, scheduler="Euler a")) for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_guidance_0_half_and_1_are_three_pictures(emoji):
    pictures = [end(emoji, Request("a fox", steps=4, guidance=w)) for w in (0, 0.5, 1)]
    assert min(differ(pictures[0], pictures[1]), differ(pictures[1], pictures[2]), differ(pictures[0], pictures[2])) > 1e-3


def test_guidance_1_ignores_the_negative_prompt_and_0_the_prompt(toy):
    assert torch.equal(
        end(toy, Request("a dog", "a cat", steps=3, guidance=1)), end(toy, Request("a dog", "", steps=3, guidance=1))
    )
    assert torch.equal(end(toy, Request("a dog", "x", steps=3, guidance=0)), end(toy, Request("a cat", "x", steps=3, guidance=0)))


def test_only_the_needed_branches_run(toy):
    def work():
        for w in (0, 1, 2):
            list(denoise(toy, Request("a dog", steps=2, guidance=w)))
        list(denoise(toy, Request("a dog", steps=4, guidance=5, interval=(1, 3))))

    assert rows_of(toy, work) == [1, 1, 1, 1, 2, 2, 1, 2, 2, 1]


def rows_of(sd, work):
    """How many rows the UNet was asked for, call by call."""
    rows = []
    hook = sd.unet.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    try:
        work()
    finally:
        hook.remove()
    return rows


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler a", "DPM++ 2M", "Heun"])
def test_many_at_once_equal_their_single_runs(toy, scheduler):
    asked = [
        Request(p, n, seed=s, steps=5, guidance=w, scheduler=scheduler)
        for p, n, s, w in [
            ("a dog", "", 1, 0),
            ("a dog", "", 1, 1),
            ("a dog", "", 1, 7),
            ("a cat", "red", 2, 3),
            ("a cat", "", 1, 3),
        ]
    ]
    *_, last = denoise_many(toy, asked)
    for request, step in zip(asked, last, strict=True):
        assert differ(step.x_next, end(toy, request)) < 1e-4


def test_many_scales_share_what_they_can(toy):
    """2 + (T - 1)(2 N - k) UNet passes for N scales, k of them 0 or 1."""
    asked = [Request("a dog", steps=20, guidance=w) for w in range(9)]
    assert sum(rows_of(toy, lambda: list(denoise_many(toy, asked)))) == 306
    other = [Request("a dog", steps=4, guidance=w, seed=w) for w in (2, 3)]
    assert rows_of(toy, lambda: list(denoise_many(toy, other))) == [4, 4, 4, 4]


def test_a_batch_must_share_its_steps(toy):
    with pytest.raises(ValueError, match="differ in size, scheduler, steps"):
        next(denoise_many(toy, [Request("a", steps=3), Request("a", steps=4)]))


def test_guided_prediction_is_the_line_through_both(toy):
    for step in denoise(toy, Request("a dog", steps=3, guidance=4)):
        assert torch.equal(step.eps, step.eps_uncond + 4 * (step.eps_cond - step.eps_uncond))


def test_recording_changes_no_bit(toy, emoji):
    for sd in (toy, emoji):
        request = Request("a fox on a red background", steps=4)
        assert torch.equal(end(sd, request), end(sd, request, Record()))
        assert torch.equal(end(sd, request), end(sd, request, Record(heads=True)))


def test_a_request_leaves_the_model_as_it_was(toy):
    before = {k: v.clone() for k, v in toy.unet.state_dict().items()}
    processors = dict(toy.unet.attn_processors)
    config = dict(toy.scheduler_config)
    list(denoise(toy, Request("a dog", steps=2), Record()))
    assert all(torch.equal(v, before[k]) for k, v in toy.unet.state_dict().items())
    assert toy.unet.attn_processors == processors and toy.scheduler_config == config


def test_gradients_stay_on_for_the_caller(toy):
    steps = denoise(toy, Request("a dog", steps=2))
    next(steps)
    assert torch.is_grad_enabled()


def test_decode_says_why_there_is_no_picture(toy):
    with pytest.raises(ValueError, match="latents hold NaN"):
        latents.decode(toy, torch.full((1, 4, 8, 8), math.nan))


def test_slerp_keeps_the_length_of_noise():
    a, b = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents.slerp(a, b, 0.0), a)
    assert differ(latents.slerp(a, b, 1.0), b) < 1e-6
    assert latents.slerp(a, b, 0.5).std().item() == pytest.approx(1, abs=0.05)
    assert ((a + b) / 2).std().item() < 0.8  # what a straight line would do


WRONG = [
    ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 100"),
    ({"steps": -1}, "steps is -1"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"steps": 101}, "steps is 101"),
    ({"steps": "20"}, "steps is 20"),
    ({"steps": True}, "steps is True"),
    ({"steps": None}, "steps is empty"),
    ({"guidance": math.nan}, "guidance is nan; it must be a number from 0 to 30"),
    ({"guidance": math.inf}, "guidance is inf"),
    ({"guidance": -1}, "guidance is -1"),
    ({"guidance": 31}, "guidance is 31"),
    ({"guidance": "7"}, "guidance is 7"),
    ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 4294967295"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"width": 15}, "width is 15"),
    ({"height": 100}, "choose a multiple of 8"),
    ({"height": 0}, "height is 0"),
    ({"width": 2048}, "width is 2048"),
    ({"scheduler": "Magic"}, "no scheduler 'Magic'; choose one of DDIM"),
    ({"prompt": "x" * 10_000_000}, "10,000,000 characters"),
    ({"prompt": "a\0b"}, r"U\+0000"),
    ({"prompt": "a\ud800b"}, r"U\+D800"),
    ({"prompt": 7}, "prompt is int, not text"),
    ({"negative": "a\x1bb"}, r"negative prompt holds the character U\+001B"),
    ({"interval": (5, 2)}, "starts at step 5, after its end 2"),
    ({"interval": (0, 2.5)}, "interval's stop is 2.5"),
    ({"interval": (1,)}, "give two numbers"),
    ({"guidance": 10**400}, "guidance is 1000"),
    ({"scheduler": "x" * 10_000_000}, "no scheduler 'xxx"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG)
def test_wrong_input_gives_its_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Request(**{"prompt": "a dog", **wrong})
    assert len(str(caught.value)) < 300 and str(caught.value).endswith(".")


def test_an_interval_that_never_comes_is_said(toy):
    with pytest.raises(ValueError, match="starts at step 31, but this run has 20"):
        next(denoise(toy, Request("a dog", steps=20, interval=(30, 40))))


def test_lcm_says_how_many_steps_it_has(toy):
    with pytest.raises(ValueError, match="LCM can make at most 50 steps, not 60"):
        next(denoise(toy, Request("a dog", steps=60, scheduler="LCM")))


# --- edits between the words and the UNet -----------------------------------------------------------------------------------------


def test_a_swapped_token_draws_the_other_prompts_picture(toy):
    swap = text.Edit("mix", 2, token=text.token_of(toy, "cat"))
    plain = Request("a dog", "a dog", steps=2, guidance=3)
    edited = end(toy, replace(plain, edits=(swap,)))
    assert differ(edited, end(toy, replace(plain, prompt="a cat"))) < 1e-4, (
        "and the same words of the negative prompt are not edited"
    )
    assert differ(edited, end(toy, plain)) > 1e-2


def test_pictures_of_one_call_have_their_own_edits(toy):
    heavy = Request("a dog", steps=2, guidance=3, edits=(text.Edit("weight", 2, share=4),))
    for steps in denoise_many(toy, [replace(heavy, edits=()), heavy]):
        both = [step.x_next for step in steps]
    for request, x in zip([replace(heavy, edits=()), heavy], both, strict=True):
        assert differ(end(toy, request), x) < 1e-4
    assert differ(*both) > 1e-3


def test_a_request_comes_back_from_plain_values():
    edits = (text.Edit("vector", 2, vector=(0.1, -2.0), words="bird"), text.Edit("blend", words="a cat", share=0.65))
    request = Request("a dog", interval=(1, 3), edits=edits)
    assert Request.of({**json.loads(json.dumps(asdict(request))), "device": "cpu"}) == request
    assert Request.of({"prompt": "a dog"}) == Request("a dog")
    for wrong in ([1], ["drop"], [{"position": 1}], [{"kind": "drop", "colour": 1}], [{"kind": "vector", "vector": 3}]):
        with pytest.raises(TypeError):
            Request.of({"prompt": "a dog", "edits": wrong})
    for wrong in ("drop", [{"kind": "magic"}], [{"kind": "drop"}] * 33, [{"kind": "vector", "vector": [0.0] * 20000}] * 2):
        with pytest.raises(ValueError):
            Request.of({"prompt": "a dog", "edits": wrong})
    with pytest.raises(ValueError, match="other prompt has 2,001 characters"):
        Request("a dog", edits=(text.Edit("blend", words="a" * 2001),))
