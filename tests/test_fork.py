"""A run taken up again in the middle: nothing before is predicted anew, and nothing is lost."""

import pytest
import torch
from test_sampling import ALL, differ, rows_of

from core.sampling import Fork, Request, denoise
from core.trace import Trace

REQUEST = Request("a dog", "a cat", seed=4, steps=6, guidance=3)


def run(sd, request, fork=None):
    return list(denoise(sd, request, fork=fork))


@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize("at", [0, 1, 4])
def test_going_on_unchanged_is_the_same_run_to_the_bit(toy, scheduler, at):
    """Even for schedulers that remember earlier steps, or draw noise on the way."""
    request = Request("a dog", "a cat", seed=4, steps=6, guidance=3, scheduler=scheduler)
    whole = run(toy, request)
    again = run(toy, request, Fork(request, tuple(whole[:at])))
    assert len(again) == len(whole)
    assert torch.equal(again[-1].x_next, whole[-1].x_next)


def test_the_steps_before_are_not_predicted_again(toy):
    whole = run(toy, REQUEST)
    other = Request("a house", "a cat", seed=4, steps=6, guidance=8)
    assert len(rows_of(toy, lambda: run(toy, other, Fork(REQUEST, tuple(whole[:4]))))) == 2


def test_what_is_changed_acts_from_the_fork_on(toy):
    whole = run(toy, REQUEST)
    other = run(toy, Request("a house", "a cat", seed=4, steps=6, guidance=8), Fork(REQUEST, tuple(whole[:3])))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole[:4], other[:4], strict=True))
    assert [s.w for s in other] == [3, 3, 3, 8, 8, 8]
    assert differ(other[-1].x_next, whole[-1].x_next) > 1e-3


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler", "Euler a", "DDPM"])
def test_another_seed_gives_the_guessed_picture_new_noise(toy, scheduler):
    request = Request("a dog", seed=4, steps=6, guidance=3, scheduler=scheduler)
    whole = run(toy, request)
    other = run(toy, Request("a dog", seed=5, steps=6, guidance=3, scheduler=scheduler), Fork(request, tuple(whole[:4])))
    new = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    step = other[4]
    assert differ(step.x_in, step.alpha_bar**0.5 * whole[3].x0 + (1 - step.alpha_bar) ** 0.5 * new) < 1e-4
    assert differ(other[-1].x_next, whole[-1].x_next) > 1e-3


@pytest.mark.parametrize("scheduler", ["PNDM", "LMS", "Heun", "DPM++ 2M", "UniPC"])
def test_a_scheduler_that_remembers_keeps_its_seed(toy, scheduler):
    request = Request("a dog", seed=4, steps=6, scheduler=scheduler)
    whole = run(toy, request)
    with pytest.raises(ValueError, match="remembers steps of the old noise"):
        run(toy, Request("a dog", seed=5, steps=6, scheduler=scheduler), Fork(request, tuple(whole[:4])))


def test_a_kept_run_can_be_forked(toy):
    trace = Trace.start(toy, REQUEST)
    for _ in trace.follow(denoise(toy, REQUEST)):
        pass
    again = run(toy, REQUEST, Fork(trace.request, tuple(trace.steps[:3])))
    assert torch.equal(again[-1].x_next, trace.steps[-1].x_next)


def test_v_prediction_goes_on_too(toy_sd2):
    whole = run(toy_sd2, REQUEST)
    again = run(toy_sd2, REQUEST, Fork(REQUEST, tuple(whole[:3])))
    assert differ(again[-1].x_next, whole[-1].x_next) < 1e-4


def test_a_fork_keeps_scheduler_and_steps(toy):
    whole = run(toy, REQUEST)
    with pytest.raises(ValueError, match="differ in size, scheduler, steps or"):
        run(toy, Request("a dog", steps=7), Fork(REQUEST, tuple(whole[:2])))
