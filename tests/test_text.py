"""Prompt -> tokens -> embeddings."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import pipeline_of

from core import text


def test_the_courses_ids(emoji):
    assert text.tokenize(emoji, "A picture of a puppy").ids[:7] == [49406, 320, 1674, 539, 320, 6829, 49407]
    assert text.tokenize(emoji, "A painting of a flooble").ids[:8] == [49406, 320, 3086, 539, 320, 4062, 1059, 49407]


def test_pieces_of_a_word_belong_together(emoji):
    tokens = text.tokenize(emoji, "A painting of a flooble, please")
    assert ("flooble", (5, 6)) in tokens.words
    assert [t.piece for t in tokens.tokens[:3]] == ["<|startoftext|>", "A", "painting"]
    assert [t.kind for t in tokens.tokens[:2]] == ["start", "text"] and tokens.tokens[tokens.used].kind == "padding"
    assert len(tokens.tokens) == 77 and [t.position for t in tokens.tokens] == list(range(77))


@pytest.mark.parametrize("words", [0, 1, 74, 75, 76, 77, 300])
def test_what_is_counted_is_what_is_encoded(emoji, words):
    prompt = " ".join(f"w{i % 10}"[1:] for i in range(words))
    tokens = text.tokenize(emoji, prompt)
    theirs = emoji.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert tokens.ids == theirs
    assert tokens.used == min(words + 2, 77)
    assert tokens.cut == " ".join(prompt.split()[75:])


@pytest.mark.parametrize("prompt", ["日本語の猫", "a 🦊 fox", "مرحبا", "a\u200bb", "naïve  café", "A,b!c", "\n\ttabs"])
def test_any_script_encodes_as_the_pipeline_does(emoji, prompt):
    tokens = text.tokenize(emoji, prompt)
    assert tokens.ids == emoji.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    theirs, _ = pipeline_of(emoji, "DDIM").encode_prompt(prompt, "cpu", 1, False)
    assert torch.equal(text.encode(emoji, prompt), theirs)


def test_the_text_encoder_looks_back_only(emoji):
    a, b = text.encode(emoji, "a fox on a red background")[0], text.encode(emoji, "a fox on a blue background")[0]
    moved = (a - b).norm(dim=-1)
    assert moved[:5].max() == 0 and moved[5:].min() > 0


def test_eight_threads_get_their_own_ids(emoji):
    prompts = [f"{n} foxes on a background of {n} colours" * (1 + n % 3) for n in range(16)]
    right = [text.tokenize(emoji, p) for p in prompts]

    def work(k):
        return sum(text.tokenize(emoji, prompts[(k + i) % 16]) != right[(k + i) % 16] for i in range(250))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
