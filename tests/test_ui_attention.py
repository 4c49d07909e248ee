"""The Attention tab's views as functions of a small Trace, against the recorded maps themselves."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from core import attention as maths
from core.attention import Record
from core.sampling import Request, denoise
from core.trace import Trace
from ui import attention, common, texts

FOX, HAT = 2, 6  # the words' places in "a fox in a top hat"


def draw(sd, record=True, **changes) -> Trace:
    request = replace(Request("a fox in a top hat", "a banana", steps=4, guidance=4.0, model="toy"), **changes)
    run = Trace.start(sd, request)
    *_, last = run.follow(denoise(sd, request, Record() if record else None))
    run.finish(sd, last.x_next)
    return run


@pytest.fixture(scope="module")
def run(toy) -> Trace:
    return draw(toy)


def numbers(told: dict) -> np.ndarray:
    """What the script reads: (steps, k, h, w)."""
    halves = np.frombuffer(base64.b64decode(told["data"]), np.float16).astype(np.float32)
    return halves.reshape(-1, told["k"], told["h"], told["w"])


def no_other(job: str) -> Trace:
    raise ValueError("This run is no longer kept; make it again from its settings.")


# --- what there is --------------------------------------------------------------------------------------------------------------


def test_names_share_out_all_77(run):
    names = attention.names_of(run.tokens)
    assert [n["kind"] for n in names] == ["start", *["word"] * 6, "end", "padding"]
    assert sorted(k for n in names for k in n["positions"]) == list(range(77))
    assert [n["word"] for n in names if n["kind"] == "word"] == ["a", "fox", "in", "a", "top", "hat"]


def test_the_overview_tells_the_steps_layers_and_memory(run):
    told = attention.overview(run, "one", [("one", run), ("two", run)], "en")
    assert told["kind"] == "run" and told["at"] == {"cond": [0, 1, 2, 3], "uncond": [0, 1, 2, 3]}
    assert {(layer["h"], layer["w"]) for layer in told["layers"]} == {(8, 8), (4, 4)}
    assert told["bytes"] == run.attention_bytes and told["budget"] == 64 * 2**20
    assert [job for job, _ in told["runs"]] == ["two"], "not itself"
    assert "<" not in common.packed(told)


@pytest.mark.parametrize("w, missing", [(1.0, "uncond"), (0.0, "cond")])
def test_a_branch_that_did_not_run_has_no_steps(toy, w, missing):
    told = attention.overview(draw(toy, guidance=w), "one", [], "en")
    assert told["at"][missing] == [] and len(told["at"][{"cond": "uncond", "uncond": "cond"}[missing]]) == 4


def test_an_interval_leaves_the_branch_its_steps(toy):
    run = draw(toy, interval=(1, 3))
    assert attention.recorded(run, "uncond") == [1, 2] and attention.recorded(run, "cond") == [0, 1, 2, 3]
    theirs, ours = (
        numbers(attention.volume(run, run.layers[0], "uncond")),
        run.steps[2].attention[run.layers[0]][0].float().numpy(),
    )
    assert np.allclose(theirs[1, 0].ravel(), ours[:, 0], atol=1e-3), "the branch's own row"


def test_a_run_without_attention_says_so_and_can_be_recorded_later(toy):
    bare, whole = draw(toy, record=False), draw(toy)
    told = attention.overview(bare, "one", [], "en")
    rows = []
    hook = toy.unet.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    assert list(bare.record_again(toy)) == [0, 1, 2, 3]
    hook.remove()
    assert told["kind"] == "bare" and told["passes"] == sum(rows), "it costs what the button says"
    for a, b in zip(bare, whole, strict=True):
        assert a.attention.keys() == b.attention.keys()
        assert all((a.attention[layer].float() - b.attention[layer].float()).abs().max() < 2e-3 for layer in a.attention)


# --- maps -----------------------------------------------------------------------------------------------------------------------


def test_the_shares_averaged_over_all_layers_add_up_to_one(run):
    at = attention.recorded(run, "cond")
    for layer in ("", run.layers[0]):
        shares = attention.spent(run, at, layer, "cond")
        assert shares.shape == (len(at), 77) and torch.allclose(shares.sum(1), torch.ones(len(at)), atol=2e-3)
    wanted = torch.stack([p[-1].float().mean(0) for p in run.steps[at[0]].attention.values()]).mean(0)
    assert torch.allclose(attention.spent(run, at, "", "cond")[0], wanted)


def test_a_layer_s_maps_are_the_recorded_numbers(run):
    layer = run.layers[0]
    told = attention.volume(run, layer, "cond")
    found, p = numbers(told), run.steps[2].attention[layer][-1].numpy().astype(np.float32)  # (h w, 77)
    assert found.shape == (4, 9, told["h"], told["w"])
    assert np.allclose(found[2, 2].ravel(), p[:, FOX], atol=1e-6), "one token a word: to the bit"
    assert np.allclose(found[2, -1].ravel(), p[:, 8:].sum(1), atol=2e-3), "the padding as one"
    assert np.allclose(found.sum(1), 1, atol=5e-3), "every spot shares out 1"


def test_all_layers_are_core_s_heat_maps(run):
    found = numbers(attention.volume(run, "", "cond"))
    theirs = run.word_maps(steps=[1])
    assert np.allclose(found[1, 2], theirs[FOX].numpy(), atol=1e-3)
    assert np.allclose(found.mean(0)[2], run.word_maps()[FOX].numpy(), atol=1e-3), "and their mean over the steps"


def test_the_branch_without_the_prompt_shows_its_own_words(run):
    names = attention.names_of(run.negative_tokens)
    found = numbers(attention.volume(run, "", "uncond"))
    assert [n["word"] for n in names if n["word"]] == ["a", "banana"] and found.shape[1] == len(names)
    assert np.allclose(found.mean(0)[2], run.word_maps(negative=True)[2].numpy(), atol=1e-3)


def test_any_of_the_77_can_be_seen_alone(run):
    for position in (0, 7, 76):
        found = numbers(attention.volume(run, "", "cond", position))
        assert np.allclose(found[3, 0], run.word_maps(steps=[3])[position].numpy(), atol=1e-3)


def test_the_shares_of_the_77_add_up_to_one(run):
    told = attention.volume(run, run.layers[1], "cond")
    spent = np.frombuffer(base64.b64decode(told["spent"]), np.float16).astype(np.float32).reshape(4, 77)
    p = run.steps[0].attention[run.layers[1]][-1].float().numpy()
    assert np.allclose(spent.sum(1), 1, atol=5e-3) and np.allclose(spent[0], p.mean(0), atol=1e-3)


def test_heavy_maps_are_averaged_over_squares_until_they_fit(run, monkeypatch):
    whole = numbers(attention.volume(run, "", "cond"))
    monkeypatch.setattr(attention, "HEAVY", whole.size * 2 // 3)
    told = attention.volume(run, "", "cond")
    assert (told["h"], told["w"]) == (4, 4)
    assert np.allclose(numbers(told), whole.reshape(4, 9, 4, 2, 4, 2).mean((3, 5)), atol=1e-3)


# --- masks ----------------------------------------------------------------------------------------------------------------------


def test_the_best_step_and_layer_is_the_one_whose_map_made_the_mask(run):
    layer = run.layers[2]
    made = attention.maps_of(run, [1], layer, "cond", attention.gather_of([[FOX]]))[0]
    mask = maths.upper(made, (32, 32))[0]
    told = attention.judge(run, [FOX], "cond", mask, 0.5)
    scores = np.array(told["scores"])
    assert scores.shape == (1 + len(run.layers), 5) and scores.min() >= 0 and scores.max() == 1
    assert told["best"] == {"layer": layer, "step": 1, "iou": 1.0} and told["rows"][0] == ""
    assert scores[told["rows"].index(layer), 1] == 1


def test_a_mask_for_inpainting_is_black_and_white_at_the_picture_s_size(run):
    mask = attention.mask_of(run, [HAT], "", "cond", None, 0.5)
    heat = run.word_maps()[HAT]
    assert mask.shape == run.picture.shape[1:] and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, maths.upper(heat[None], mask.shape)[0].numpy())
    told = attention.mask_view(mask)
    png = Image.open(io.BytesIO(base64.b64decode(told["png"].split(",")[1])))
    assert np.array_equal(np.asarray(png), mask) and told["part"] == pytest.approx((mask > 0).mean(), abs=1e-4)
    higher = attention.mask_of(run, [HAT], "", "cond", None, 0.9)
    assert (higher <= mask).all() and higher.sum() < mask.sum()


# --- two words, two runs --------------------------------------------------------------------------------------------------------


def test_a_word_lies_where_it_lies(run):
    told = attention.overlap(run, [FOX], [FOX], "", "cond")
    assert told["overlap"] == [1.0] * 5
    told = attention.overlap(run, [FOX], [HAT], run.layers[0], "cond")
    a, b = (run.steps[2].attention[run.layers[0]][-1][:, k].float() for k in (FOX, HAT))
    assert told["overlap"][2] == pytest.approx(float(torch.minimum(a / a.sum(), b / b.sum()).sum()), abs=1e-3)


def test_the_same_word_in_another_run(toy, run):
    other = draw(toy, prompt="a red hat", steps=8, seed=5)
    told = attention.elsewhere(run, other, "hat", "", "cond")
    assert [abs(other.steps[j].t - s.t) for j, s in zip(told["steps"], run, strict=True)] == [
        min(abs(o.t - s.t) for o in other) for s in run
    ]
    assert np.allclose(numbers(told)[1, 0], other.word_maps(steps=[told["steps"][1]])[3].numpy(), atol=1e-3)
    assert len(told["overlap"]) == 5 and 0 < told["overlap"][-1] < 1
    assert attention.elsewhere(run, run, "hat", "", "cond")["overlap"] == [1.0] * 5
    with pytest.raises(ValueError, match='no word "fox"'):
        attention.elsewhere(run, other, "fox", "", "cond")


def test_runs_of_another_size_are_shown_but_not_laid_over_each_other(toy, run):
    told = attention.elsewhere(run, draw(toy, width=96), "hat", "", "cond")
    assert (told["h"], told["w"]) == (8, 12) and "overlap" not in told


# --- one more pass --------------------------------------------------------------------------------------------------------------


def test_heads_and_self_attention_come_from_the_same_pass(toy, run):
    looked = run.look_again(toy, 2, attention.EVERYTHING)
    told = attention.heads(run, 2, looked, [HAT], "cond")
    assert [row["name"] for row in told["layers"]] == list(run.layers)
    for row in told["layers"]:
        found = numbers(row)[0]  # (heads, h, w)
        kept = run.steps[2].attention[row["name"]][-1][:, HAT].float().numpy()
        assert found.shape[0] == 2 and np.allclose(found.mean(0).ravel(), kept, atol=1e-3), "their mean is what was kept"
    for row in attention.itself(run, 2, looked, "uncond")["layers"]:
        assert np.allclose(numbers(row)[0].reshape(row["k"], -1).sum(1), 1, atol=5e-3), "each spot shares out 1 here too"


def test_a_branch_that_was_not_asked_at_a_step_is_not_taken_for_the_other(toy):
    run = draw(toy, interval=(1, 3))
    looked = run.look_again(toy, 0, attention.EVERYTHING)
    assert attention.heads(run, 0, looked, [HAT], "cond")["layers"]
    with pytest.raises(ValueError, match="not asked in this branch") as error:
        attention.heads(run, 0, looked, [HAT], "uncond")
    assert texts.sentence("ja", error.value) != str(error.value)


def test_a_layer_that_was_not_kept_is_refused(toy, run):
    some = Trace(**{**vars(run), "steps": [replace(s, attention={run.layers[1]: s.attention[run.layers[1]]}) for s in run]})
    told = attention.overview(some, "one", [], "en")
    assert [layer["name"] for layer in told["layers"]] == [run.layers[1]] and told["of"] == len(run.layers)
    with pytest.raises(ValueError, match="recorded no attention"):
        attention.volume(some, run.layers[0], "cond")
    assert attention.judge(some, [FOX], "cond", torch.ones(8, 8, dtype=torch.bool), 0.5)["rows"] == ["", run.layers[1]]


def test_layers_are_numbered_within_their_block(run):
    told = attention.overview(run, "one", [], "en")["layers"]
    named = [(layer["side"], layer["h"], layer["number"]) for layer in told]
    assert named == [("down", 8, 0), ("down", 4, 0), ("mid", 4, 0), ("up", 4, 1), ("up", 4, 2), ("up", 8, 1), ("up", 8, 2)]


def test_the_last_pass_is_kept_and_old_ones_go():
    passes, made = attention.Passes(room=100), []

    def make(n: int):
        made.append(n)
        return {"a": torch.zeros(n, dtype=torch.uint8)}

    for one, step, n in (
        ("x", 1, 60),
        ("x", 1, 60),
        ("x", 2, 30),
        ("x", 1, 60),
        ("x", 3, 90),
        ("x", 3, 90),
        ("x", 1, 60),
        ("x", 1, 400),
    ):
        passes.get(one, step, lambda n=n: make(n))
    assert made == [60, 30, 90, 60]


# --- what comes from outside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        None,
        [],
        {"kind": "rm"},
        {"kind": "volume", "layer": "elsewhere", "branch": "cond"},
        {"kind": "volume", "layer": "", "branch": "third"},
        {"kind": "volume", "layer": "", "branch": "cond", "position": 77},
        {"kind": "volume", "layer": "", "branch": "cond", "position": True},
        {"kind": "mask", "layer": "", "branch": "cond", "positions": [1], "step": 4, "share": 0.5},
        {"kind": "mask", "layer": "", "branch": "cond", "positions": [], "step": 1, "share": 0.5},
        {"kind": "mask", "layer": "", "branch": "cond", "positions": [1], "step": 1, "share": float("nan")},
        {"kind": "judge", "branch": "cond", "positions": [1], "share": 0.5, "mask": "!", "h": 4, "w": 4},
        {"kind": "judge", "branch": "cond", "positions": [1], "share": 0.5, "mask": "AA==", "h": 4, "w": 4},
        {"kind": "judge", "branch": "cond", "positions": [1], "share": 0.5, "mask": "", "h": 10**6, "w": 4},
        {"kind": "other", "job": "x", "branch": "cond", "layer": "", "word": "hat"},
        {"kind": "heads", "branch": "cond", "positions": [1]},
    ],
)
def test_questions_that_make_no_sense_are_refused_with_a_sentence(run, asked):
    (told,) = attention.answers([asked], lambda one: attention.answer(run, one, no_other), "ja")
    assert told["error"] and not told["error"].startswith("This"), "in the visitor's language"


def test_questions_are_answered_under_their_keys(run):
    bits = base64.b64encode(np.packbits(np.eye(8, dtype=np.uint8)).tobytes()).decode()
    questions = [
        {"key": "1", "kind": "volume", "layer": "", "branch": "cond", "position": None},
        {"key": "2", "kind": "judge", "branch": "cond", "positions": [FOX], "share": 0.5, "mask": bits, "h": 8, "w": 8},
        {"key": "3", "kind": "overlap", "branch": "cond", "layer": "", "positions": [FOX], "others": [HAT]},
        {"key": "4", "kind": "judge", "branch": "cond", "positions": [FOX], "share": 0.5, "mask": "AAAAAAAAAAA=", "h": 8, "w": 8},
    ]
    told = {a["key"]: a for a in attention.answers(questions, lambda one: attention.answer(run, one, no_other), "en")}
    assert numbers(told["1"]).shape == (4, 9, 8, 8) and len(told["3"]["overlap"]) == 5
    theirs = maths.iou(run.word_maps(steps=[0])[FOX][None], torch.eye(8, dtype=torch.bool))
    assert told["2"]["scores"][0][0] == pytest.approx(float(theirs), abs=1e-3)
    assert "The mask is empty" in told["4"]["error"]


def test_every_refusal_of_this_tab_has_its_japanese(toy, run):
    changed = Trace(**{**vars(run), "steps": [replace(s, eps=s.eps + 1) for s in run]})
    for refused in (
        lambda: changed.look_again(toy, 0, Record()),
        lambda: maths.in_time([], size=(2, 2)),
        lambda: maths.iou(torch.zeros(1, 2, 2), torch.zeros(2, 2, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError) as error:
            refused()
        assert texts.sentence("ja", error.value) != str(error.value)
    assert texts.sentence("ja", "Attention was kept up to the budget of 64 MB; later steps have none.").startswith("アテンション")
