"""A run's record: replay, memory, one file."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import toy_model

from core import latents, trace
from core.attention import Record
from core.conditioning import Inpaint, Pixels
from core.sampling import Request, denoise
from core.text import Edit
from core.trace import Trace


def run(sd, request, record=Record()):  # noqa: B008 (frozen)
    kept = Trace.start(sd, request)
    *_, last = kept.follow(denoise(sd, request, record))
    kept.finish(sd, last.x_next)
    return kept, last


def test_replay_equals_the_run(toy):
    request = Request("a dog", steps=4, guidance=3, scheduler="Euler")
    kept, _ = run(toy, request)
    for live, old in zip(denoise(toy, request, Record()), kept, strict=True):
        for name in ("x", "x_in", "eps_uncond", "eps_cond", "eps", "x0", "x_next"):
            assert torch.equal(getattr(live, name), getattr(old, name))
        assert (live.i, live.t, live.sigma, live.w) == (old.i, old.t, old.sigma, old.w)
        assert all(torch.equal(p.half(), old.attention[n]) for n, p in live.attention.items())


def test_the_picture_is_the_pipelines_to_the_byte(emoji):
    from conftest import pipeline_of

    kept, _ = run(emoji, Request("a fox on a blue background", seed=3, steps=4))
    source = torch.Generator().manual_seed(3)
    pipe = pipeline_of(emoji, "DDIM")
    theirs = pipe(
        "a fox on a blue background", num_inference_steps=4, guidance_scale=7.5, generator=source, output_type="np"
    ).images[0]
    assert torch.equal(kept.picture.permute(1, 2, 0), torch.from_numpy((theirs * 255).round().astype("uint8")))


def test_twenty_steps_stay_under_ten_megabytes(emoji):
    kept, _ = run(emoji, Request("a fox", steps=20))
    assert kept.nbytes < 10e6 and kept.attention_bytes > 0 and not kept.notes


def test_what_the_unet_saw_beside_the_latents_counts_once(toy):
    hole = np.zeros((64, 64), np.uint8)
    hole[:32] = 255
    inpainting = Inpaint(Pixels.of(np.zeros((64, 64, 3), np.uint8)), mask=Pixels.of(hole))
    kept, _ = run(toy_model(kind="inpaint"), Request("a dog", steps=2, source=inpainting))
    steps = [dataclasses.replace(step, channels=None) for step in kept]
    assert kept.nbytes - dataclasses.replace(kept, steps=steps).nbytes == 5 * 8 * 8 * 4


def test_over_budget_the_picture_is_kept_and_it_is_said(toy, monkeypatch):
    monkeypatch.setattr(trace, "MEGABYTES", 0.1)
    kept, _ = run(toy, Request("a dog", steps=6))
    assert len(kept) == 6 and kept.picture is not None
    assert kept.steps[0].attention and not kept.steps[-1].attention
    assert kept.notes == ["Attention was kept up to the budget of 0.1 MB; later steps have none."]


@pytest.mark.parametrize("guidance", [0, 1, 4])
def test_one_file_holds_it_all(toy, tmp_path, guidance):
    kept, _ = run(toy, Request("a dog", "a cat", steps=3, guidance=guidance, interval=(0, 2)))
    kept.save(tmp_path / "run.safetensors")
    back = Trace.open(tmp_path / "run.safetensors")
    for name in ("request", "made_by", "tokens", "negative_tokens", "layers", "stopped", "notes", "seconds"):
        assert getattr(back, name) == getattr(kept, name)
    assert torch.equal(back.picture, kept.picture)
    for a, b in zip(kept, back, strict=True):
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, torch.Tensor):
                # x_in is worked out again; everything else is the same to the bit
                assert (x - y).abs().max() <= (1e-5 if field.name in ("eps", "x_in") else 0), field.name
            elif field.name != "attention":
                assert x == y
        assert all(torch.equal(a.attention[n], b.attention[n]) for n in a.attention)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a saved run"):
        Trace.open(tmp_path / "no.safetensors")


def test_previews_need_no_model(toy):
    kept, last = run(toy, Request("a dog", steps=2))
    live = trace.to_uint8(latents.preview(toy, last.x0))[0]
    kept_z = kept.steps[1].x0
    rgb = torch.einsum("bchw,cr->brhw", kept_z, kept.preview[:4]) + kept.preview[4][None, :, None, None]
    assert torch.equal(trace.to_uint8(rgb)[0], live)


def test_word_maps_are_of_the_branch_that_read_the_words(toy):
    """At w = 0 only the negative prompt is read, at w = 1 only the prompt: the other's words were looked for nowhere."""
    kept, _ = run(toy, Request("a dog", "a cat", steps=2, guidance=2))
    layer = kept.layers[0]
    rows = [s.attention[layer] for s in kept]
    assert rows[0].shape[0] == 2 and kept.word_maps().shape == (77, 8, 8)
    cond = sum(p[1].float() for p in rows) / len(rows)  # (h w, 77)
    assert torch.allclose(kept.word_maps(layers=[layer]).flatten(1).T, cond, atol=1e-6)
    assert not torch.allclose(kept.word_maps(), kept.word_maps(negative=True))
    for w, missing in ((0, False), (1, True)):
        one, _ = run(toy, Request("a dog", "a cat", steps=2, guidance=w))
        assert one.word_maps(negative=not missing).shape == (77, 8, 8)
        with pytest.raises(ValueError, match="recorded no attention"):
            one.word_maps(negative=missing)


def test_settings_say_everything(toy):
    kept, _ = run(toy, Request("a dog", steps=2))
    assert {"prompt", "seed", "scheduler", "model", "source", "revision", "licence", "device"} <= set(kept.settings())


def test_a_saved_run_keeps_its_edits(toy, tmp_path):
    edits = (Edit("drop", 1), Edit("vector", 2, vector=(0.25,) * 16, words="bird"))
    kept, _ = run(toy, Request("a dog", steps=1, edits=edits), None)
    kept.save(tmp_path / "run.safetensors")
    assert Trace.open(tmp_path / "run.safetensors").request == kept.request
    assert Request.of(json.loads(json.dumps(kept.settings()))).edits == edits
