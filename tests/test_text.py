"""Prompt -> tokens -> embeddings."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
from conftest import pipeline_of

from core import text
from core.text import Edit


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
    """A tokenizer keeps the padding and truncation of its last call: without the lock, the half that pads spoils the half that counts."""
    prompts = [f"{n} foxes on a background of {n} colours" * (1 + n % 3) for n in range(16)]
    right = [text.tokenize(emoji, p) for p in prompts]
    padded = [t.ids for t in right]

    def work(k):
        wrong = 0
        for i in range(250):
            n = (k + i) % 16
            if k % 2:
                wrong += text.tokenize(emoji, prompts[n]) != right[n]
            else:
                with emoji.tokenizer_lock:
                    ids = emoji.tokenizer(prompts[n], padding="max_length", max_length=77, truncation=True).input_ids
                wrong += ids != padded[n]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0


# --- between the words and the UNet ---------------------------------------------------------------------------------------------

PROMPT = "A picture of a puppy on the beach"
PUPPY, CAT, SKUNK = 5, 2368, 42194


def test_an_edit_that_changes_nothing_changes_no_bit(toy):
    assert torch.equal(text.layers(toy, PROMPT)[-1], text.encode(toy, PROMPT))
    assert torch.equal(text.encode(toy, PROMPT, (Edit("mix", PUPPY, token=CAT, share=0),)), text.encode(toy, PROMPT))


def test_a_swapped_token_is_the_other_prompt(toy):
    swapped = text.encode(toy, PROMPT, (Edit("mix", PUPPY, token=CAT),))
    assert torch.allclose(swapped, text.encode(toy, PROMPT.replace("puppy", "cat")), atol=1e-6)


@pytest.mark.parametrize(
    "edit",
    [
        Edit("mix", PUPPY, token=SKUNK, share=0.5),
        Edit("blank", PUPPY),
        Edit("drop", PUPPY),
        Edit("vector", PUPPY, vector=(1.0,) * 16),
        Edit("vector", PUPPY, vector=(1.0, *[0.0] * 31)),
    ],
)
def test_nothing_before_an_edit_moves_and_everything_from_it_on_does(toy, edit):
    moved = text.moved(text.encode(toy, PROMPT), text.encode(toy, PROMPT, (edit,)))
    assert moved[:PUPPY].max() == 0
    assert moved[PUPPY:].min() > 0


def test_edits_at_the_output(toy):
    own, other = text.encode(toy, "A mouse"), text.encode(toy, "A leopard")
    mixed = text.encode(toy, "A mouse", (Edit("blend", words="A leopard", share=0.65),))
    assert torch.allclose(mixed, 0.35 * own + 0.65 * other, atol=1e-6)
    heavier = text.encode(toy, "A mouse", (Edit("weight", 2, share=1.5),))
    assert torch.allclose(heavier[:, 2], 1.5 * own[:, 2]) and text.moved(heavier, own)[[0, 1, 3]].max() == 0


def test_stages_lead_from_the_table_to_the_unet(toy):
    stages = text.layers(toy, PROMPT)
    ids = torch.tensor(text.tokenize(toy, PROMPT).ids)
    assert torch.equal(stages[0][0], toy.text_encoder.get_input_embeddings().weight[ids])
    assert torch.allclose(stages[1] - stages[0], toy.text_encoder.embeddings.position_embedding.weight[None], atol=1e-6)
    assert len(stages) == 2 + toy.text_encoder.config.num_hidden_layers + 1
    theirs = toy.text_encoder(ids[None], output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(stages[1:], theirs, strict=False))


def test_self_attention_is_a_triangle_and_equals_transformers(toy):
    from conftest import toy_model

    maps = text.self_attention(toy, PROMPT)
    assert maps.shape == (2, 2, 77, 77) and maps.triu(1).max() == 0
    assert (maps.sum(-1) - 1).abs().max() < 1e-5
    eager = toy_model().text_encoder  # one of our own: the setting below is the model's
    eager.set_attn_implementation("eager")
    theirs = eager(torch.tensor([text.tokenize(toy, PROMPT).ids]), output_attentions=True).attentions
    assert (maps - torch.cat(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"kind": "magic"}, "no edit 'magic'"),
        ({"kind": "mix", "position": 77}, "0 to 76"),
        ({"kind": "mix", "share": 2.0}, "from 0 to 1"),
        ({"kind": "mix", "share": float("nan")}, "from 0 to 1"),
        ({"kind": "mix", "share": "half"}, "from 0 to 1"),
        ({"kind": "weight", "share": 4.5}, "from 0 to 4"),
        ({"kind": "mix", "position": "1"}, "0 to 76"),
        ({"kind": "mix", "token": 1.5}, "whole number"),
        ({"kind": "blend", "words": None}, "not text"),
        ({"kind": "vector", "vector": (1.0, float("inf"))}, "no finite number"),
        ({"kind": "vector", "vector": [1.0]}, "no finite number"),
    ],
)
def test_wrong_edits_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Edit(**wrong)


def test_edits_that_do_not_fit_the_model_are_refused(toy):
    with pytest.raises(ValueError, match="3 numbers, this text encoder 16"):
        text.encode(toy, PROMPT, (Edit("vector", 1, vector=(1.0, 2.0, 3.0)),))
    with pytest.raises(ValueError, match="no token 99999"):
        text.encode(toy, PROMPT, (Edit("mix", 1, token=99999),))


def test_a_dropped_token_is_the_prompt_without_it(toy):
    dropped = text.encode(toy, PROMPT, (Edit("drop", PUPPY),))
    assert torch.allclose(dropped, text.encode(toy, PROMPT.replace("puppy ", "")), atol=1e-6)
    # Positions are the typed prompt's: "on" stands at 6, and is weighed where it has moved to.
    heavier = text.encode(toy, PROMPT, (Edit("weight", 6, share=2), Edit("drop", PUPPY)))
    assert text.moved(heavier, dropped).nonzero().flatten().tolist() == [5]
    assert torch.equal(text.encode(toy, PROMPT, (Edit("drop", PUPPY), Edit("weight", PUPPY, share=2))), dropped)


def test_several_vectors_stand_for_one_word_and_the_rest_moves_on(toy):
    table = toy.text_encoder.get_input_embeddings().weight
    both = tuple(table[[CAT, SKUNK]].flatten().tolist())
    long = text.encode(toy, PROMPT, (Edit("vector", PUPPY, vector=both),))
    assert torch.allclose(long, text.encode(toy, PROMPT.replace("puppy", "cat skunk")), atol=1e-6)
    full = " ".join(["a"] * 75)
    with pytest.raises(ValueError, match="has 78 tokens, and 77 are read"):
        text.encode(toy, full, (Edit("vector", 3, vector=both),))


def test_a_word_that_is_one_token_and_back(toy):
    assert text.token_of(toy, " cat ") == CAT and text.piece_of(toy, CAT) == "cat"
    with pytest.raises(ValueError, match=r"'flooble' is 2 tokens \(floo, ble\)"):
        text.token_of(toy, "flooble")
    with pytest.raises(ValueError, match="is no token"):
        text.token_of(toy, " ")


def test_cosine_is_that_of_the_angle():
    a = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    b = torch.tensor([[0.0, 2.0], [-5.0, 0.0]])
    assert torch.allclose(text.cosine(a, b), torch.tensor([[0.0, -1.0], [0.5**0.5, -(0.5**0.5)]]))


# --- textual inversion ------------------------------------------------------------------------------------------------------------


def saved(**tensors) -> bytes:
    return safetensors.torch.save(tensors)


def test_an_inversion_is_read_in_both_layouts_and_written(tmp_path):
    vectors = torch.randn(2, 16)
    name, read = text.read_inversion(text.inversion_file("<bird>", vectors), 16)
    assert name == "<bird>" and torch.equal(read, vectors)
    name, read = text.read_inversion(saved(emb_params=vectors.half()), 16)
    assert torch.equal(read, vectors.half().float())
    path = tmp_path / "one.safetensors"
    path.write_bytes(saved(word=vectors[0], step=torch.tensor(3)))
    assert torch.equal(text.read_inversion(path, 16)[1], vectors[:1])


def test_a_words_own_row_as_an_inversion_changes_nothing(toy):
    row = toy.text_encoder.get_input_embeddings().weight[6829]
    _, vectors = text.read_inversion(text.inversion_file("<puppy>", row[None]), 16)
    edit = Edit("vector", PUPPY, vector=tuple(vectors.flatten().tolist()))
    assert torch.equal(text.encode(toy, PROMPT, (edit,)), text.encode(toy, PROMPT))


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (b"hello", "not a safetensors file"),
        (b"\x80\x04K\x01.", "not a safetensors file"),  # a pickle
        (b"\0" * 2**20 + b"\0", "has 1.0 MB"),
        (saved(word=torch.zeros(1, 768)), "is 768 wide, this model's text encoder 16"),
        (saved(a=torch.zeros(16), b=torch.zeros(16)), "holds 2 embeddings"),
        (saved(step=torch.tensor(3)), "holds no embedding"),
        (saved(word=torch.zeros(17, 16)), "17 vectors for one word; at most 16"),
        (saved(word=torch.full((16,), float("nan"))), "no finite number"),
    ],
)
def test_other_files_are_refused(file, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        text.read_inversion(file, 16)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
