"""Cross-attention, recorded: which words each spot of the picture looked at.

In a cross-attention layer every latent position asks (query) and every token answers (key, value):

    P = softmax(Q K^T / sqrt(d))    (heads, h w, 77), each row sums to 1        (Vaswani et al. 2017, eq. 1)

`make_recordable` is called once, at load, and changes no bit of the maths. What is recorded is an argument of the UNet call
(`cross_attention_kwargs={"record": Recorder(...)}`), so two people's runs cannot disturb each other, and there is nothing to undo.
The picture still comes from the fused kernel; P is computed beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


@dataclass(frozen=True)
class Record:
    """What to record of each step."""

    layers: tuple[str, ...] | None = None  # names as in layers_of(); None = all
    heads: bool = False  # every head by itself, instead of their mean: as many times the memory


class Recorder:
    """The sink of one UNet call: layer name -> P, (branches, h w, 77), or (branches, heads, h w, 77) with single heads; float32."""

    def __init__(self, what: Record):
        self.what = what
        self.maps: dict[str, Tensor] = {}

    def wants(self, layer: str) -> bool:
        return self.what.layers is None or layer in self.what.layers


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
        if record is not None and encoder_hidden_states is not None and record.wants(self.layer):
            record.maps[self.layer] = probabilities(attn, hidden_states, encoder_hidden_states, record.what.heads)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def probabilities(attn: Attention, hidden_states: Tensor, text: Tensor, heads: bool) -> Tensor:
    """softmax(Q K^T scale), float32: (B, h w, 77) averaged over heads, or (B, heads, h w, 77)."""
    assert attn.to_k is not None
    q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, h w, d)
    k = attn.to_k(text).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, 77, d)
    # In float32, as half precision overflows here in SD 2.1, which says so itself by `upcast_attention`.
    p = (q.float() @ k.float().transpose(-1, -2) * attn.scale).softmax(-1)  # (B, heads, h w, 77)
    return p if heads else p.mean(1)


def make_recordable(unet: UNet2DConditionModel) -> None:
    """Gives every attention layer a processor that knows its name. Called once, by models.load()."""
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
