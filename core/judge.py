"""The judge: a small CNN that says what a picture shows, where, on which background and in which style.

    judge = load_judge()
    verdict = judge(pictures)  # (B, 3, H, W) in [-1, 1], any square size -> Verdict

It measures generated pictures (scripts/evaluate.py) and is trained on composed scenes alone (scripts/train_classifier.py). It knows the
held-out subjects of the DreamBooth lessons too, which no embedded model has seen.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from core.catalog import MODELS

FOLDER = MODELS / "judge"
SIDE = 128  # every picture is brought to this side first
GRID = 8  # cells a side of the location map


@dataclass(frozen=True)
class Verdict:
    """What the judge says of B pictures. Columns follow Judge.names, of which there are N, .backgrounds and .styles."""

    objects: Tensor  # (B, N) log-odds that the object is in the picture
    background: Tensor  # (B, 12) logits
    style: Tensor  # (B, 6) logits
    cells: Tensor  # (B, N + 1, 8, 8) log of the share of each cell that belongs to an object; the last plane is "nothing"
    features: Tensor  # (B, 160) the subject's embedding, mean of the cells that an object covers; for measures of likeness

    @property
    def where(self) -> Tensor:
        """(B, N, 8, 8) share of each cell that the object covers, in [0, 1]."""
        return self.cells[:, :-1].exp()

    @property
    def centres(self) -> Tensor:
        """(B, N, 2): x and y in [0, 1] of each object's centre of mass. Squared, so that faint traces elsewhere do not pull."""
        mass = self.where.square() + 1e-12
        places = (torch.arange(GRID, device=mass.device) + 0.5) / GRID
        return torch.stack([(mass.sum(2) * places).sum(2), (mass.sum(3) * places).sum(2)], 2) / mass.sum((2, 3))[..., None]


class Judge(nn.Module):
    """Fully convolutional down to 8 x 8 cells; a softmax divides each cell among the objects and "nothing". Presence is the soft
    maximum over the cells of an object's log-odds. Background and style are read from the two means that this division gives: of
    the cells that no object covers, and of those that one does."""

    def __init__(self, names: list[str], backgrounds: list[str], styles: list[str], width: int = 160):
        super().__init__()
        self.names, self.backgrounds, self.styles, self.width = names, backgrounds, styles, width
        self.trunk = nn.Sequential(
            _conv(3, 32, kernel=5, stride=2),  # 64 x 64
            _conv(32, 48, stride=2),  # 32 x 32
            _conv(48, 64),
            _conv(64, 112, stride=2),  # 16 x 16
            _conv(112, 112),
            _conv(112, width, stride=2),  # 8 x 8
            _Residual(width),  # from here a cell has seen the 121 px around it
        )
        self.cells = nn.Conv2d(width, len(names) + 1, 1)
        self.presence = nn.Parameter(torch.tensor([0.5, -2.0]))  # scale and offset from the soft maximum to log-odds
        self.background = nn.Linear(width, len(backgrounds))
        self.style = nn.Linear(2 * width, len(styles))

    def forward(self, pictures: Tensor) -> Verdict:
        if pictures.shape[-1] != SIDE:
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.judged(self.trunk(pictures.contiguous(memory_format=torch.channels_last)))

    def judged(self, maps: Tensor) -> Verdict:
        """maps: what the trunk sees, (B, width, 8, 8)."""
        with torch.autocast(maps.device.type, enabled=False):  # soft maxima and weighted means want float32
            maps = maps.float()
            cells = self.cells(maps).log_softmax(1)
            log_odds = cells[:, :-1] - torch.log1p(-cells[:, :-1].exp().clamp(max=1 - 1e-6))
            scale, offset = self.presence
            nothing = cells[:, -1:].exp()
            ground, subject = _mean(maps, nothing), _mean(maps, 1 - nothing)
            return Verdict(
                objects=scale * log_odds.flatten(2).logsumexp(2) + offset,
                background=self.background(ground),
                style=self.style(torch.cat([subject, ground], 1)),
                cells=cells,
                features=subject,
            )


def _conv(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layers = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _mean(maps: Tensor, weight: Tensor) -> Tensor:
    """(B, C, h, w) and (B, 1, h, w) -> (B, C), the weighted mean over cells."""
    return (maps * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)


def load_judge(folder: Path = FOLDER, device: str | torch.device = "cpu") -> Judge:
    """The judge as it was trained, on a device."""
    config = json.loads((folder / "config.json").read_text())
    judge = Judge(config["names"], config["backgrounds"], config["styles"], config["width"])
    judge.load_state_dict(load_file(folder / "model.safetensors"))
    return judge.to(device).eval().requires_grad_(False)
