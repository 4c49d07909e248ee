"""Guidance by a loss: the measures, their slope, and what the loop does with it, held against the Deep Dive's own loop."""

from itertools import islice

import pytest
import torch
from test_sampling import ALL, differ, end

from core import latents, losses, sampling, schedulers, text
from core.sampling import Fork, Loss, Request, denoise, denoise_many, steer
from core.trace import Trace

REQUEST = Request("a dog", "a cat", seed=4, steps=6, guidance=8, scheduler="LMS")


def plain(*rgb, size=(8, 8)):
    """A picture of one colour, (1, 3, H, W)."""
    return torch.tensor(rgb)[None, :, None, None].expand(1, 3, *size).clone()


def test_each_measure_is_zero_where_it_is_reached_and_a_distance_elsewhere():
    assert losses.blue(0.9)(plain(0.3, 0.5, 0.9)) == 0
    assert losses.blue(0.9)(plain(0.9, 0.9, 0.1)).item() == pytest.approx(0.8)
    assert losses.colour((1.0, 0.5, 0.0))(plain(1.0, 0.5, 0.0)) == 0
    assert losses.colour((1.0, 0.5, 0.0))(plain(1.0, 0.5, 0.3)).item() == pytest.approx(0.1), "0.3 in one channel of three"
    assert losses.brightness(1)(plain(1.0, 1.0, 1.0)).item() == pytest.approx(0, abs=1e-6)
    assert losses.brightness(0)(plain(0.0, 1.0, 0.0)).item() == pytest.approx(0.7152), "green looks brightest"
    half = torch.cat([plain(0.0, 0.0, 0.0), plain(1.0, 1.0, 1.0)], -1)
    assert losses.brightness(0.5)(half).item() == pytest.approx(0, abs=1e-6), "of the whole, not of each pixel"
    assert losses.symmetry()(half).item() == 1 and losses.symmetry()(torch.cat([half, half.flip(-1)], -1)) == 0
    assert losses.likeness(half)(half) == 0 and losses.likeness(half)(half.flip(-1)).item() == 1


def test_the_slope_is_how_the_loss_changes_with_a_latent(toy):
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    toy_vae64 = toy.vae.double()
    try:
        x0 = x0.double()
        measure = losses.blue(0.9)
        value, slope = losses.slope(toy, measure, x0)
        assert value == losses.value(toy, measure, x0)
        for place in ((0, 0, 3, 3), (0, 2, 0, 7)):
            small = torch.zeros_like(x0)
            small[place] = 1e-5
            change = losses.value(toy, measure, x0 + small) - losses.value(toy, measure, x0 - small)
            assert slope[place].item() == pytest.approx(change / 2e-5, rel=1e-3, abs=1e-9)
    finally:
        toy_vae64.float()


def notebook(sd, request, loss):
    """The Deep Dive's loop as it stands there, with scheduler.step called once (its issue 42): latents x0 + sigma eps, LMS."""
    scheduler = schedulers.make("LMS", sd.scheduler_config, request.steps)
    source = latents.generator(request.seed)
    x = latents.noise(sd, sd.size, sd.size, source) * scheduler.init_noise_sigma
    words = torch.cat([text.encode(sd, request.negative), text.encode(sd, request.prompt)])
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        with torch.no_grad():
            both = sd.unet(scheduler.scale_model_input(torch.cat([x] * 2), t), t, encoder_hidden_states=words)["sample"]
        uncond, cond = both.chunk(2)
        eps = uncond + request.guidance * (cond - uncond)
        if i % loss.every == 0:
            x = x.detach().requires_grad_()
            x0 = x - sigma * eps
            picture = sd.vae.decode((1 / sd.vae.config.scaling_factor) * x0).sample / 2 + 0.5
            value = torch.abs(picture[:, 2] - 0.9).mean() * loss.scale
            grad = torch.autograd.grad(value, x)[0]
            x = x.detach() - grad * sigma**2
        x = scheduler.step(eps, t, x).prev_sample
    return x


@pytest.mark.parametrize("every", [1, 5])
def test_equals_the_deep_dives_loop(toy, every):
    blue = Loss(losses.blue(0.9), scale=200, every=every)
    *_, last = denoise(toy, REQUEST, loss=blue)
    *_, without = denoise(toy, REQUEST)
    assert differ(last.x_next, notebook(toy, REQUEST, blue)) < 1e-4
    assert differ(last.x_next, without.x_next) > 1e-2, "and it does something"


@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize("model", ["toy", "toy_sd2"])
def test_x0_moves_and_the_noise_stays_whatever_the_scheduler(request, model, scheduler):
    sd = request.getfixturevalue(model)
    loss = Loss(losses.blue(0.9), scale=3, every=1)
    made = schedulers.make(scheduler, sd.scheduler_config, 6)
    step = next(denoise(sd, Request("a dog", steps=6, scheduler=scheduler)))
    output = schedulers.output_of(step.eps, step.x_in, step.alpha_bar, sd.prediction_type)
    x, output, value = sampling.steer(sd, loss, 0, step.x, step.x_in, output, step.alpha_bar)
    x_in = made.scale_model_input(x, made.timesteps[0])
    eps = schedulers.eps_of(output, x_in, step.alpha_bar, sd.prediction_type)
    wanted = step.x0 - 3 * step.sigma**2 * losses.slope(sd, loss.measure, step.x0)[1]
    assert value == pytest.approx(losses.value(sd, loss.measure, step.x0), rel=1e-5)
    assert differ(eps, step.eps) < 1e-4
    assert differ(schedulers.x0_of(x_in, eps, step.alpha_bar), wanted) < 1e-3 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("scheduler", ["DDIM", "LMS", "Euler a", "DPM++ 2M"])
def test_a_loss_that_pushes_with_no_force_changes_no_bit(toy, scheduler):
    request = Request("a dog", seed=1, steps=5, scheduler=scheduler)
    *_, last = denoise(toy, request, loss=Loss(losses.blue(), scale=0))
    assert torch.equal(last.x_next, end(toy, request))


def test_it_acts_at_every_nth_step_and_is_known_at_each(toy, monkeypatch):
    acted, slope = [], losses.slope
    monkeypatch.setattr(losses, "slope", lambda sd, measure, x0: acted.append(float(x0.sum())) or slope(sd, measure, x0))
    steps = list(denoise(toy, Request("a dog", steps=11), loss=Loss(losses.blue(), scale=1, every=5)))
    assert [round(a, 2) for a in acted] == [round(float(steps[i].x0.sum()), 2) for i in (0, 5, 10)]
    found = [s.loss for s in steps]
    assert found == pytest.approx([losses.value(toy, losses.blue(), s.x0) for s in steps], abs=1e-5)
    assert all(s.loss is None for s in denoise(toy, Request("a dog", steps=2)))


PANDA = Request("a panda in a top hat on a blue background", seed=1, steps=10, guidance=5)


@pytest.mark.parametrize("measure", [losses.brightness(0.1), losses.blue(0.9), losses.symmetry(), losses.colour((0.9, 0.6, 0.2))])
def test_a_push_brings_x0_nearer_to_what_is_wanted(emoji, measure):
    *_, s = islice(denoise(emoji, PANDA), 6)
    x, eps, value = steer(emoji, Loss(measure, scale=20), 0, s.x, s.x_in, s.eps, s.alpha_bar)
    x_in = s.x_in + (x - s.x) * s.x_in.norm() / s.x.norm()
    assert value == pytest.approx(losses.value(emoji, measure, s.x0))
    assert losses.value(emoji, measure, schedulers.x0_of(x_in, eps, s.alpha_bar)) < value


ROCKET = Request("a rocket on a black background", seed=4, steps=10, guidance=5)  # leans: a face is symmetric already


@pytest.mark.parametrize(
    "request_, measure, scale",
    [
        (PANDA, losses.brightness(0.1), 300),
        (PANDA, losses.blue(0.9), 300),
        (PANDA, losses.colour((0.9, 0.6, 0.2)), 1000),  # against a blue background that the words hold on to
        (ROCKET, losses.symmetry(), 300),
    ],
)
def test_the_picture_comes_nearer_to_what_is_wanted(emoji, request_, measure, scale):
    *_, without = denoise(emoji, request_)
    *_, with_loss = denoise(emoji, request_, loss=Loss(measure, scale=scale, every=2))
    assert losses.value(emoji, measure, with_loss.x_next) < 0.95 * losses.value(emoji, measure, without.x_next)


def test_the_same_scale_weighs_sixteen_times_more_in_a_sixteenth_of_the_pixels(emoji):
    """200 at 512 px is 12.5 at 128 px: a loss is a mean over all pixels."""
    source = torch.Generator().manual_seed(0)
    small = torch.randn(1, 4, 8, 8, generator=source)
    large = small.tile(1, 1, 4, 4)
    slopes = [losses.slope(emoji, losses.blue(0.9), z)[1].abs().mean().item() for z in (small, large)]
    assert slopes[0] / slopes[1] == pytest.approx(16, rel=0.2)


def test_grad_stays_as_the_caller_has_it_and_the_model_as_it_was(toy):
    steps = denoise(toy, Request("a dog", steps=2), loss=Loss(losses.blue(), every=1))
    step = next(steps)
    assert torch.is_grad_enabled() and not step.x_next.requires_grad and not step.x0.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in toy.vae.parameters())


def test_a_trace_keeps_the_loss_of_each_step(toy, tmp_path):
    request = Request("a dog", steps=3)
    kept = Trace.start(toy, request)
    list(kept.follow(denoise(toy, request, loss=Loss(losses.blue(), scale=1, every=2))))
    kept.save(tmp_path / "run.safetensors")
    assert [s.loss for s in Trace.open(tmp_path / "run.safetensors")] == [s.loss for s in kept] != [None] * 3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scale": -1}, "loss scale is -1; it must be a number from 0 to 10000"),
        ({"scale": float("nan")}, "loss scale is nan"),
        ({"every": 0}, "number of steps between two pushes is 0; it must be a whole number from 1 to 100"),
        ({"every": 2.5}, "pushes is 2.5"),
    ],
)
def test_wrong_values_give_their_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loss(losses.blue(), **wrong)


def test_what_a_loss_cannot_guide_is_said(toy):
    blue = Loss(losses.blue())
    with pytest.raises(ValueError, match="A loss guides one picture"):
        next(denoise_many(toy, [REQUEST, REQUEST], loss=blue))
    guided = tuple(denoise(toy, REQUEST, loss=blue))[:2]
    with pytest.raises(ValueError, match="was guided by a loss"):
        next(denoise(toy, REQUEST, fork=Fork(REQUEST, guided)))
    with pytest.raises(ValueError, match="loss of step 1 has no finite slope"):
        next(denoise(toy, REQUEST, loss=Loss(lambda picture: picture.sum() * torch.inf)))
