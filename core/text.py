"""Text to numbers: prompt -> pieces (tokens) -> ids -> embeddings (1, 77, D).

CLIP reads 77 positions: a start mark, at most 75 pieces, an end mark, and padding. What does not fit is cut off; `tokenize` says what.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors.torch
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


def token_of(sd: StableDiffusion, word: str) -> int:
    """The id of a word that is one token. Raises ValueError that names the pieces of one that is more."""
    pieces = [t for t in tokenize(sd, word).tokens if t.kind == "text"]
    if len(pieces) != 1:
        what = f"{len(pieces)} tokens ({', '.join(t.piece for t in pieces[:5])})" if pieces else "no token"
        raise ValueError(f"The word {word.strip()[:40]!r} is {what}; give a word that is one token.")
    return pieces[0].id


def piece_of(sd: StableDiffusion, token: int) -> str:
    """What a row of the embedding table stands for: 2368 -> "cat"."""
    with sd.tokenizer_lock:
        return str(sd.tokenizer.decode([token])).strip()


VECTORS = 16  # the most that one word's textual inversion may have
INPUT, OUTPUT = ("mix", "blank", "drop", "vector"), ("weight", "blend")


@dataclass(frozen=True)
class Edit:
    """A change of the numbers between the words and the UNet, at a position of the prompt as it was typed.

    Four happen at the input of the text encoder, so that every later position feels them (it looks back only): another token mixed in, a
    token blanked (padding in its place) or dropped (the later ones move up), a token replaced by vectors of one's own. Two happen at its
    output: a position's vector weighed, and all of another prompt's vectors mixed in.
    """

    kind: str  # one of INPUT or OUTPUT
    position: int = 1  # which of the 77; not used by blend
    token: int = 0  # mix: the id of the other token
    share: float = 1.0  # mix: of the other token, 1 = replaced; weight: the factor, 0..4; blend: of the other prompt
    words: str = ""  # blend: the other prompt; vector: what it is called
    vector: tuple[float, ...] = ()  # vector: D numbers, as textual inversion learns them (Gal et al. 2022), or n times D

    def __post_init__(self) -> None:
        if self.kind not in (*INPUT, *OUTPUT):
            raise ValueError(f"There is no edit {str(self.kind)[:40]!r}; choose one of {', '.join((*INPUT, *OUTPUT))}.")
        if type(self.position) is not int or not 0 <= self.position <= 76:
            raise ValueError(f"Tokens stand at 0 to 76, not at {str(self.position)[:40]}; pick one of the prompt's tokens.")
        if type(self.token) is not int:
            raise ValueError(f"A token's id is a whole number, not {str(self.token)[:40]!r}; pick one of the vocabulary.")
        high = 4.0 if self.kind == "weight" else 1.0
        if type(self.share) not in (int, float) or not 0 <= self.share <= high:  # NaN is in no range
            raise ValueError(f"The share of a {self.kind} is {str(self.share)[:40]}; it must be from 0 to {high:g}.")
        if not isinstance(self.words, str):
            raise ValueError(f"The words of an edit are {type(self.words).__name__}, not text; type words.")
        if not isinstance(self.vector, tuple) or not all(type(v) in (int, float) and math.isfinite(v) for v in self.vector):
            raise ValueError("The vector of an edit holds something that is no finite number; use another file.")


def read_inversion(source: str | Path | bytes, width: int) -> tuple[str, Tensor]:
    """A textual-inversion file -> the word's name in it and its vectors, (n, width) float32.

    Reads safetensors alone: the older .pt and .bin files can run code when they are opened. Both layouts are known, a tensor under the
    word's own name and one called "emb_params".
    Raises ValueError with one sentence if the file is none, or was learned for another text encoder.
    """
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > 2**20:
        raise ValueError(f"The file has {size / 2**20:.1f} MB; a textual inversion has less than 1: choose another.")
    try:
        tensors = safetensors.torch.load(source if isinstance(source, bytes) else Path(source).read_bytes())
    except Exception as error:  # a foreign header leads to many kinds
        raise ValueError("This is not a safetensors file; choose a textual inversion saved as .safetensors.") from error
    vectors = {n: t.float() for n, t in tensors.items() if t.is_floating_point() and t.ndim in (1, 2) and t.numel()}
    fitting = {n: t.reshape(-1, width) for n, t in vectors.items() if t.shape[-1] == width}
    if len(fitting) != 1:
        if fitting:
            raise ValueError(f"The file holds {len(fitting)} embeddings; choose one that holds a single word's.")
        widths = " and ".join(str(w) for w in sorted({t.shape[-1] for t in vectors.values()})[:4])
        if not widths:
            raise ValueError("The file holds no embedding; choose a textual inversion saved as .safetensors.")
        raise ValueError(f"The embedding is {widths} wide, this model's text encoder {width}; choose one learned for it.")
    ((name, found),) = fitting.items()
    if len(found) > VECTORS:
        raise ValueError(f"The file holds {len(found)} vectors for one word; at most {VECTORS} are read: choose another.")
    if not found.isfinite().all():
        raise ValueError("The vector of an edit holds something that is no finite number; use another file.")
    return name, found


def inversion_file(name: str, vectors: Tensor) -> bytes:
    """Vectors (n, D) for a new word as the safetensors file that `read_inversion` and diffusers' load_textual_inversion read."""
    return safetensors.torch.save({name: vectors.float().cpu().contiguous()})


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

    Raises ValueError if an edit does not fit this text encoder, or makes the prompt too long.
    """
    encoder: Any = sd.text_encoder  # its parts are typed as modules or tensors, which says nothing
    table = encoder.embeddings.token_embedding
    prompt_tokens = tokenize(sd, prompt)
    length = len(prompt_tokens.ids)  # 77
    ids = torch.tensor(prompt_tokens.ids, device=sd.device)
    rows = list(table(ids).split(1))  # a position's (1, D), which an edit may make (n, D)
    for edit in edits:
        rows[edit.position] = edited(sd, rows[edit.position], edit)
    if (used := sum(len(r) for r in rows[: prompt_tokens.used])) > length:
        raise ValueError(f"With these edits the prompt has {used} tokens, and {length} are read; shorten it.")
    starts = [0, *accumulate(len(r) for r in rows)]  # where each position of the prompt has gone to
    padding = table.weight[sd.tokenizer.pad_token_id].expand(max(0, length - starts[-1]), -1)
    tokens = torch.cat([*rows, padding])[None, :length]  # (1, 77, D)

    h = encoder.embeddings(inputs_embeds=tokens)  # plus the position embeddings
    stages = [tokens, h]
    mask = create_causal_mask(config=encoder.config, inputs_embeds=h, attention_mask=None, past_key_values=None)
    for layer in encoder.encoder.layers:
        h = layer(h, attention_mask=mask, is_causal=True)
        stages.append(h)
    z = encoder.final_layer_norm(h)
    for edit in edits:
        if edit.kind == "weight":
            here = slice(starts[edit.position], starts[edit.position + 1])  # nothing where the token was dropped
            z[:, here] = edit.share * z[:, here]
        elif edit.kind == "blend":
            z = (1 - edit.share) * z + edit.share * encode(sd, edit.words)
    return [*stages, z]


def edited(sd: StableDiffusion, row: Tensor, edit: Edit) -> Tensor:
    """A position's token embedding (1, D) after an edit at the input: (1, D), none if dropped, or as many as a vector edit has."""
    weight: Any = sd.text_encoder.get_input_embeddings().weight  # (vocabulary, D)
    if edit.kind == "mix":
        if not 0 <= edit.token < len(weight):
            raise ValueError(f"There is no token {edit.token}; ids run from 0 to {len(weight) - 1}.")
        return (1 - edit.share) * row + edit.share * weight[edit.token]
    if edit.kind == "blank":
        return weight[torch.tensor([sd.tokenizer.pad_token_id])]
    if edit.kind == "drop":
        return row[:0]
    if edit.kind == "vector":
        n, width = len(edit.vector), row.shape[-1]
        if not n or n % width:
            raise ValueError(f"The vector has {n} numbers, this text encoder {width}; use one made for it.")
        return torch.tensor(edit.vector, device=row.device, dtype=row.dtype).view(-1, width)
    return row


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


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """How alike the vectors of two encodings point, (.., n, D) and (.., m, D) -> (.., n, m): 1 the same way, 0 across, -1 opposite."""
    a, b = (torch.nn.functional.normalize(v.float(), dim=-1) for v in (a, b))
    return a @ b.transpose(-1, -2)
