"""Text to numbers: prompt -> pieces (tokens) -> ids -> embeddings (1, 77, D).

CLIP reads 77 positions: a start mark, at most 75 pieces, an end mark, and padding. What does not fit is cut off; `tokenize` says what.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from core.models import StableDiffusion


@dataclass(frozen=True)
class Token:
    """One of the 77 positions."""

    position: int  # 0..76
    id: int  # row of the embedding table
    piece: str  # as in the prompt; "<|startoftext|>" and "<|endoftext|>" for the marks
    word: int  # which word of the prompt it belongs to, 0-based; -1 for marks and padding
    kind: str  # "start", "text", "end" or "padding"


@dataclass(frozen=True)
class Tokens:
    """A prompt as the text encoder sees it."""

    tokens: tuple[Token, ...]  # all 77
    used: int  # positions that say something: marks and pieces, padding not counted
    cut: str  # the end of the prompt that did not fit, as typed; "" if all did

    @property
    def ids(self) -> list[int]:
        return [t.id for t in self.tokens]

    @property
    def words(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Each word with the positions of its pieces: ("flooble", (4, 5))."""
        groups: dict[int, list[Token]] = {}
        for token in self.tokens:
            if token.kind == "text":
                groups.setdefault(token.word, []).append(token)
        return tuple(("".join(t.piece for t in g), tuple(t.position for t in g)) for g in groups.values())


def tokenize(sd: StableDiffusion, prompt: str) -> Tokens:
    """Splits a prompt by CLIP's byte pair encoding (Radford et al. 2021, section 2.4)."""
    length = sd.tokenizer.model_max_length
    with sd.tokenizer_lock:
        full = sd.tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False, truncation=False, verbose=False)
        marks = sd.tokenizer.convert_ids_to_tokens(full.input_ids)
        names: Any = (sd.tokenizer.bos_token, sd.tokenizer.eos_token, sd.tokenizer.pad_token)
        ids: Any = (sd.tokenizer.bos_token_id, sd.tokenizer.eos_token_id, sd.tokenizer.pad_token_id)

    def mark(which: int, position: int, kind: str) -> Token:
        return Token(position, ids[which], names[which], -1, kind)

    kept = length - 2
    tokens = [mark(0, 0, "start")]
    word = 0
    for token_id, piece, (a, b) in list(zip(full.input_ids, marks, full.offset_mapping, strict=True))[:kept]:
        tokens.append(Token(len(tokens), token_id, prompt[a:b], word, "text"))
        word += piece.endswith("</w>")
    tokens.append(mark(1, len(tokens), "end"))
    used = len(tokens)
    tokens += [mark(2, i, "padding") for i in range(used, length)]
    cut = prompt[full.offset_mapping[kept][0] :] if len(full.input_ids) > kept else ""
    return Tokens(tuple(tokens), used, cut)


@dataclass(frozen=True)
class Edit:
    """A change of the numbers between the words and the UNet. The first three happen at the input of the text encoder, so that every
    later position feels them (it looks back only); the last two at its output."""

    kind: str  # "mix", "blank" or "vector"; "weight" or "blend"
    position: int = 1  # which of the 77; not used by blend
    token: int = 0  # mix: the id of the other token
    share: float = 1.0  # mix: of the other token, 1 = replaced; weight: the factor; blend: of the other prompt
    words: str = ""  # blend: the other prompt
    vector: tuple[float, ...] = ()  # vector: D numbers, as textual inversion learns them (Gal et al. 2022)

    def __post_init__(self) -> None:
        if self.kind not in ("mix", "blank", "vector", "weight", "blend"):
            raise ValueError(f"There is no edit {self.kind!r}; choose mix, blank, vector, weight or blend.")
        if not 0 <= self.position <= 76:
            raise ValueError(f"Tokens stand at 0 to 76, not at {self.position}; pick one of the prompt's tokens.")
        high = 4.0 if self.kind == "weight" else 1.0
        if not 0 <= self.share <= high:
            raise ValueError(f"The share of a {self.kind} is {self.share:g}; it must be from 0 to {high:g}.")


@torch.no_grad()
def encode(sd: StableDiffusion, prompt: str, edits: tuple[Edit, ...] = ()) -> Tensor:
    """Prompt -> the text encoder's last layer after its final layer norm, (1, 77, D)."""
    ids = torch.tensor([tokenize(sd, prompt).ids], device=sd.device)  # (1, 77)
    if not edits:
        return sd.text_encoder(ids)[0]  # (1, 77, D)
    return layers(sd, prompt, edits)[-1]


@torch.no_grad()
def layers(sd: StableDiffusion, prompt: str, edits: tuple[Edit, ...] = ()) -> list[Tensor]:
    """Every stage of the text encoder, (1, 77, D) each: token embeddings, the same plus position embeddings, the output of each
    transformer layer, and the last one after the final layer norm, which is what the UNet gets.

    Raises ValueError if an edit does not fit this text encoder.
    """
    encoder: Any = sd.text_encoder  # its parts are typed as modules or tensors, which says nothing
    table = encoder.embeddings.token_embedding
    tokens = table(torch.tensor([tokenize(sd, prompt).ids], device=sd.device))  # (1, 77, D)
    for edit in edits:
        if edit.kind == "mix":
            if not 0 <= edit.token < table.num_embeddings:
                raise ValueError(f"There is no token {edit.token}; ids run from 0 to {table.num_embeddings - 1}.")
            tokens[:, edit.position] = (1 - edit.share) * tokens[:, edit.position] + edit.share * table.weight[edit.token]
        elif edit.kind == "blank":
            tokens[:, edit.position] = table.weight[sd.tokenizer.pad_token_id]
        elif edit.kind == "vector":
            if len(edit.vector) != tokens.shape[-1]:
                raise ValueError(
                    f"The vector has {len(edit.vector)} numbers, this text encoder {tokens.shape[-1]}; use one made for it."
                )
            tokens[:, edit.position] = torch.tensor(edit.vector, device=tokens.device, dtype=tokens.dtype)

    h = encoder.embeddings(inputs_embeds=tokens)  # plus the position embeddings
    stages = [tokens, h]
    mask = create_causal_mask(config=encoder.config, inputs_embeds=h, attention_mask=None, past_key_values=None)
    for layer in encoder.encoder.layers:
        h = layer(h, attention_mask=mask, is_causal=True)
        stages.append(h)
    z = encoder.final_layer_norm(h)
    for edit in edits:
        if edit.kind == "weight":
            z[:, edit.position] = edit.share * z[:, edit.position]
        elif edit.kind == "blend":
            z = (1 - edit.share) * z + edit.share * encode(sd, edit.words)
    return [*stages, z]


@torch.no_grad()
def self_attention(sd: StableDiffusion, prompt: str, edits: tuple[Edit, ...] = ()) -> Tensor:
    """Which tokens each token read, (layers, heads, 77, 77): row = who reads, column = who is read; a triangle, as nobody looks ahead."""
    maps = []
    stages = layers(sd, prompt, edits)
    parts: Any = sd.text_encoder.encoder.layers
    for layer, h in zip(parts, stages[1:], strict=False):
        attn, x = layer.self_attn, layer.layer_norm1(h)
        q, k = (p(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for p in (attn.q_proj, attn.k_proj))  # (1, heads, 77, d)
        scores = q @ k.transpose(-1, -2) * attn.scale
        ahead = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        maps.append(scores.masked_fill(ahead, -torch.inf).float().softmax(-1)[0])
    return torch.stack(maps)


def moved(a: Tensor, b: Tensor) -> Tensor:
    """How far each position's vector moved between two encodings, (77,): nothing before an edit at the input, something from it on."""
    return (a - b).float().norm(dim=-1)[0]
