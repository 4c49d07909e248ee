"""Cross-attention, recorded: which words each spot of the picture looked at.

In a cross-attention layer every latent position asks (query) and every token answers (key, value):

    P = softmax(Q K^T / sqrt(d))    (heads, h w, 77), each row sums to 1        (Vaswani et al. 2017, eq. 1)

`make_recordable` is called once, at load, and changes no bit of the maths. What is recorded is an argument of the UNet call
(`cross_attention_kwargs={"record": Recorder(...)}`), so two people's runs cannot disturb each other, and there is nothing to undo.
The picture still comes from the fused kernel; P is computed beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


@dataclass(frozen=True)
class Record:
    """What to record of each step."""

    layers: tuple[str, ...] | None = None  # names as in layers_of(); None = all
    heads: bool = False  # every head by itself, instead of their mean: as many times the memory
    itself: int = 0  # self-attention too, where a layer has at most so many positions: SMALL is 16 x 16, and P has their square


SMALL = 256


class Recorder:
    """The sink of one UNet call: layer name -> P, (branches, h w, 77), or (branches, heads, h w, 77) with single heads; float32.

    Self-attention goes by its own layer's name (attn1) and has h w columns instead of 77, always averaged over heads.
    """

    def __init__(self, what: Record):
        self.what = what
        self.maps: dict[str, Tensor] = {}

    def wants(self, layer: str, positions: int, itself: bool) -> bool:
        return positions <= self.what.itself if itself else self.what.layers is None or layer in self.what.layers


class RecordableProcessor(AttnProcessor2_0):
    """diffusers' own processor, which also writes P into the call's recorder, if it has one."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer  # an identity, not a state: processors are shared by all runs

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (B, h w, C)
        encoder_hidden_states: Tensor | None = None,  # (B, 77, D); None in self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        record: Recorder | None = None,
    ) -> Tensor:
        itself = encoder_hidden_states is None
        if record is None or not record.wants(self.layer, hidden_states.shape[1], itself):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        # What diffusers' processor does, line for line, of which Stable Diffusion's layers need these alone (see make_recordable):
        # queries and keys, once computed, serve the picture and the record.
        assert attn.to_k is not None and attn.to_v is not None and attn.to_out is not None and attention_mask is None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            line(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, h w or 77, d)
            for line, x in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        record.maps[self.layer] = probabilities(q, k, attn.scale, record.what.heads and not itself)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, h w, C)
        return attn.to_out[1](attn.to_out[0](mixed))


def probabilities(q: Tensor, k: Tensor, scale: float, heads: bool) -> Tensor:
    """softmax(Q K^T scale), float32: (B, h w, 77) averaged over heads, or (B, heads, h w, 77).

    q: (B, heads, h w, d); k: (B, heads, 77, d), or h w in place of 77."""
    # In float32, as half precision overflows here in SD 2.1, which says so itself by `upcast_attention`.
    scores = q.float().flatten(0, 1) @ (k.float() * scale).flatten(0, 1).transpose(1, 2)  # (B heads, h w, 77)
    p = scores.softmax(-1).unflatten(0, q.shape[:2])
    return p if heads else p.mean(1)


def make_recordable(unet: UNet2DConditionModel) -> None:
    """Gives every attention layer a processor that knows its name. Called once, by models.load().

    Raises ValueError for attention that is more than Stable Diffusion's, of which the record would not be true.
    """
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            more = (module.spatial_norm, module.group_norm, module.norm_cross, module.norm_q, module.norm_k)
            if any(more) or module.residual_connection or module.rescale_output_factor != 1:
                raise ValueError(f"The attention of {name} is not Stable Diffusion's; choose an SD 1 or SD 2 checkpoint.")
    # Self-attention gets it too: diffusers hands a keyword only to layers whose processor names it, and warns of the others.
    unet.set_attn_processor({name: RecordableProcessor(name.removesuffix(".processor")) for name in unet.attn_processors})


def layers_of(unet: UNet2DConditionModel) -> list[str]:
    """The names of the cross-attention layers, from the input to the output of the UNet."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda n: (order[n.split(".")[0]], n))


def grid_of(positions: int, height: int, width: int) -> tuple[int, int]:
    """The (h, w) of a layer that has so many positions, in a run whose latents are height x width: each level halves, rounding up."""
    h, w = height, width
    while h * w > positions:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != positions:
        raise ValueError(f"No level of a {height} x {width} latent has {positions} positions; give the run's own latent size.")
    return h, w


def heat_maps(
    steps: Iterable[Mapping[str, Tensor]],
    *,
    size: tuple[int, int],
    layers: Iterable[str] | None = None,
    branch: int = -1,
    head: int | None = None,
) -> Tensor:
    """Where each of the 77 tokens was looked for: the columns of P, averaged over steps and layers, (77, h, w) float32 in [0, 1].

    steps: the recorded maps of one or more steps. size: the latents' (h, w). layers: None = all recorded.
    branch: 0 = the first row recorded, -1 = the last; where guidance was on these are uncond and cond. head: None = mean over heads.
    Raises ValueError if nothing was recorded.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for maps in steps:
        for layer, p in maps.items():
            if layers is None or layer in layers:
                p = p[branch].float()  # (h w, 77) or (heads, h w, 77)
                p = p if p.ndim == 2 else p.mean(0) if head is None else p[head]
                sums[layer] = sums[layer] + p if layer in sums else p
                count += 1
    if not count:
        raise ValueError("This run recorded no attention in these layers; run again with recording on.")
    total = torch.zeros(1)
    for p in sums.values():  # one enlargement a layer, of all tokens together
        grid = p.T.unflatten(1, grid_of(p.shape[0], *size))[None]  # (1, 77, h', w')
        total = total + torch.nn.functional.interpolate(grid.cpu(), size=size, mode="bilinear", align_corners=False)[0]
    return total / count


def heat_map(steps: Iterable[Mapping[str, Tensor]], positions: tuple[int, ...], **options: Any) -> Tensor:
    """Where a word was looked for: the mean of its tokens' maps, (h, w). positions: its places among the 77; options as in heat_maps.

    Raises ValueError if nothing was recorded, or a position is not one of the 77.
    """
    maps = heat_maps(steps, **options)
    if not all(0 <= k < len(maps) for k in positions):
        raise ValueError(f"Tokens stand at 0 to {len(maps) - 1}, not at {positions}; pick one of this run's tokens.")
    return maps[list(positions)].mean(0)


def in_time(
    steps: Sequence[Mapping[str, Tensor]],
    *,
    size: tuple[int, int],
    layers: Iterable[str] | None = None,
    branch: int = -1,
    gather: Tensor | None = None,
) -> Tensor:
    """heat_maps of each step by itself, (steps, 77, h, w) float32 in [0, 1]; options as there.

    gather: (77, k), sums of columns: a word's share of the attention is the sum of its tokens', and k maps come back instead of 77.
    All steps must have recorded the same layers. Raises ValueError if nothing was recorded.
    """
    total, count = torch.zeros(1), 0
    for layer in steps[0] if steps else ():
        if layers is None or layer in layers:
            p = torch.stack([maps[layer][branch] for maps in steps]).float()  # (steps, h w, 77)
            p = p if gather is None else p @ gather.to(p)
            grid = p.transpose(1, 2).unflatten(2, grid_of(p.shape[1], *size)).cpu()  # (steps, 77, h', w')
            total = total + F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
            count += 1
    if not count:
        raise ValueError("This run recorded no attention in these layers; run again with recording on.")
    return total / count


def upper(maps: Tensor, size: tuple[int, int], share: float = 0.5) -> Tensor:
    """The part of each map (n, h, w) that lies above low + share (high - low), as masks (n, H, W) bool of the given size.

    The maps are enlarged bilinearly first. share: 0 .. 1; a half is what scripts/evaluate.py measures with.
    """
    large = F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return large > low + share * (high - low)


def iou(maps: Tensor, mask: Tensor, share: float = 0.5) -> Tensor:
    """How well the upper part of each map (n, h, w) fits a mask (H, W) bool: intersection over union, (n,) in [0, 1].

    Raises ValueError if the mask is empty.
    """
    if not mask.any():
        raise ValueError("The mask is empty; paint the object, or load a mask that is white where it is.")
    part = upper(maps, (mask.shape[0], mask.shape[1]), share)
    return (part & mask).sum((1, 2)) / (part | mask).sum((1, 2))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """How far maps (n, h, w) lie in the same place, (n,): the common part of the two, each made to sum to 1. 1 = the same, 0 = apart."""
    a, b = (x / x.sum((1, 2), keepdim=True).clamp(min=1e-12) for x in (a, b))
    return torch.minimum(a, b).sum((1, 2))
