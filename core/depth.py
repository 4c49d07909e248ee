"""Depth: how near each pixel is, guessed from one picture by a DPT (Ranftl et al. 2021), and how well two depth maps agree."""

import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from core.models import StableDiffusion


@torch.no_grad()
def estimate(sd: StableDiffusion, picture: Tensor) -> Tensor:
    """A picture (1, 3, H, W) in [-1, 1] -> (1, h', w') float32, larger = nearer, of no unit; h' and w' are the estimator's own size.

    Raises ValueError if the model has no estimator.
    """
    if sd.depth_estimator is None or sd.depth_processor is None:
        raise ValueError(f"The model {sd.name} has no depth estimator; choose a depth model.")
    pixels = ((picture[0].movedim(0, -1) / 2 + 0.5) * 255).round().to(torch.uint8).cpu().numpy()
    values = sd.depth_processor(images=[Image.fromarray(pixels)], return_tensors="pt").pixel_values
    return sd.depth_estimator(values.to(sd.device, sd.depth_estimator.dtype)).predicted_depth.float()


def agreement(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two depth maps (.., h, w), -1 .. 1: whether both call the same pixels nearer. The second is brought
    to the first's size; 0 if one is flat."""
    b = torch.nn.functional.interpolate(
        b.reshape(1, 1, *b.shape[-2:]).float(), size=a.shape[-2:], mode="bicubic", align_corners=False
    )
    first, second = a.flatten().float().cpu().numpy(), b.flatten().cpu().numpy()
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(spearmanr(first, second).statistic)
