"""DreamBooth's recipe, loss, steps, checkpoints: on toy models of the real classes, to the bit."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import pipeline_of, toy_model
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import compute_snr
from PIL import Image, ImageFilter
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from core import attention, checkpoints, dreambooth, latents, likeness, models, preflight, previews
from core.dreambooth import Diverged, Learner, moments, random_of, train
from core.recipe import PRESETS, Recipe
from core.sampling import Request, denoise
from core.subjects import SAMPLES

RECIPE = Recipe(
    "a sks dog", "a dog", model="toy", rank=2, alpha=3.0, steps=6, batch=2, rate=1e-2, preview_every=0, checkpoint_every=2
)


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(0)
    return [Image.fromarray(torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()) for _ in range(6)]


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    """Previews of 4 steps instead of 20."""
    drawn = previews.drawn
    monkeypatch.setattr(previews, "drawn", lambda sd, asked, *rest: drawn(sd, [replace(r, steps=4) for r in asked], *rest))


def bits(*modules) -> list[torch.Tensor]:
    return [p.clone() for m in modules for p in m.state_dict().values()]


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def weights(folder, step):
    return load_file(checkpoints.weights_of(checkpoints.folder_of(folder, step)))


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the recipe -----------------------------------------------------------------------------------------------------------------------

WRONG = [
    {"instance_prompt": " "},
    {"class_prompt": "a" * 2001},
    {"model": ""},
    {"method": "magic"},
    {"rank": 0},
    {"alpha": math.nan},
    {"targets": ()},
    {"targets": ["to_q"]},
    {"text_encoder": 1},
    {"prior_weight": -1},
    {"class_images": 1001},
    {"steps": 2.5},
    {"batch": 65},
    {"rate": 0},
    {"schedule": "zigzag"},
    {"warmup": -1},
    {"snr_gamma": 0},
    {"noise_offset": 2},
    {"precision": "fp8"},
    {"seed": -1},
    {"prompts": ("a",) * 9},
    {"prompts": "a"},
    {"checkpoint_every": 0},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_recipe_is_refused_with_a_sentence(wrong):
    with pytest.raises(ValueError, match=r"^[A-Z0-9].*\.$"):
        replace(RECIPE, **wrong)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name):
    assert Recipe.of(json.loads(json.dumps({**PRESETS[name].facts(), "else": 1}))) == PRESETS[name]


def test_presets_are_those_of_the_course_and_of_diffusers():
    h = PRESETS["hackathon"]
    assert (h.method, h.rate, h.steps, h.batch, h.accumulation, h.grad_norm) == ("full", 2e-6, 400, 1, 1, 1.0)
    assert (h.gradient_checkpointing, h.adam8bit, h.seed, h.text_encoder, h.prior) == (True, True, 3434554, False, False)
    lora = PRESETS["diffusers LoRA"]
    assert (lora.method, lora.rate, lora.rank, lora.steps, lora.batch) == ("lora", 1e-4, 4, 500, 1)
    faces = PRESETS["faces"]
    assert faces.rate == 1e-6 and 800 <= faces.steps <= 1200 and faces.batch == 2 and faces.prior
    assert PRESETS["embedded"].model == "emoji"


UNITS = [
    ({}, "fp32"),
    ({"avx512_bf16": False, "amx_bf16": False}, "fp32"),
    ({"avx512_bf16": True}, "bf16"),
    ({"amx_bf16": True}, "bf16"),
]


@pytest.mark.parametrize("units, precision", UNITS, ids=str)
def test_auto_is_the_precision_that_a_processor_is_fast_at(units, precision, toy, pictures, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    auto = replace(RECIPE, precision="auto")
    assert PRESETS["embedded"].precision == "auto" and RECIPE.precision == "fp32"
    assert auto.precision_on(toy.device) == precision and auto.precision_on(torch.device("mps")) == "fp32"
    assert replace(RECIPE, precision="fp16").precision_on(toy.device) == "fp16", "who names one gets it"
    learners = [Learner(toy, replace(RECIPE, precision=one)) for one in ("auto", precision)]
    z = moments(toy, pictures[:2], False, toy.device)[:, 0]
    losses = [one.loss(z, None, random_of(0))[0] for one in learners]
    assert torch.equal(*losses) and learners[0].dtype == (torch.bfloat16 if precision == "bf16" else None)
    fast = AttnProcessor if precision == "bf16" else AttnProcessor2_0
    assert {type(one) for one in learners[0].unet.attn_processors.values()} == {fast}


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_a_gpu_whether_it_has_bfloat16_itself(native, toy, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or native)
    there = replace(toy, device=torch.device("cuda"))
    auto, plain = replace(RECIPE, precision="auto"), replace(RECIPE, precision="fp32")
    assert auto.precision_on(there.device) == ("bf16" if native else "fp32") and asked == [{"including_emulation": False}]
    assert preflight.frozen_bytes(there, auto) * (2 if native else 1) == preflight.frozen_bytes(there, plain)
    offered = [saving.changes["precision"] for saving in preflight.savings(there, plain) if "precision" in saving.changes]
    assert offered == ["bf16" if native else "fp16"]
    assert ("precision" in str(preflight.savings(there, auto))) is not native


def test_the_rare_word_is_what_the_class_prompt_does_not_say():
    assert RECIPE.identifier == "sks"
    assert replace(RECIPE, instance_prompt="a photo of zwx qrt dog").identifier == "photo of zwx qrt"
    assert replace(RECIPE, instance_prompt="a dog").identifier == ""
    assert replace(RECIPE, instance_prompt="A dog, sks.").identifier == "sks", "neither capitals nor punctuation make a name"


@pytest.mark.parametrize("prompt", ["A Sks dog", "a dog, sks", "a sks's dog", "a dog called sks7", "a my-sks dog"])
def test_the_rare_word_is_found_among_the_tokens_however_it_is_written(toy, prompt):
    recipe = replace(RECIPE, instance_prompt=prompt, class_prompt="a dog called")
    places = previews.places_of(toy, recipe.identifier, prompt)
    said = "".join(toy.tokenizer.decode([token]) for token in toy.tokenizer(prompt).input_ids[places[0] : places[-1] + 1])
    assert "sks" in said and "dog" not in said, said
    watch = previews.Watch(toy, recipe, [])
    _, maps = previews.drawn(toy, watch.asked[:1], attention.Record())
    assert watch.looked(toy, maps) is not None


# --- the loss -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy_kind", ["toy", "toy_sd2"])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_the_loss_is_that_of_diffusers_script(toy_kind, offset, pictures, request):
    """train_dreambooth.py's lines, with its scheduler, on the same numbers."""
    sd = request.getfixturevalue(toy_kind)
    recipe = replace(RECIPE, class_images=4, prior_weight=0.7, noise_offset=offset)
    learner = Learner(sd, recipe)
    z, prior = moments(sd, pictures[:4], False, sd.device)[:, 0].split(2)
    own, others = learner.loss(z, prior, random_of(1, 2, 3))

    random, scheduler = random_of(1, 2, 3), DDPMScheduler.from_config(sd.scheduler_config)
    model_input = torch.cat([z, prior])
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (4,), generator=random)
    noise = torch.randn(model_input.shape, generator=random)
    if offset:
        noise = noise + offset * torch.randn(4, 4, 1, 1, generator=random)
    noisy = scheduler.add_noise(model_input, noise, timesteps)
    ids = [sd.tokenizer(p, padding="max_length", max_length=77, return_tensors="pt").input_ids for p in ("a sks dog", "a dog")]
    words = torch.cat([sd.text_encoder(ids[k])[0] for k in (0, 0, 1, 1)])
    pred, pred_prior = sd.unet(noisy, timesteps, words).sample.chunk(2)
    target = noise if sd.prediction_type == "epsilon" else scheduler.get_velocity(model_input, noise, timesteps)
    target, target_prior = target.chunk(2)
    assert own.item() == pytest.approx(torch.nn.functional.mse_loss(pred, target).item(), rel=1e-4)
    assert others.item() == pytest.approx(torch.nn.functional.mse_loss(pred_prior, target_prior).item(), rel=1e-4)


@pytest.mark.parametrize("toy_kind, more", [("toy", 0), ("toy_sd2", 1)])
def test_min_snr_weighs_the_loss_as_in_the_paper(toy_kind, more, pictures, request):
    sd = request.getfixturevalue(toy_kind)
    z = moments(sd, pictures[:1], False, sd.device)[:, 0]
    plain, weighing = (Learner(sd, replace(RECIPE, batch=1, snr_gamma=gamma)) for gamma in (None, 5.0))
    scheduler, ratios = DDPMScheduler.from_config(sd.scheduler_config), []
    for k in range(24):
        losses = [learner.loss(z, None, random_of(k))[0].item() for learner in (plain, weighing)]
        snr = compute_snr(scheduler, torch.randint(1000, (1,), generator=random_of(k))).item()
        ratios.append((losses[1] / losses[0], min(snr, 5.0) / (snr + more)))
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in ratios)
    assert len({round(b, 3) for _, b in ratios}) > 2


def test_accumulated_passes_are_one_large_batch(toy, pictures):
    """The same rows, whether they go through the UNet at once or one after the other, give the same gradient."""
    learner = Learner(toy, replace(RECIPE, batch=1, accumulation=2))
    z = moments(toy, pictures[:2], False, toy.device)[:, 0]
    for k in range(2):
        learner.backward(z[k : k + 1], None, random_of(k), last=k == 1)
    grads = [p.grad.clone() for p in learner.trained.values()]
    single = []
    for k in range(2):
        other = Learner(toy, replace(RECIPE, batch=1))
        other.backward(z[k : k + 1], None, random_of(k), last=True)
        single.append([p.grad for p in other.trained.values()])
    for whole, a, b in zip(grads, *single, strict=True):
        assert torch.allclose(whole, (a + b) / 2, atol=1e-7)


def test_gradient_checkpointing_changes_no_gradient(toy, pictures):
    z = moments(toy, pictures[:2], False, toy.device)[:, 0]
    found = []
    for on in (False, True):
        learner = Learner(toy, replace(RECIPE, gradient_checkpointing=on, text_encoder=True))
        learner.backward(z, None, random_of(5), last=True)
        found.append([p.grad for p in learner.trained.values()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_each_round_shows_every_picture_once(toy, pictures):
    known = torch.stack([torch.full((2, 4, 8, 8), float(k)) for k in range(5)])
    known[:, 1] = 0  # no spread: the latents say which picture they are
    recipe = replace(RECIPE, batch=2)
    seen = [int(z[0, 0, 0]) for place in range(5) for z in dreambooth.draw(known, recipe, place, random_of(0), 0)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5)) and seen[:5] != seen[5:]


# --- what is computed once ------------------------------------------------------------------------------------------------------------


def test_vae_and_text_encoder_are_not_called_again(pictures):
    sd, calls = toy_model(), {"vae": 0, "text": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    for part in (sd.vae.encoder, sd.vae.decoder):
        part.register_forward_hook(count("vae"))
    sd.text_encoder.register_forward_hook(count("text"))
    seen = []
    for _ in train(sd, replace(RECIPE, class_images=2, flip=True, steps=4), pictures, pictures[:2]):
        seen.append(dict(calls))
    assert seen[0]["vae"] > 0 and seen[0]["text"] == 2, "once for the photos and class pictures, once a prompt"
    assert seen[0] == seen[-1], "a step calls neither"


def test_the_vae_reads_as_many_pixels_at_once_as_it_may(toy, pictures, monkeypatch):
    many, sizes = moments(toy, pictures, False, toy.device), []
    monkeypatch.setattr(dreambooth, "AT_ONCE", 2 * toy.size**2)
    hook = toy.vae.encoder.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    few = moments(toy, pictures, False, toy.device)
    hook.remove()
    assert sizes == [2, 2, 2] and torch.allclose(many, few, atol=1e-5)


def test_latents_are_sampled_anew_with_the_vaes_own_mean_and_spread(emoji):
    image = SAMPLES["taxi"].pictures()[0]
    known = moments(emoji, [image], False, emoji.device)
    draws = torch.cat([dreambooth.draw(known, replace(RECIPE, batch=1), k, random_of(k), 0) for k in range(300)])
    assert torch.allclose(draws.mean(0), known[0, 0], atol=5 * float(known[0, 1].max()) / 300**0.5)
    assert torch.allclose(draws.std(0), known[0, 1], rtol=0.3, atol=1e-4)
    assert torch.allclose(known[0, :1], latents.encode(emoji, previews.pixels_of(emoji, [image])), atol=1e-5)


# --- training -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"method": "full", "text_encoder": True}], ids=str)
def test_the_shared_model_is_never_touched_and_a_copy_learns(changes, pictures, tmp_path):
    sd = toy_model()
    before = bits(sd.unet, sd.text_encoder, sd.vae)
    processors = dict(sd.unet.attn_processors)
    recipe = replace(RECIPE, **changes, preview_every=3)
    steps = list(train(sd, recipe, pictures, folder=tmp_path))
    now = models.adapted(sd, checkpoints.folder_of(tmp_path, 6), 0.5)
    assert same(before, bits(sd.unet, sd.text_encoder, sd.vae)) and sd.unet.attn_processors == processors
    assert not any(p.requires_grad for p in sd.unet.parameters()) and not sd.unet.training
    assert not same(bits(sd.unet), bits(now.unet))
    assert same(bits(sd.text_encoder), bits(now.text_encoder)) != recipe.text_encoder
    assert [s.step for s in steps] == list(range(1, 7)) and [s.preview is not None for s in steps] == [False, False, True] * 2
    assert all(math.isfinite(s.loss) and s.prior_loss is None and s.grad_norm > 0 and s.seconds > 0 for s in steps)


@pytest.mark.parametrize(
    "changes, stops",
    [
        ({}, (1, 4)),
        ({"preview_every": 3}, (2,)),
        ({"method": "full", "precision": "bf16"}, (3,)),
        (
            {"text_encoder": True, "class_images": 3, "schedule": "cosine", "warmup": 2, "snr_gamma": 5.0, "noise_offset": 0.1},
            (2,),
        ),
        ({"accumulation": 2, "gradient_checkpointing": True, "flip": True, "precision": "fp16"}, (1,)),
    ],
    ids=str,
)
def test_wherever_it_is_stopped_it_ends_in_the_same_bits(changes, stops, pictures, tmp_path):
    sd, recipe = toy_model(), replace(RECIPE, steps=5, **changes)
    whole = list(train(sd, recipe, pictures, pictures[:3], tmp_path / "whole"))
    for stop in stops:
        folder = tmp_path / str(stop)
        one = train(sd, recipe, pictures, pictures[:3], folder)
        said = [next(one) for _ in range(stop)]
        one.close()
        torch.manual_seed(stop)  # a new process has other dice
        said += list(train(sd, recipe, pictures, pictures[:3], folder))
        assert equal(weights(tmp_path / "whole", 5), weights(folder, 5)), f"stopped after step {stop}"
        assert [(s.step, s.loss, s.rate, s.grad_norm) for s in said] == [(s.step, s.loss, s.rate, s.grad_norm) for s in whole]
        if recipe.preview_every:
            assert torch.equal(whole[-1].preview.pictures[0].image, said[-1].preview.pictures[0].image)


def test_a_preview_is_what_the_checkpoint_draws(toy, pictures, tmp_path):
    recipe = replace(RECIPE, preview_every=4, steps=4, checkpoint_every=4, prompts=("a sks dog on a hill", "a sks dog at night"))
    *_, last = train(toy, recipe, pictures, folder=tmp_path)
    now = models.adapted(toy, checkpoints.folder_of(tmp_path, 4))
    kinds = [(p.kind, p.prompt, p.seed) for p in last.preview.pictures]
    assert kinds == [
        ("subject", "a sks dog on a hill", 0),
        ("subject", "a sks dog at night", 1),
        ("class", "a dog", 0),
        ("class", "a dog", 1),
    ]
    *_, end = denoise(now, Request("a sks dog at night", seed=1, steps=4, guidance=previews.GUIDANCE))
    assert torch.allclose(latents.decode(now, end.x_next)[0], last.preview.pictures[1].image, atol=1e-4)
    assert last.preview.attention.shape == (8, 8) and 0 < float(last.preview.attention.max()) <= 1


def test_previews_measure_learning_memorising_and_forgetting(emoji):
    recipe = replace(
        PRESETS["embedded"], class_images=0, prompts=("a sks car",), preview_every=2, steps=2, batch=2, checkpoint_every=2
    )
    own = SAMPLES["taxi"].pictures()
    watch = previews.Watch(emoji, recipe, own)
    base = watch.look(0, emoji)
    assert watch.measure == "judge" and base.drift == pytest.approx(0, abs=1e-5)
    assert base.likeness < watch.alike <= 1 and len(watch.spread) == len(own)
    *_, last = train(emoji, recipe, own, watch=watch)
    assert last.preview.drift > 0 and last.preview.likeness != base.likeness
    subject = last.preview.pictures[0]
    ((which, far),) = likeness.nearest(subject.image[None], watch.pixels)
    assert (subject.nearest, subject.distance) == (which, pytest.approx(far))


def test_a_model_that_sees_more_than_latents_is_refused(pictures):
    with pytest.raises(ValueError, match="train a base model"):
        next(train(toy_model(kind="inpaint"), RECIPE, pictures))
    with pytest.raises(ValueError, match="There are 2 pictures; give 3 to 30 of one thing"):
        next(train(toy_model(), RECIPE, pictures[:2]))
    with pytest.raises(ValueError, match="class pictures of 9"):
        next(train(toy_model(), replace(RECIPE, class_images=9), pictures))
    with pytest.raises(ValueError, match="has no modules to_nowhere"):
        next(train(toy_model(), replace(RECIPE, targets=("to_nowhere",)), pictures))


# --- where it goes wrong --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(pictures, tmp_path):
    sd = toy_model()
    recipe = replace(RECIPE, method="full", steps=20)
    one = train(sd, recipe, pictures, folder=tmp_path)
    for _ in range(5):
        step = next(one)
    learner = one.gi_frame.f_locals["learner"]
    learner.unet.conv_in.weight.data.fill_(math.nan)
    with pytest.raises(Diverged, match=r"not finite at step 6, with a learning rate of 1\.0e-02"):
        next(one)
    assert step.step == 5 and checkpoints.step_of(checkpoints.newest(tmp_path, state=True)) == 4
    assert all(w.isfinite().all() for w in weights(tmp_path, 4).values())


def test_weights_that_are_not_finite_are_not_saved(pictures, tmp_path):
    one = train(toy_model(), replace(RECIPE, method="full"), pictures, folder=tmp_path)
    for _ in range(3):
        next(one)
    one.gi_frame.f_locals["learner"].unet.conv_in.weight.data.fill_(math.inf)
    with pytest.raises(Diverged, match="weights are not finite after step 3"):
        one.close()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_000002"]


def test_gradients_that_half_precision_cannot_hold_are_left_out_but_not_for_ever(pictures):
    learner = Learner(toy_model(), replace(RECIPE, method="full", precision="fp16"))
    z, before = moments(learner.sd, pictures[:2], False, learner.device)[:, 0], bits(learner.unet)
    with pytest.raises(Diverged, match=r"not finite at step \d+"):
        for step in range(1, 40):
            learner.backward(z, None, random_of(step), last=True)
            learner.unet.conv_in.weight.grad[0] = math.nan
            learner.update(step, 1e-2)
    assert 10 < step < 20 and same(before, bits(learner.unet))


def test_a_loss_that_runs_away_stops():
    course, lost = dreambooth.Course(), []
    for k in range(400):
        loss = (0.01 if k % 3 else 0.4) if k < 200 else 3.0  # single steps jump by forty, as with their time t
        lost.append(course.left(loss))
    assert not any(lost[:240]) and lost.index(True) < 300


# --- checkpoints ----------------------------------------------------------------------------------------------------------------------


def test_of_checkpoints_that_are_not_whole_an_older_one_counts(pictures, tmp_path):
    sd = toy_model()
    list(train(sd, RECIPE, pictures, folder=tmp_path))
    kept = [p.name for p in sorted(tmp_path.iterdir())]
    assert kept == ["step_000002", "step_000004", "step_000006"]
    assert [(tmp_path / one / "state.pt").exists() for one in kept] == [False, True, True], "two can be gone on from"
    right = weights(tmp_path, 6)
    for name, spoil in (
        ("manifest.json", lambda p: p.unlink()),
        ("state.pt", lambda p: p.write_bytes(p.read_bytes()[:-1])),
        ("pytorch_lora_weights.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x")),
    ):
        spoil(tmp_path / "step_000006" / name)
        (tmp_path / "step_000007.tmp").mkdir()  # of a kill inside a save, at a step that no later save may have
        assert checkpoints.step_of(checkpoints.newest(tmp_path, state=True)) == 4
        assert [s.step for s in train(sd, RECIPE, pictures, folder=tmp_path)] == [5, 6]
        assert equal(weights(tmp_path, 6), right)
        assert [p.name for p in sorted(tmp_path.iterdir())] == kept, "nothing half stays to take room"
    with pytest.raises(ValueError, match="checkpoint of step 2 is damaged"):
        (tmp_path / "step_000002" / "pytorch_lora_weights.safetensors").write_bytes(b"")
        models.adapted(sd, tmp_path / "step_000002")


def test_a_training_that_was_deleted_does_not_come_back(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints.write(tmp_path / "gone" / "checkpoints", 2, lambda stage: None)
    assert not (tmp_path / "gone").exists()


def test_large_weights_are_kept_of_the_newest_two_alone(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SMALL", 100)
    list(train(toy_model(), RECIPE, pictures, folder=tmp_path))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_000004", "step_000006"]


# --- what was learned, in other hands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(pictures, tmp_path_factory):
    """Adapters of everything that can have one, loud enough to be seen."""
    sd, folder = toy_model(text_width=16), tmp_path_factory.mktemp("learned")
    targets = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "time_emb_proj")
    recipe = replace(RECIPE, text_encoder=True, rate=0.1, targets=targets)
    list(train(sd, recipe, pictures, folder=folder))
    return sd, folder / "step_000006"


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_diffusers_draws_the_same_picture_from_the_lora_file(learned, strength):
    sd, checkpoint = learned
    now = models.adapted(sd, checkpoint, strength)
    asked = Request("a sks dog", seed=3, steps=4)
    *_, end = denoise(now, asked)
    fresh = toy_model(text_width=16)
    pipe = pipeline_of(fresh, "DDIM")
    fresh.unet.set_attn_processor(AttnProcessor2_0())
    pipe.load_lora_weights(checkpoint)
    pipe.fuse_lora(lora_scale=strength)
    pipe.unload_lora_weights()
    theirs = pipe(
        asked.prompt,
        num_inference_steps=4,
        guidance_scale=7.5,
        width=64,
        height=64,
        generator=latents.generator(3),
        output_type="latent",
    ).images
    assert torch.allclose(end.x_next, theirs, atol=1e-5)
    *_, base = denoise(sd, asked)
    assert torch.allclose(base.x_next, end.x_next, atol=1e-5) == (strength == 0)


def test_the_lora_file_says_rank_and_alpha(learned):
    with safe_open(learned[1] / "pytorch_lora_weights.safetensors", "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (about["unet.r"], about["unet.lora_alpha"], about["text_encoder.lora_alpha"]) == (2, 3.0, 3.0)


def test_an_adapted_model_is_one_of_its_own(learned):
    sd, checkpoint = learned
    whole, half = models.adapted(sd, checkpoint), models.adapted(sd, checkpoint, 0.5)
    assert whole.name.endswith("-6") and half.name == f"{whole.name}-0.5" and whole.licence == sd.licence
    assert whole.revision == half.revision != sd.revision and "DreamBooth on" in whole.source
    assert whole.vae is sd.vae and whole.unet is not sd.unet
    with pytest.raises(ValueError, match="from 0 to 2"):
        models.adapted(sd, checkpoint, math.nan)


def test_strength_of_a_full_training_is_a_straight_line(pictures, tmp_path):
    sd = toy_model()
    list(train(sd, replace(RECIPE, method="full"), pictures, folder=tmp_path))
    ends = [models.adapted(sd, tmp_path / "step_000006", s).unet.conv_in.weight for s in (0.0, 0.5, 1.0)]
    assert torch.equal(ends[0], sd.unet.conv_in.weight) and torch.allclose(ends[1], (ends[0] + ends[2]) / 2, atol=1e-7)
    assert torch.equal(ends[2], weights(tmp_path, 6)["unet.conv_in.weight"])


# --- before a training ----------------------------------------------------------------------------------------------------------------


def test_preflight_sorts_pictures_and_says_why(emoji, tmp_path):
    own = SAMPLES["taxi"].pictures()
    blurred = own[2].filter(ImageFilter.GaussianBlur(8))
    sources = [
        own[0],
        b"nothing",
        own[1],
        own[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        own[3].resize((70, 70)),
        blurred,
        None,
    ]
    accepted, refused, warned = preflight.sorted_out(emoji, sources)
    assert [k for k, _ in accepted] == [0, 2, 3, 4, 5] and [k for k, _ in refused] == [1, 6]
    said = {}
    for k, sentence in warned:
        said.setdefault(k, []).append(sentence)
    assert "nearly the same as number 1" in said[3][0] and "70 px small" in said[4][0] and "blurred" in said[5][-1]
    assert said.keys() == {3, 4, 5}
    _, refused, _ = preflight.sorted_out(emoji, [own[0]] * 32)
    assert [k for k, _ in refused] == [30, 31] and "30 pictures are the most" in refused[0][1]


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_sets_pass_without_a_warning(emoji, name):
    assert preflight.sorted_out(emoji, SAMPLES[name].files)[1:] == ([], [])


def test_preflight_measures_time_memory_and_disk(toy, pictures, tmp_path, monkeypatch):
    recipe = replace(RECIPE, method="full", class_images=2, text_encoder=True)
    found = preflight.preflight(toy, recipe, pictures, tmp_path / "not" / "there")
    count = sum(p.numel() for part in (toy.unet, toy.text_encoder) for p in part.parameters())
    assert preflight.trained_count(recipe, preflight.shapes_of(toy)) == count
    assert 0 < found.step_seconds < found.seconds and found.memory > 16 * count and found.savings == () and found.problems == ()
    assert found.disk > 3 * 12 * count
    monkeypatch.setattr(preflight.room, "free", lambda device: 1000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert not found.notes
    plain = preflight.preflight(toy, replace(recipe, adam8bit=True), pictures, tmp_path)
    assert plain.notes == (preflight.PLAIN_ADAM,), "the processor has no 8-bit Adam: that is said"
    short = preflight.preflight(toy, recipe, pictures[:2], tmp_path)
    assert short.step_seconds is None and [list(s.changes) for s in short.savings] == [
        ["gradient_checkpointing"],
        ["batch", "accumulation"],
        ["text_encoder"],
        ["method"],
    ]
    assert "There are 2 pictures" in short.problems[0] and "of disk, and 0 MB are free" in short.problems[1]
    for saving in short.savings:
        assert replace(recipe, **saving.changes) != recipe


def test_where_no_step_fits_preflight_says_what_helps(toy, pictures, tmp_path, monkeypatch):
    def warm_up(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preflight, "warm_up", warm_up)
    found = preflight.preflight(toy, replace(RECIPE, method="full"), pictures, tmp_path)
    assert found.step_seconds is None and found.memory >= found.memory_free
    assert found.savings[0].changes == {"gradient_checkpointing": True}


def test_class_pictures_that_are_there_take_no_time(toy, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "warm_up", lambda *_: (1.0, 0.5, 10))
    recipe = replace(RECIPE, class_images=5)
    all_drawn = 6 * 1.0 + 5 * preflight.PREVIEW_STEPS * 0.5
    assert preflight.preflight(toy, recipe, pictures, tmp_path).seconds == all_drawn
    there = tmp_path / "class" / previews.class_name(toy, recipe)
    there.mkdir(parents=True)
    for k in range(2):
        (there / f"{k:03d}.png").touch()
    assert preflight.preflight(toy, recipe, pictures, tmp_path).seconds == all_drawn - 2 * preflight.PREVIEW_STEPS * 0.5
    assert preflight.preflight(toy, replace(recipe, class_images=1), pictures, tmp_path).seconds == 6


def test_preflight_counts_every_copy_that_an_adapter_needs(toy):
    alone, along = (preflight.frozen_bytes(toy, replace(RECIPE, text_encoder=on)) for on in (False, True))
    assert along - alone == sum(p.nbytes for p in toy.text_encoder.parameters())
    full = [preflight.frozen_bytes(toy, replace(RECIPE, method="full", text_encoder=on)) for on in (False, True)]
    assert full[0] == full[1], "there the copy is what is trained"


def test_preflight_counts_what_gradient_checkpointing_computes_again(toy, pictures):
    def thick(x):
        for _ in range(10):
            x = x.sin()  # keeps its input for the way back
        return x

    x = torch.zeros(1000, requires_grad=True)
    with preflight.Made() as made:
        checkpoint(thick, x, use_reentrant=False).sum().backward()
    assert 10 * 4000 <= made.most <= 14 * 4000 and sum(made.alive.values()) == x.grad.nbytes, "the rest has gone"

    found = [preflight.warm_up(toy, replace(RECIPE, gradient_checkpointing=on), pictures)[2] for on in (False, True)]
    learner = Learner(toy, replace(RECIPE, gradient_checkpointing=True))
    z = moments(toy, pictures[:2], False, toy.device)[:, 0]
    with preflight.Made() as made:
        learner.backward(z, None, random_of(0, 0), last=True)
    assert found[1] == pytest.approx(made.most, rel=0.02) and found[1] < found[0]


def test_counts_of_what_is_trained_are_right_without_loading(toy, tmp_path):
    for changes in ({}, {"targets": ("to_q", "conv1"), "rank": 3}, {"text_encoder": True}, {"method": "full"}):
        recipe = replace(RECIPE, **changes)
        learner = Learner(toy, recipe)
        assert preflight.trained_count(recipe, preflight.shapes_of(toy)) == sum(p.numel() for p in learner.trained.values())
    toy.unet.save_pretrained(tmp_path / "unet")
    toy.text_encoder.save_pretrained(tmp_path / "text_encoder")
    recipe = replace(RECIPE, text_encoder=True)
    assert preflight.trained_count(recipe, preflight.shapes_in(tmp_path)) == preflight.trained_count(
        recipe, preflight.shapes_of(toy)
    )


def test_the_disk_has_room_for_a_third_checkpoint_beside_the_two_that_are_kept(toy, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SMALL", 0)
    recipe, most, prune = replace(RECIPE, method="full"), 0, checkpoints.prune

    def measured(folder):
        nonlocal most
        most = max(most, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        prune(folder)

    monkeypatch.setattr(checkpoints, "prune", measured)
    list(train(toy, recipe, pictures, folder=tmp_path))
    needed = preflight.disk_needed(recipe, preflight.shapes_of(toy)) - 20 * 2**20  # for pictures, names and all else
    assert needed == 3 * 12 * preflight.trained_count(recipe, preflight.shapes_of(toy)) <= most


def test_recommended_steps_follow_the_pictures(toy, emoji):
    assert preflight.recommended_steps(emoji, PRESETS["embedded"], 7) == PRESETS["embedded"].steps
    assert preflight.recommended_steps(toy, PRESETS["diffusers LoRA"], 5) == 500  # as diffusers' README
    assert preflight.recommended_steps(toy, PRESETS["hackathon"], 5) == 400
    assert preflight.recommended_steps(toy, PRESETS["faces"], 10) == 800
    assert preflight.recommended_steps(toy, replace(RECIPE, batch=64, accumulation=32), 5) == 1
