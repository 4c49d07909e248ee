"""The way into noise, and one look back."""

import pytest
import torch
from conftest import toy_model

from core import forward, latents, schedulers
from core.sampling import Request, denoise


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=latents.generator(5))


def test_noising_is_variance_preserving_and_ends_in_the_noise(z):
    noise = torch.randn(1, 4, 8, 8, generator=latents.generator(6))
    assert torch.equal(forward.noised(z, noise, 1.0), z) and torch.equal(forward.noised(z, noise, 0.0), noise)
    assert torch.allclose(forward.noised(z, noise, 0.36), 0.6 * z + 0.8 * noise)


@pytest.mark.parametrize("name", ["toy", "toy_sd2"])
def test_one_prediction_is_what_a_run_would_see_there(name, z, request):
    """A run's first step starts from the seed's noise; noised as far as there, one prediction must be the run's, eps and v alike."""
    sd = request.getfixturevalue(name)
    asked = Request("a dog", "a cat", seed=4, steps=5, guidance=3)
    step = next(iter(denoise(sd, asked)))
    pure = (1 - step.alpha_bar) ** 0.5  # the noise's part of x_t; a run starts from all of it
    guess = forward.guess(sd, asked, (step.x_in - pure * step.x) / step.alpha_bar**0.5, step.t, step.alpha_bar)
    assert torch.allclose(guess.true, step.x, atol=1e-6), "the same seed, the same noise"
    assert torch.allclose(guess.x, step.x_in, atol=1e-5)
    assert torch.allclose(guess.eps, step.eps, atol=1e-4)
    assert torch.allclose(guess.x0, step.x0, atol=2e-3)


def test_the_guess_is_the_noisy_latents_without_the_noise_it_found(toy, z):
    bar = float(schedulers.training_bars(toy.scheduler_config)[300])
    guess = forward.guess(toy, Request("a dog", seed=2, interval=(3, 5)), z, 300, bar)
    assert torch.allclose(bar**0.5 * guess.x0 + (1 - bar) ** 0.5 * guess.eps, guess.x, atol=1e-5)
    assert torch.allclose(bar**0.5 * z + (1 - bar) ** 0.5 * guess.true, guess.x, atol=1e-6)


def test_a_model_that_sees_more_than_latents_is_not_asked(z):
    with pytest.raises(ValueError, match="sees more than latents"):
        forward.guess(toy_model(kind="depth"), Request("a dog"), z, 300, 0.5)


def test_the_trained_model_finds_most_of_the_noise_in_a_picture(emoji):
    """What the page lets see: what it missed is weaker than the noise, and its guess is nearer than the noisy latents."""
    *_, last = denoise(emoji, Request("a red apple", steps=8, seed=3))
    z = last.x_next
    bar = float(schedulers.training_bars(emoji.scheduler_config)[500])
    guess = forward.guess(emoji, Request("a red apple", seed=1, guidance=1.0), z, 500, bar)
    assert (guess.eps - guess.true).square().mean() < 0.25 * guess.true.square().mean()
    assert (guess.x0 - z).square().mean() < (guess.x - z).square().mean()
