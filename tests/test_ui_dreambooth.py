"""The tab DreamBooth as plain Python: pictures and words in, a real training of two steps as its page is told of it."""

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image, ImageDraw

from core import catalog, images, lane, models, trainer
from core import engine as engine_module
from core.engine import LocalEngine
from core.preflight import preflight, savings
from core.previews import GUIDANCE
from core.recipe import PRESETS, Recipe
from core.sampling import Request
from core.subjects import SAMPLES
from core.trainings import Status, Trainings
from ui import common, dreambooth, render, texts, trained
from ui.dreambooth import Known

OWNER, OTHER = "a" * 32, "b" * 32
SMALL = Recipe("a sks dog", "a dog", rank=2, alpha=2.0, steps=2, preview_every=2, checkpoint_every=1, prompts=("a sks dog",))


@pytest.fixture(scope="module")
def engine(emoji):
    made = LocalEngine(lambda name: emoji, ("emoji",))
    yield made
    made.close()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Trainings:
    """A training of OWNER's that has ended, made by the trainer itself in this process."""
    made = Trainings(tmp_path_factory.mktemp("dreambooth"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainings, "_launch", lambda self, folder, **facts: lane.tell(folder, "waiting", queued=time.time(), **facts)
        )
        one = made.start(SMALL, SAMPLES["poodle"].pictures()[:3], OWNER, "animal", "poodle")
    trainer.main(made.home / one)
    assert made.status(one, OWNER).state == "done", (made.home / one / "status.json").read_text()
    return made


@pytest.fixture
def one(trainings) -> str:
    return trainings.mine(OWNER)[0]


# --- pictures in ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Files as people bring them, by name."""
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (35.0, 40.0, 12.0)}
    wide = Image.new("RGB", (400, 200), "red")
    ImageDraw.Draw(wide).rectangle((150, 50, 250, 150), fill="blue")
    wide.save(tmp_path / "wide.jpg", exif=exif)
    Image.effect_noise((100, 100), 60).save(tmp_path / "grey.png")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (tmp_path / "words.png").write_text("no picture")
    return {path.name: str(path) for path in tmp_path.iterdir()}


def test_each_file_is_taken_in_or_refused_by_itself(files):
    good, refused = dreambooth.taken_in(list(files.values()))
    assert {Path(path).name for path in good} == {"wide.jpg", "grey.png"}
    why = dict(refused)
    assert "HEIC" in why["phone.heic"] and "Most Compatible" in why["phone.heic"]
    assert "not a PNG, JPEG or WebP" in why["words.png"]


def test_the_frame_is_what_training_keeps(files):
    wide = dreambooth.photo(files["wide.jpg"])
    assert wide.kept == pytest.approx((0.25, 0, 0.5, 1)) and wide.cut == pytest.approx(0.5)
    square = dreambooth.square(images.open_picture(files["wide.jpg"]))
    assert square.size == (200, 200) and square.getpixel((100, 100))[2] > 200 and not square.getexif()
    made = dreambooth.photos_html(
        [files["wide.jpg"]], 128, "en", {0: ["The picture looks blurred; the model learns the blur too."]}
    )
    assert "left:25.00%;top:0.00%;width:50.00%;height:100.00%" in made and "50 % is cut off" in made and "looks blurred" in made
    assert '<ul class="remarks"><li><b>1</b> The picture looks blurred' in made, "beneath, by the number that the picture wears"
    assert "ぼけ" in dreambooth.photos_html(
        [files["wide.jpg"]], 128, "ja", {0: ["The picture looks blurred; the model learns the blur too."]}
    )


def test_a_sample_goes_into_training_as_it_is():
    assert len(SAMPLES) == 10
    for sample in SAMPLES.values():
        for file, picture in zip(sample.files, sample.pictures(), strict=True):
            assert dreambooth.square(images.open_picture(file)).tobytes() == picture.tobytes()
    shown = dreambooth.samples_html("taxi")
    assert (
        shown.count("<button") == 10
        and shown.count('aria-pressed="true"') == 1
        and 'data-job="taxi" aria-pressed="true"' in shown
    )


def test_a_picture_of_many_pixels_gets_smaller_on_its_way_in():
    assert dreambooth.square(Image.new("RGB", (3000, 2000))).size == (1024, 1024)


# --- words and settings -----------------------------------------------------------------------------------------------------------


def test_the_name_is_what_the_class_prompt_has_not(emoji):
    assert [t.id for t in dreambooth.named(emoji, "a sks dog", "a dog")] == [48136]
    shown = dreambooth.name_html(emoji, "a photo of ccorgi dog", "a photo of dog", "en")
    ids = [str(t.id) for t in dreambooth.named(emoji, "a photo of ccorgi dog", "a photo of dog")]
    assert (
        len(ids) > 1
        and f"{len(ids)} tokens, ids {', '.join(ids)}" in shown
        and all(f"<small>{one}</small>" in shown for one in ids)
    )
    assert "id 48136" in dreambooth.name_html(emoji, "a sks dog", "a dog", "en")
    assert "The name is Sks:" in dreambooth.name_html(emoji, "A Sks dog!", "a dog", "en"), "as the recorder and the card call it"
    assert "The name is ccorgi:" in shown
    assert "put a name before the class" in dreambooth.name_html(emoji, "a dog", "a dog", "en")


def test_a_prompt_that_is_too_long_is_told_in_a_line_and_says_what_is_cut_off(emoji):
    shown = dreambooth.name_html(emoji, "sks " * 90 + "dog", "a dog", "en")
    assert "75 tokens, ids 48136;" in shown and "Not read:" in shown and "dog</s>" in shown
    assert common.short("a sks dog") == "a sks dog" and len(common.short("sks " * 90)) <= 48
    long = {"recipe": {"instance_prompt": "sks " * 90}, "subject": ""}
    assert len(dreambooth.name_of(long)) <= 50 and len(trained.title(long, 5, 1.0, "en")) <= 60


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_the_controls_as_it_was(name):
    assert dreambooth.recipe_of(dreambooth.typed_of(PRESETS[name])) == PRESETS[name]
    cat = dreambooth.worded(PRESETS[name], "cat")
    assert (
        cat.class_prompt.endswith(" cat")
        and cat.instance_prompt.split()[-1] == "cat"
        and cat.identifier == PRESETS[name].identifier
    )
    assert replace(cat, instance_prompt="x", class_prompt="x", prompts=()) == replace(
        PRESETS[name], instance_prompt="x", class_prompt="x", prompts=()
    ), "nothing else changes"


@pytest.mark.parametrize(
    "typed, said",
    [
        ({"rate": "much"}, "The learning rate is much"),
        ({"steps": 0}, "The number of steps is 0"),
        ({"steps": None}, "The number of steps is empty"),
        ({"class_prompt": " "}, "The class prompt is empty"),
        ({"targets": []}, "LoRA has no modules"),
        ({"prompts": "a\n" * 9}, "9 prompts are too many"),
        ({"schedule": "magic"}, "There is no schedule"),
    ],
)
def test_wrong_settings_are_refused_in_both_languages(typed, said):
    with pytest.raises(ValueError, match=said) as error:
        dreambooth.recipe_of(dreambooth.typed_of(SMALL) | typed)
    assert re.search("[ぁ-ん]", texts.sentence("ja", error.value))


def test_a_rate_is_typed_as_people_write_it():
    for typed, rate in {"1e-4": 1e-4, "0,001": 1e-3, " 2E-6 ": 2e-6}.items():
        assert dreambooth.recipe_of(dreambooth.typed_of(SMALL) | {"rate": typed}).rate == rate
    assert dreambooth.recipe_of(dreambooth.typed_of(SMALL) | {"snr_gamma": 5}).snr_gamma == 5
    assert [dreambooth.rate_of(rate) for rate in (2e-3, 1e-4, 2e-6)] == ["0.002", "0.0001", "2e-6"]


def test_a_model_that_needs_more_than_words_is_not_taught(emoji):
    engine = LocalEngine(lambda name: emoji, {"emoji": "base", "emoji-inpaint": "inpaint"})
    dreambooth.teachable(engine, "emoji")
    with pytest.raises(ValueError, match="does not teach the model emoji-inpaint; choose one of emoji") as error:
        dreambooth.teachable(engine, "emoji-inpaint")
    assert "教えられません" in texts.sentence("ja", error.value)
    engine.close()


def test_a_model_that_is_here_is_not_missing_whatever_the_app_calls_it(trainings, tmp_path):
    here = Trainings(tmp_path, {"mine": str(catalog.MODELS / "emoji")})
    assert [dreambooth.missing(here, model, "en") for model in ("mine", "emoji")] == ["", ""]
    assert "There is no model &#x27;mine&#x27;" in dreambooth.missing(trainings, "mine", "en")


def test_preflight_is_told_with_what_can_be_changed(toy, tmp_path):
    found = preflight(toy, SMALL, SAMPLES["taxi"].files[:2], tmp_path)
    shown = dreambooth.checked_html(found, SMALL, "en")
    assert "There are 2 pictures; give 3 to 30" in shown and f"({found.step_seconds:.2f} s a step)" in shown
    changes = [json.loads(c.replace("&quot;", '"')) for c in re.findall(r'data-act="change" data-job="([^"]+)"', shown)]
    assert changes == [{"steps": found.steps}] and dreambooth.size(1_500_000_000) == "1.5 GB"
    many = replace(found, problems=(), refused=((30, "30 pictures are the most; leave out others to have this one."),))
    assert "picture 31: 30 pictures are the most" in dreambooth.checked_html(many, SMALL, "en")
    assert "2 steps will take about" in shown, "what the estimate was made for"
    assert "Memory: more than" in dreambooth.checked_html(replace(found, step_seconds=None), SMALL, "en")
    assert "Memory: more than" not in shown
    short = replace(found, memory=2 * found.memory_free, savings=savings(toy, replace(SMALL, method="full", batch=4)))
    assert "Memory is short" in dreambooth.checked_html(short, SMALL, "en")
    assert re.search("[ぁ-ん]", dreambooth.checked_html(short, SMALL, "ja"))


# --- the flight recorder ------------------------------------------------------------------------------------------------------------


STATES = {
    Status("x", "waiting", ahead=1): "another training runs before yours",
    Status("x", "waiting", ahead=3): "3 trainings run before yours",
    Status("x", "waiting"): "Yours is next",
    Status("x", "preparing"): "Preparing: class pictures",
    Status("x", "preparing", made=3, to_make=8): "3 of 8",
    Status("x", "training", 0, 9): "the first of 9",
    Status("x", "training", 4, 9, 30.0, 2.04): "Step 4 of 9 · 2.0 steps a second · 30 s left",
    Status("x", "training", 4, 9, 300.0, 0.5): "5 min left",
    Status("x", "training", 4, 9, 300.0, 0.033): "0.033 steps a second",
    Status("x", "paused", 4, 9): "Paused after step 4",
    Status("x", "done", 9, 9): "Done: 9 steps.",
    Status("x", "stopped", 4, 9): "Stopped after step 4",
    Status(
        "x", "interrupted", 4, 9, message="The training was interrupted; what was saved last is good: go on from there."
    ): "good",
    Status(
        "x",
        "failed",
        4,
        9,
        message="The device ran out of memory; what was saved last is good: go on from there when more is free, or use its settings "
        "with a smaller batch or gradient checkpointing.",
    ): "smaller batch",
    Status(
        "x",
        "diverged",
        4,
        9,
        message="The loss was not finite at step 5, with a learning rate of 1.0e+00; what was saved before is good: use its settings "
        "with a lower rate.",
    ): "Diverged after step 4",
    Status(
        "x", "failed", 4, 9, message="The disk is full; what was saved last is good: go on from there when there is room again."
    ): "full",
}


@pytest.mark.parametrize("status", STATES, ids=lambda s: s.state)
def test_every_state_is_said(status):
    assert STATES[status] in dreambooth.said_of(status, "en")
    japanese = dreambooth.said_of(status, "ja")
    assert re.search("[ぁ-ん]", japanese) and not re.search(r"[{}]|\bThe\b", japanese)


def test_what_can_be_done_fits_the_state():
    may = {state: dreambooth.may(Status("x", state)) for state in ("waiting", "preparing", "training", *lane.ENDED)}
    assert may["training"] == may["preparing"] == ["pause", "stop"] and may["waiting"] == ["stop"]
    assert may["paused"] == may["stopped"] == may["interrupted"] == may["failed"] == ["go_on", "again", "forget"]
    assert may["done"] == may["diverged"] == ["again", "forget"], "going on would make the same bits"


def facts(step, likeness, distance) -> dict:
    return {
        "step": step,
        "likeness": likeness,
        "photos": {"spread": [50.0, 60.0]},
        "pictures": [{"kind": "subject", "distance": distance}],
    }


def test_the_best_step_is_like_the_subject_and_copies_nothing():
    previews = [facts(0, 0.5, 60), facts(50, 0.8, 40), facts(100, 0.7, 45), facts(150, 0.9, 20)]
    assert dreambooth.best_of(previews, [50, 100, 150]) == 50, "150 copies a picture, 0 is no checkpoint"
    assert dreambooth.best_of(previews, [100, 150]) == 100
    assert dreambooth.best_of(previews, [150]) is None, "the page calls the best one that copies nothing"
    assert dreambooth.best_of([facts(50, None, 40)], [50]) is None and dreambooth.best_of([], []) is None


def best_by_hand(trainings, one) -> int | None:
    """Of two steps the second has a preview; what two steps on this model make may lie nearer to a photo than photos to each other."""
    (seen,) = (f for f in trainings.previews(one, OWNER) if f["step"] == 2)
    nearest = min(p["distance"] for p in seen["pictures"] if p["kind"] == "subject")
    return None if nearest < min(seen["photos"]["spread"]) / 2 else 2


def test_a_page_is_told_all_at_first_and_then_the_news(trainings, one):
    whole = dreambooth.flight(trainings, OWNER, Known(one), "en")
    assert (
        [s[0] for s in whole["steps"]] == [1, 2] and [f["step"] for f in whole["films"]] == [0, 2] and len(whole["photos"]) == 3
    )
    assert (
        whole["checkpoints"] == [1, 2]
        and whole["best"] == best_by_hand(trainings, one)
        and whole["state"] == "done"
        and whole["acts"] == ["again", "forget"]
    )
    assert whole["name"] == "“a sks dog” · poodle" and "LoRA, rank 2" in whole["facts"] and whole["token"] == "sks"
    rows = [(p["kind"], p["prompt"]) for p in whole["films"][1]["pictures"]]
    assert rows == [("subject", "a sks dog"), ("class", "a dog"), ("class", "a dog")]
    first, last = whole["films"]
    assert first["drift"] == pytest.approx(0, abs=1e-4) and last["likeness"] is not None and 0 < whole["among"] <= 1
    assert last["pictures"][0]["map"]["h"] == last["pictures"][0]["map"]["w"] == 16 and len(whole["spread"]) == 3
    kept = trainings.steps(one, OWNER)
    assert whole["steps"][1][1:] == [float(f"{kept[1][n]:.4g}") if kept[1][n] is not None else None for n in dreambooth.LOSSES]
    news = dreambooth.flight(trainings, OWNER, Known(one, 2, 1, True, 7), "en")
    assert (
        news["steps"] == []
        and [f["step"] for f in news["films"]] == [2]
        and news["photos"] == []
        and news["from"] == {"steps": 2, "films": 1}
    )
    assert len(json.dumps(dreambooth.flight(trainings, OWNER, Known(one, 2, 2, True, 8), "en"))) < 2500, (
        "a poll without news is small"
    )


def test_what_a_page_says_it_knows_is_not_believed(trainings, one):
    assert Known.of(json.dumps({"id": one, "steps": -3, "films": 99, "photos": 1, "asked": 5})) == Known(one, 0, 99, True, 5)
    for wrong in ("", "[]", "{}", '{"id": 1, "steps": "x", "films": 0, "photos": 0, "asked": 0}', "null"):
        assert Known.of(wrong) == Known()
    assert dreambooth.flight(trainings, OWNER, Known(one, 10**9, 10**9), "en")["steps"] == []


def test_somebody_elses_training_is_not_there(trainings, one):
    assert dreambooth.menu_of(trainings, OTHER) == [] and dreambooth.menu_of(trainings, OWNER)[0][0] == one
    for owner, training in ((OTHER, one), (OWNER, "0" * 32), (OWNER, "../" + one), (OWNER, "")):
        with pytest.raises(ValueError, match="This training is no longer kept"):
            dreambooth.flight(trainings, owner, Known(training), "en")


def test_a_training_that_is_deleted_meanwhile_is_left_off_the_menu(trainings, one, monkeypatch):
    monkeypatch.setattr(trainings, "mine", lambda owner: [one, "0" * 32])
    assert [found for found, _ in dreambooth.menu_of(trainings, OWNER)] == [one]


def test_a_program_is_told_by_the_id_alone(trainings, one):
    said = dreambooth.status_of(trainings, one)
    assert (said["state"], said["step"], said["count"], said["checkpoints"]) == ("done", 2, 2, [1, 2])
    assert said["best"] == best_by_hand(trainings, one)
    assert said["loss"] == trainings.steps(one, OWNER)[-1]["loss"] and said["preview"]["step"] == 2 and json.dumps(said)


# --- the tab's events, without a server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(engine, trainings):
    """The tab's events by their functions' names: each gives the new values by the controls' ids."""
    with gr.Blocks() as demo:
        states, menu, owner = [gr.State() for _ in range(5)], gr.Dropdown(), gr.BrowserState()
        with gr.Tabs() as tabs, gr.Tab() as place:
            shared = common.Shared(engine, "emoji", menu, owner, None, *states[:4], tabs, trainings, states[4])
            dreambooth.build(shared, place)
    events = {event.fn.__name__: event.fn for event in demo.fns.values() if event.fn}

    def call(name: str, *values) -> dict:
        made = events[name](*values)
        made = made if isinstance(made, dict) else [*made][-1]
        return {getattr(control, "elem_id", None) or "chosen": value for control, value in made.items()}

    return call


VISIT = gr.Request(headers={})
WORDS_OF = {name: f"dreambooth-{name.removesuffix('_prompt')}" for name in dreambooth.TAUGHT}


def told(**values) -> gr.EventData:
    return gr.EventData(None, values)


def test_a_preset_leaves_what_a_person_has_typed(tab):
    typed = dreambooth.typed_of(dreambooth.worded(PRESETS["embedded"], "cat"))
    made = tab("take_preset", "hackathon", *(typed[name] for name in WORDS_OF))
    assert made["dreambooth-instance"] == "a photo of sks cat" and made["dreambooth-prompts"] == "", "nobody has typed anything"
    assert made["dreambooth-steps"] == 400 and made["dreambooth-checked"] == "" and "dreambooth-model" not in made
    for name in WORDS_OF:
        words = typed | {name: "zwx teapot"}
        made = tab("take_preset", "hackathon", *(words[name] for name in WORDS_OF))
        assert made["dreambooth-steps"] == 400 and not made.keys() & set(WORDS_OF.values())


def test_a_change_takes_the_estimate_away(tab):
    made = tab("change", told(job=json.dumps({"steps": 300, "else": 1})))
    assert made == {"dreambooth-steps": 300, "dreambooth-checked": ""}


def test_settings_of_a_training_fill_the_controls(tab, engine, one, monkeypatch):
    made = tab("act", OWNER, told(act="again", id=one), VISIT)
    assert made["dreambooth-instance"] == "a sks dog" and made["dreambooth-rank"] == 2 and made["dreambooth-model"] == "emoji"
    assert made["dreambooth-checked"] == "" and len(made["chosen"][0]) == 3
    monkeypatch.setattr(engine, "for_role", lambda *_: ["another"])
    with pytest.warns(UserWarning, match="DreamBooth does not teach the model emoji; choose one of another"):
        made = tab("act", OWNER, told(act="again", id=one), VISIT)
    assert made["dreambooth-rank"] == 2 and "dreambooth-model" not in made, "Gradio would refuse what the menu has not"


def test_pictures_that_are_gone_are_left_out(tab, tmp_path):
    paths = tuple(shutil.copy(file, tmp_path) for file in SAMPLES["taxi"].files[:3])
    assert tab("arrive", (paths, ""), "emoji", VISIT)["chosen"] == (paths, "")
    Path(paths[1]).unlink()
    with pytest.warns(UserWarning, match="no longer on this machine are left out: 1"):
        made = tab("arrive", (paths, ""), "emoji", VISIT)
    assert made["chosen"] == ((paths[0], paths[2]), "") and "2 pictures, cropped" in made["dreambooth-crops"]


# --- the model menus ------------------------------------------------------------------------------------------------------------


def test_what_was_trained_stands_in_its_owners_menu_alone(engine, trainings, one):
    def names(owner):
        return [name for _, name in trained.choices(engine, trainings, ["base"], owner, "en")]

    last = f"dreambooth-{one[:8]}-2"
    assert names(OTHER) == ["emoji"] and names(OWNER) == ["emoji", last]
    trainings.choose(one, OWNER, 1, 0.5)
    titles = dict((name, title) for title, name in trained.choices(engine, trainings, ["base"], OWNER, "en"))
    assert (
        titles[last] == "a sks dog (poodle) · step 2"
        and titles[f"dreambooth-{one[:8]}-1-0.5"] == "a sks dog (poodle) · step 1 · strength 0.5"
    )
    with pytest.raises(ValueError, match="There is no model"):
        engine.submit(Request("a dog", steps=1, model=last), OTHER)
    again = LocalEngine(lambda name: models.load(name, device="cpu"), ("emoji",))  # the app was started anew
    try:
        assert [n for _, n in trained.choices(again, trainings, ["base"], OWNER, "en")][1:] == names(OWNER)[1:]
    finally:
        again.close()


def test_of_too_many_the_newest_stand_in_the_menu_and_stay_loaded(emoji, trainings, one, monkeypatch):
    for module in (engine_module, trained):
        monkeypatch.setattr(module, "OFFERED_PER_OWNER", 1)
    trainings.choose(one, OWNER, 1, 0.5)  # beside the last checkpoint
    engine = LocalEngine(lambda name: emoji, ("emoji",))
    try:
        ((_, name),) = trained.choices(engine, trainings, ["base"], OWNER, "en")[1:]
        sd = engine.model(name)
        assert trained.choices(engine, trainings, ["base"], OWNER, "en")[1:][0][1] == name and engine.loaded(name) is sd
    finally:
        engine.close()


def test_the_model_that_is_used_stays_in_the_menu(emoji, trainings, one, monkeypatch):
    for module in (engine_module, trained):
        monkeypatch.setattr(module, "OFFERED_PER_OWNER", 1)
    trainings.choose(one, OWNER, 1, 0.5)
    engine = LocalEngine(lambda name: emoji, ("emoji",))
    try:
        used = f"dreambooth-{one[:8]}-2"
        for name in (f"dreambooth-{one[:8]}-1-0.5", used, used):  # the newer is offered, then the older is chosen
            ((_, found),) = trained.choices(engine, trainings, ["base"], OWNER, "en", name)[1:]
            assert found == name and engine.for_role("base", OWNER) == ["emoji", name]
    finally:
        engine.close()


def test_its_preview_and_its_picture_are_the_same(engine, emoji, trainings, one):
    """The film shows what the menu's model draws; and nobody else's picture changes."""
    before = {name: weight.clone() for name, weight in emoji.unet.state_dict().items()}
    name = trained.offer(engine, trainings, OWNER, one, 2)
    trace = engine.result(engine.submit(Request("a sks dog", seed=SMALL.seed, guidance=GUIDANCE, model=name), OWNER))
    with Image.open(trainings.previews(one, OWNER)[-1]["pictures"][0]["path"]) as film:
        apart = np.asarray(film, int) - np.asarray(render.picture(trace.picture).image, int)
    assert np.abs(apart).max() <= 1, "drawn alone, or with the other previews"
    assert all((weight == before[key]).all() for key, weight in emoji.unet.state_dict().items())


def test_no_slider_of_the_page_is_believed():
    told = {"step": "50", "strength": "0.75"}
    assert dreambooth.checkpoint_of(told) == (50, 0.75) and dreambooth.checkpoint_of(told | {"strength": ""}) == (50, 1.0)
    for wrong in ({"step": ""}, {"step": "1.5"}, {"strength": "3"}, {"strength": "nan"}, {"strength": "x"}):
        with pytest.raises(ValueError, match=r"checkpoint|strength"):
            dreambooth.checkpoint_of(told | wrong)


def test_nothing_of_where_a_picture_was_taken_is_kept(trainings, one):
    for path in (trainings.home / one).rglob("*.png"):
        with Image.open(path) as image:
            assert not image.getexif() and not image.info
    assert trainings.home.name not in json.dumps(dreambooth.flight(trainings, OWNER, Known(one), "en"))


def test_forgetting_takes_the_models_too(engine, trainings, one):
    trained.offer_all(engine, trainings, OWNER, "en")
    assert trained.names(engine, trainings, OWNER, one)
    trainings.forget_all(OWNER)
    engine.forget(OWNER)
    assert not trainings.mine(OWNER) and engine.for_role("base", OWNER) == ["emoji"] and not (trainings.home / one).exists()
