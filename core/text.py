"""Text to numbers: prompt -> pieces (tokens) -> ids -> embeddings (1, 77, D).

CLIP reads 77 positions: a start mark, at most 75 pieces, an end mark, and padding. What does not fit is cut off; `tokenize` says what.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def mark(token: str, position: int, kind: str) -> Token:
        return Token(position, int(sd.tokenizer.convert_tokens_to_ids(token)), token, -1, kind)  # pyright: ignore[reportArgumentType]

    kept = length - 2
    tokens = [mark(str(sd.tokenizer.bos_token), 0, "start")]
    word = 0
    for token_id, piece, (a, b) in list(zip(full.input_ids, marks, full.offset_mapping, strict=True))[:kept]:
        tokens.append(Token(len(tokens), token_id, prompt[a:b], word, "text"))
        word += piece.endswith("</w>")
    tokens.append(mark(str(sd.tokenizer.eos_token), len(tokens), "end"))
    used = len(tokens)
    tokens += [mark(str(sd.tokenizer.pad_token), i, "padding") for i in range(used, length)]
    cut = prompt[full.offset_mapping[kept][0] :] if len(full.input_ids) > kept else ""
    return Tokens(tuple(tokens), used, cut)


@torch.no_grad()
def encode(sd: StableDiffusion, prompt: str) -> Tensor:
    """Prompt -> the text encoder's last layer after its final layer norm, (1, 77, D)."""
    ids = torch.tensor([tokenize(sd, prompt).ids], device=sd.device)  # (1, 77)
    return sd.text_encoder(ids)[0]  # (1, 77, D)
