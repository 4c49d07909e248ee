"""The Text tab's views as plain values, and every statement that it makes about numbers."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from core import text
from core.attention import Record
from core.engine import LocalEngine
from core.sampling import Request, denoise
from core.text import Edit
from core.trace import Trace
from ui import text as tab
from ui import texts

PROMPT = "a picture of a puppy on the beach"
PUPPY, CAT = 5, 2368
SWAP = Edit("mix", PUPPY, token=CAT)


def numbers(map_: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(map_["data"]), np.float32).reshape(map_["h"], map_["w"])


def plain(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup)


def draw(sd, request: Request) -> Trace:
    kept = Trace.start(sd, request)
    *_, last = kept.follow(denoise(sd, request, Record()))
    kept.finish(sd, last.x_next)
    return kept


@pytest.fixture(scope="module")
def engine(toy):
    made = LocalEngine(lambda _: toy, allowed=("toy",))
    yield made
    made.close()


# --- the strips, the pipeline, the attention ----------------------------------------------------------------------------------------


def test_the_strips_show_all_77_and_the_cut_tail(toy):
    view = tab.lens(tab.read(toy, (PROMPT, ())), tab.read(toy, ("a " * 80, ())), 7.5, 2, "en")
    ids = [t["id"] for t in view["prompt"]["tokens"]]
    assert ids == text.tokenize(toy, PROMPT).ids and len(ids) == 77
    assert view["prompt"]["tokens"][PUPPY] == {"id": 6829, "piece": "puppy", "kind": "text", "word": 4}
    assert [t["kind"] for t in view["prompt"]["tokens"][8:12]] == ["text", "end", "padding", "padding"]
    assert view["prompt"]["used"] == 10 and view["prompt"]["cut"] == ""
    assert view["negative"]["cut"] == "a a a a a " and view["unread"] == ""


@pytest.mark.parametrize(("guidance", "unread"), [(0, "prompt"), (1, "negative"), (5, "")])
def test_it_says_which_prompt_a_run_did_not_read(toy, guidance, unread):
    reading = tab.read(toy, ("a dog", ()))
    assert tab.lens(reading, reading, guidance, 1, "en")["unread"] == unread


def test_the_pipeline_adds_up(toy):
    """Token plus position embedding is the sum, each drawn number is the encoder's own, each length its vector's."""
    stages = tab.stages(tab.read(toy, (PROMPT, ())))
    assert [(s["kind"], s["number"]) for s in stages] == [
        ("token", 0), ("position", 0), ("sum", 0), ("layer", 1), ("layer", 2), ("norm", 0)
    ]  # fmt: skip
    token, position, both, *_, last = (numbers(s["map"]) for s in stages)
    assert token.shape == (16, 14), "rows are numbers of the vector, columns ten tokens and four of padding"
    assert np.allclose(token + position, both, atol=1e-6)
    assert np.allclose(position.T, toy.text_encoder.embeddings.position_embedding.weight[:14].numpy(), atol=1e-6)
    encoded = text.encode(toy, PROMPT)[0]
    assert np.allclose(last.T, encoded[:14].numpy(), atol=1e-6)
    assert stages[-1]["lengths"] == pytest.approx(encoded.norm(dim=-1).tolist(), rel=1e-3) and len(stages[-1]["lengths"]) == 77
    assert [s["map"]["high"] for s in stages] == pytest.approx([3 * numbers(s["map"]).std(ddof=1) for s in stages], rel=1e-3)


def test_the_attention_drawn_is_the_encoders_with_the_mean_first(toy):
    branch = tab.branch(tab.read(toy, (PROMPT, ())))
    theirs = text.self_attention(toy, PROMPT)[:, :, :14, :14].numpy()
    assert len(branch["attention"]) == 2 and len(branch["attention"][0]) == 3
    for layer, maps in enumerate(branch["attention"]):
        mean, *heads = map(numbers, maps)
        assert np.allclose(heads, theirs[layer]) and np.allclose(mean, theirs[layer].mean(0), atol=1e-6)
        assert np.allclose(mean.sum(1), 1, atol=1e-5), "whoever is drawn reads none that is not"
        assert np.triu(mean, 1).max() == 0


# --- edits -----------------------------------------------------------------------------------------------------------------------


def test_the_leak_is_zero_before_the_edit_and_something_from_it_on(toy):
    before, after = tab.read(toy, (PROMPT, ())), tab.read(toy, (PROMPT, (SWAP,)))
    view = tab.edited((SWAP,), before, after, (None, None), "en")
    reach = numbers(view["reach"])
    assert reach.shape == (5, 77)
    assert reach[0].nonzero()[0].tolist() == [PUPPY] and reach[1].nonzero()[0].tolist() == [PUPPY], "so far no one has looked"
    assert reach[2:, :PUPPY].max() == 0 and reach[2:, PUPPY:].min() > 0
    moved = text.moved(text.encode(toy, PROMPT), text.encode(toy, PROMPT, (SWAP,)))
    share = moved / text.encode(toy, PROMPT)[0].norm(dim=-1)
    assert view["last"] == pytest.approx(share.tolist(), rel=1e-3)
    least, most = share[PUPPY:].min(), share.max()
    assert view["sentence"].startswith(
        f"Positions 0 to 4 moved by 0. All 72 from 5 to 76 moved, by {least:.2f} to {most:.2f} of their length"
    )


def test_edits_at_the_output_say_whom_they_reach(toy):
    before = tab.read(toy, (PROMPT, ()))

    def sentence(*edits: Edit) -> str:
        return tab.leak_sentence(tab.reach(before, tab.read(toy, (PROMPT, edits)))[-1], "en")

    assert sentence(Edit("weight", 5, share=1.5)).startswith(
        "1 of the 77 vectors moved, by 0.50 to 0.50 of their length: at position 5."
    )
    assert sentence(Edit("weight", 5, share=1)) == "Not one of the 77 vectors moved."
    assert sentence(Edit("mix", 0, token=CAT)).startswith("All 77 vectors moved")
    view = tab.edited((SWAP,), before, tab.read(toy, (PROMPT, (SWAP,))), (None, None), "en", unread=True)
    assert view["sentence"].endswith("With w = 0 the prompt is not read, so the picture stays the same.")


def test_an_edit_is_an_equation_with_its_numbers(toy):
    before = tab.read(toy, (PROMPT, ()))
    table = toy.text_encoder.get_input_embeddings().weight
    a, b = table[6829].norm(), table[CAT].norm()
    z = text.encode(toy, PROMPT)[0, PUPPY].norm()
    vectors = tuple([1.0] * 32)
    for edit, said in [
        (Edit("mix", PUPPY, token=CAT), f"e5 = 0 E[puppy] + 1 E[cat] lengths {a:.2f} and {b:.2f}"),
        (Edit("blank", PUPPY), f"e5 = E[padding] its length was {a:.2f}"),
        (Edit("drop", PUPPY), "e5 = E[puppy] all later tokens move up by one"),
        (Edit("vector", PUPPY, vector=vectors, words="<i>"), f"e5 = &lt;i&gt; 2 vectors, length 4.00 instead of {a:.2f}"),
        (Edit("weight", PUPPY, share=1.5), f"z5 ← 1.5 z5 puppy: lengths {z:.2f} and {1.5 * z:.2f}"),
        (Edit("blend", words="a <b> cat", share=0.65), "z ← 0.35 z + 0.65 z[a &lt;b&gt; cat] all 77 output vectors"),
    ]:
        after = tab.read(toy, (PROMPT, (edit,)))
        assert plain(tab.edit_html(edit, before, after, "en")) == said
    assert tab.edits_html((SWAP, Edit("drop", 1)), before, tab.read(toy, (PROMPT, (SWAP,))), "en").count("data-remove=") == 2


def test_a_mixture_can_be_saved_and_opened_again(toy):
    half = Edit("mix", PUPPY, token=CAT, share=0.5)
    markup = tab.edit_html(half, tab.read(toy, (PROMPT, ())), tab.read(toy, (PROMPT, (half,))), "en")
    assert 'download="puppy-cat.safetensors"' in markup
    file = base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1])
    name, vectors = text.read_inversion(file, 16)
    assert name == "<puppy-cat>" and list(safetensors.torch.load(file)) == ["<puppy-cat>"]
    again = Edit("vector", PUPPY, vector=tuple(vectors.flatten().tolist()))
    assert torch.allclose(text.encode(toy, PROMPT, (again,)), text.encode(toy, PROMPT, (half,)), atol=1e-5)


def test_the_controls_become_edits(toy):
    def made(kind, at="5", word="cat", share=1, weight=1.5, other="a cat", prompt=PROMPT):
        return tab.new_edits(toy, prompt, kind, at, word, share, weight, other)

    assert made("mix", share=0.5) == (Edit("mix", 5, token=CAT, share=0.5),)
    assert made("blend", share=0.65, at=None) == (Edit("blend", share=0.65, words="a cat"),)
    # A word of two pieces is weighed, blanked and dropped as a whole, whichever piece is selected.
    assert made("weight", prompt="a flooble dog", at="3") == (Edit("weight", 2, share=1.5), Edit("weight", 3, share=1.5))
    assert made("drop", prompt="a flooble dog", at="2") == (Edit("drop", 2), Edit("drop", 3))
    assert made("blank", at="30") == (Edit("blank", 30),), "padding can be edited, too"


def test_an_edit_replaces_the_earlier_one_of_its_place():
    first = (Edit("mix", 2, token=CAT), Edit("weight", 2, share=2), Edit("blend", words="x"), Edit("drop", 3))
    assert tab.joined(first, (Edit("blank", 2),)) == (*first[1:], Edit("blank", 2))
    assert tab.joined(first, (Edit("weight", 2, share=3),)) == (first[0], *first[2:], Edit("weight", 2, share=3))
    assert tab.joined(first, (Edit("blend", words="y"),)) == (*first[:2], first[3], Edit("blend", words="y"))


@pytest.mark.parametrize(
    ("prompt", "word", "other"),
    [("a panda in a top hat", "panda", "cat"), ("a cat", "cat", "fox"), ("cat and fox", "cat", "apple"), ("the flooble dog", "dog", "cat")],
)  # fmt: skip
def test_the_suggestion_swaps_a_word_that_says_something(toy, prompt, word, other):
    said, edit = tab.suggestion(toy, prompt)
    assert said == word and text.piece_of(toy, edit.token) == other
    assert text.tokenize(toy, prompt).tokens[edit.position].piece == word
    assert tab.swapped(toy, prompt, (said, edit)) == prompt.replace(word, other)


@pytest.mark.parametrize("prompt", ["", "a of the", "!!", "日本語"])
def test_where_no_word_says_anything_there_is_no_suggestion(toy, prompt):
    assert tab.suggestion(toy, prompt) is None and tab.swapped(toy, prompt, None) == prompt


def test_the_pair_is_found_among_the_runs_by_what_was_asked(toy):
    request = Request("a dog", steps=1, guidance=2, model="toy")
    base, other = draw(toy, request), draw(toy, replace(request, seed=1))
    edit = Edit("drop", 1)
    changed = draw(toy, replace(request, edits=(edit,)))
    stopped, forked = Trace.start(toy, request), draw(toy, request)
    forked.made_by["taken_up"] = "after step 1 of another run"
    runs = [("s", stopped), ("f", forked), ("o", other), ("c", changed), ("b", base)]
    assert tab.pair(runs, request, (edit,)) == [("b", base), ("c", changed)]
    assert tab.pair(runs, changed.request, (edit,)) == [("b", base), ("c", changed)], "whichever of the two is looked at"
    assert tab.pair(runs, request, ()) == [("b", base), None]
    assert tab.pair(runs, request, (Edit("drop", 2),)) == [("b", base), None]
    done, missing = tab.frame(base, None, "en"), tab.frame(None, None, "en")
    assert done["done"] and done["picture"].startswith("data:image/") and "seed 0" in done["said"]
    assert not missing["done"] and missing["picture"] == ""


# --- two prompts -------------------------------------------------------------------------------------------------------------------


def test_the_same_word_starts_as_the_same_vector_and_neighbours_change_it(toy):
    view = tab.comparison(tab.read(toy, ("a dog", ())), tab.read(toy, ("red dog dog", ())), "en")
    maps = [numbers(s["map"]) for s in view["stages"]]
    assert [s["kind"] for s in view["stages"]] == ["token", "sum", "layer", "layer", "norm"]
    assert maps[0].shape == (4, 5) and all((s["map"]["low"], s["map"]["high"]) == (-1, 1) for s in view["stages"])
    assert maps[0][2, 2:4] == pytest.approx([1, 1]) and maps[-1][2, 2] < 0.999
    a, b = text.encode(toy, "a dog")[0, 2], text.encode(toy, "red dog dog")[0, 3]
    assert maps[-1][2, 3] == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-5)
    assert [t["piece"] for t in view["columns"][1:4]] == ["red", "dog", "dog"]


# --- asking the model --------------------------------------------------------------------------------------------------------------


def test_what_was_read_is_kept_and_not_asked_again(toy, engine, monkeypatch):
    asked = []
    reader = tab.Reader(engine)
    ask = engine.ask
    monkeypatch.setattr(engine, "ask", lambda *args: asked.append(args) or ask(*args))
    first = reader("toy", "me", ("a dog", ()), ("a dog", (Edit("drop", 1),)), ("a dog", ()))
    assert first[0] is first[2] and len(asked) == 1
    assert reader("toy", "me", ("a dog", ()))[0] is first[0] and len(asked) == 1
    for k in range(tab.KEPT):
        reader("toy", "me", (f"dog {k}", ()))
    reader("toy", "me", ("a dog", ()))
    assert len(asked) == 2 + tab.KEPT
    with pytest.raises(ValueError, match="3 numbers, this text encoder 16"):
        reader("toy", "me", ("a dog", (Edit("vector", 1, vector=(1.0, 2.0, 3.0)),)))


# --- refusals, in the visitor's language -------------------------------------------------------------------------------------------


def refused(toy):
    def vector(count):
        return text.inversion_file("w", torch.zeros(count, 16))

    broken = safetensors.torch.save({"w": torch.full((16,), float("nan"))})
    return [
        lambda: text.token_of(toy, "flooble"),
        lambda: text.token_of(toy, ""),
        lambda: Edit("magic"),
        lambda: Edit("mix", 77),
        lambda: Edit("mix", token="x"),
        lambda: Edit("mix", share=2.0),
        lambda: Edit("blend", words=None),
        lambda: Edit("vector", vector=(float("inf"),)),
        lambda: text.read_inversion(b"\0" * 2**21, 16),
        lambda: text.read_inversion(b"no", 16),
        lambda: text.read_inversion(safetensors.torch.save({"a": torch.zeros(16), "b": torch.zeros(16)}), 16),
        lambda: text.read_inversion(safetensors.torch.save({"a": torch.tensor(1)}), 16),
        lambda: text.read_inversion(vector(1), 768),
        lambda: text.read_inversion(vector(17), 16),
        lambda: text.read_inversion(broken, 16),
        lambda: text.encode(toy, "a " * 75, (Edit("vector", 1, vector=(0.0,) * 32),)),
        lambda: text.encode(toy, "a", (Edit("mix", token=99999),)),
        lambda: text.encode(toy, "a", (Edit("vector", vector=(0.0,)),)),
        lambda: Request("a", edits=[1]),
        lambda: Request("a", edits=(Edit("drop"),) * 33),
        lambda: Request("a", edits=(Edit("blend", words="a" * 2001),)),
        lambda: tab.position_of(None),
        lambda: tab.new_edits(toy, "a dog", "mix", "1", "cat", "x", 1, ""),
        lambda: tab.new_edits(toy, "a dog", "weight", "1", "cat", 1, 9, ""),
        lambda: tab.new_edits(toy, "a dog", "magic", "1", "cat", 1, 1, ""),
    ]


@pytest.mark.parametrize("k", range(25))
def test_refusals_are_said_in_the_visitors_language(toy, k):
    with pytest.raises(ValueError) as error:
        refused(toy)[k]()
    japanese = texts.sentence("ja", error.value)
    assert re.search("[ぁ-ん]", japanese), f"no Japanese for: {error.value}"
    assert not re.search(r"\bThe\b|[{}]", japanese)
