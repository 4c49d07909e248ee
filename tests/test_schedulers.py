"""How noisy the latents are at each step of each scheduler."""

import pytest
from conftest import BETAS

from core import schedulers

DEEP_DIVE = "14.6146 9.6826 6.6780 4.7746 3.5221 2.6666 2.0606 1.6156 1.2768 1.0097 0.7913 0.6056 0.4397 0.2780 0.0292 0"


def test_lms_with_15_steps_has_the_deep_dives_sigmas_and_times():
    levels = schedulers.levels(schedulers.make("LMS", BETAS, 15))
    assert [level.sigma for level in levels] == pytest.approx([float(sigma) for sigma in DEEP_DIVE.split()], abs=2e-4)
    assert [levels[k].t for k in (0, 1, 14)] == pytest.approx([999, 927.64, 0], abs=5e-3)
    assert levels[15].t is None, "the end: the UNet is not asked again"


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_noise_only_falls_and_both_ways_of_saying_it_agree(name):
    scheduler = schedulers.make(name, BETAS, 12)
    levels = schedulers.levels(scheduler)
    assert len(levels) == len(scheduler.timesteps) + 1
    sigmas = [level.sigma for level in levels]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] < 0.03
    assert all(level.alpha_bar == pytest.approx(1 / (1 + level.sigma**2)) for level in levels)


def test_the_training_schedule():
    bars = schedulers.training_bars(BETAS)
    assert len(bars) == 1000 and (bars.diff() < 0).all()
    assert schedulers.sigma_of(float(bars[999])) == pytest.approx(14.6146, abs=2e-4)
    assert schedulers.sigma_of(float(bars[0])) == pytest.approx(0.0292, abs=2e-4)
