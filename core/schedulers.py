"""The menu of diffusers schedulers, and the one coordinate system in which the project speaks of noise.

A scheduler holds the state of one run, so each run makes its own (`make`). Whatever coordinates a scheduler works in, the UNet's input
after `scale_model_input` is variance preserving (Ho et al. 2020, eq. 4):

    x_in = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps,     alpha_bar = 1 / (1 + sigma^2)

so one formula gives alpha_bar, sigma and x0 for all of them. sigma is the noise's standard deviation beside a clean picture of 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DDPM": (DDPMScheduler, {}),
    "PNDM": (PNDMScheduler, {"skip_prk_steps": True}),
    "LMS": (LMSDiscreteScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "Heun": (HeunDiscreteScheduler, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {}),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "UniPC": (UniPCMultistepScheduler, {}),
    "LCM": (LCMScheduler, {}),
}


# Those whose step depends on nothing but the latents before it. The others keep former predictions, or make a step in two halves.
FORGETFUL = ("DDIM", "DDPM", "Euler", "Euler a", "LCM")


def make(name: str, config: dict[str, Any], steps: int, device: torch.device | str = "cpu") -> Any:
    """A fresh scheduler for one run, its timesteps set. config: the checkpoint's scheduler_config.json.

    Raises ValueError for a name that is not in SCHEDULERS, or more steps than the scheduler can make.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"There is no scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}.")
    cls, extra = SCHEDULERS[name]
    # clip_sample clamps x0 to [-1, 1]: right for pixels, wrong for latents. It is off in every Stable Diffusion checkpoint.
    scheduler = cls.from_config({**config, "clip_sample": False}, **extra)
    if name == "LCM" and steps > scheduler.config.original_inference_steps:
        raise ValueError(
            f"LCM can make at most {scheduler.config.original_inference_steps} steps, not {steps}; ask for fewer steps."
        )
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def alpha_bars(scheduler: Any) -> Tensor:
    """The share of signal's variance at each step of a run, (T,) float64 in (0, 1], in the order of scheduler.timesteps."""
    if hasattr(scheduler, "sigmas"):  # Euler, Heun, LMS, DPM++, UniPC: sigmas has one more entry, the end of the last step
        return 1 / (1 + scheduler.sigmas[: len(scheduler.timesteps)].double().cpu().square())
    return scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps.long().cpu()]


@dataclass(frozen=True)
class Level:
    """How noisy the latents are at one moment of a run."""

    t: float | None  # the time that the UNet is told; None at the end, where it is not asked
    sigma: float  # the noise's standard deviation beside a clean picture of 1
    alpha_bar: float  # the picture's share of the variance


def levels(scheduler: Any) -> list[Level]:
    """The noise at each step of a run, and at its end: one Level more than there are steps."""
    bars = alpha_bars(scheduler).tolist()
    times: list[float | None] = [float(t) for t in scheduler.timesteps]
    if hasattr(scheduler, "sigmas"):
        end = 1 / (1 + float(scheduler.sigmas[-1]) ** 2)
    else:  # DDIM, PNDM and LCM end at the training schedule's least noise, unless their config says at none; DDPM at none
        end = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return [Level(t, sigma_of(bar), bar) for t, bar in zip([*times, None], [*bars, end], strict=True)]


def training_bars(config: dict[str, Any]) -> Tensor:
    """alpha_bar of the training schedule at each of its times, (1000,) float64. config: the checkpoint's scheduler_config.json."""
    return DDPMScheduler.from_config(config).alphas_cumprod.double()


def sigma_of(alpha_bar: float) -> float:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar)."""
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def eps_of(output: Tensor, x_in: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """The noise prediction inside the UNet's output, which is eps itself or, in SD 2.x, v (Salimans & Ho 2022, appendix D)."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha_bar**0.5 * output + (1 - alpha_bar) ** 0.5 * x_in
    raise ValueError(f"The checkpoint predicts {prediction_type!r}; only epsilon and v_prediction are known.")


def output_of(eps: Tensor, x_in: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """eps_of backwards: what the UNet said, from the noise prediction that was kept."""
    if prediction_type == "epsilon":
        return eps
    return (eps - (1 - alpha_bar) ** 0.5 * x_in) / alpha_bar**0.5


def x0_of(x_in: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """The clean latents that the prediction points to: x0 = (x_in - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
    return (x_in - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
