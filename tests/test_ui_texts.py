"""What the page says: the same in both languages, all of it used, and core's refusals known in Japanese."""

import inspect
import re
import string
from pathlib import Path

import pytest

import ui
from core import catalog, images, recipe
from core.lane import ENDED
from core.sampling import Request, check_interval
from core.schedulers import make
from core.trainings import THEMES
from ui import common, texts

UI = Path(texts.__file__).parent
SOURCES = "\n".join(path.read_text("utf-8") for path in [*UI.glob("*.py"), *UI.glob("*.js")] if path.name != "texts.py")


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_keys_and_fill_in_the_same_values():
    assert texts.EN.keys() == texts.JA.keys()
    assert {key: names(text) for key, text in texts.EN.items()} == {key: names(text) for key, text in texts.JA.items()}


def test_japanese_is_japanese():
    shared = {"name", "prompt_placeholder", "tab_dreambooth"}  # names, and a prompt: the model reads English
    untranslated = [key for key, text in texts.JA.items() if text == texts.EN[key] and key not in shared]
    assert not untranslated


def test_every_text_is_used_and_every_text_used_is_there():
    # A script says texts.x, which is the key {script}_x; viewer.js is the oldest and says view_x.
    scripts = {("view" if path.stem == "viewer" else path.stem): path.read_text("utf-8") for path in UI.glob("*.js")}
    in_scripts = {f"{name}_{key}" for name, script in scripts.items() for key in re.findall(r"\btexts\.(\w+)", script)}
    assert not in_scripts - texts.EN.keys(), "said by a script, but not there"
    said = set(re.findall(r"""["']([a-z0-9_]+)["']""", SOURCES)) | in_scripts
    said |= {f"{tab}_{part}" for tab in re.findall(r'heading\("(\w+)"\)', SOURCES) for part in ("question", "about")}
    said |= {f"{tab}_run" for tab in re.findall(r'panel_buttons\("(\w+)"\)', SOURCES)}
    # The status of a run, the marks of a token and what was cut off a picture are put together: f"status_{state}".
    put_together = {
        "status_": ("queued", "loading", "running", "starting", "starting_picture", "decoding"),
        "tokens_": ("start", "end"),
        "pictures_fit_": ("whole", "sides", "ends"),
        "dreambooth_method_": recipe.METHODS,
        "dreambooth_theme_": THEMES,
        "dreambooth_": (
            "waiting",
            "waiting_many",
            "waiting_next",
            "preparing",
            "preparing_class",
            "training",
            "training_first",
            *ENDED,
        ),
    }
    said |= {f"{key}_left_out" for key in common.BESIDE}
    said |= {prefix + end for prefix, ends in put_together.items() for end in ends if f'"{prefix}{{' in SOURCES}
    assert texts.EN.keys() - said == set(), "never said"
    asked = re.findall(r'(?:i18n|hint)\("(\w+)"\)|say\((?:language|common.language\(request\)), "(\w+)"', SOURCES)
    assert not {key for pair in asked for key in pair if key} - texts.EN.keys(), "said, but not there"


@pytest.mark.parametrize("tab", ui.TABS, ids=lambda tab: tab.__name__)
def test_a_tab_explains_itself_in_its_docstring_as_on_the_page(tab):
    docstring, name = " ".join(inspect.cleandoc(tab.__doc__).split()), tab.TITLE.removeprefix("tab_")
    assert docstring == f"{texts.EN[f'{name}_question']} {texts.EN[f'{name}_about']}"


def test_labels_carry_no_emoji():
    assert not [
        text
        for language in texts.LANGUAGES.values()
        for text in language.values()
        if re.search("[\U0001f000-\U0001faff☀-➿]", text)
    ]


REFUSED = [
    lambda: Request("a", steps=0),
    lambda: Request("a", steps=2.5),
    lambda: Request("a", interval=(1,)),
    lambda: check_interval([Request("a", interval=(30, 40))], 20),
    lambda: Request("a", guidance=float("nan")),
    lambda: Request("a", seed=-1),
    lambda: Request("a" * 2001),
    lambda: Request("a", negative="\0"),
    lambda: Request(None),
    lambda: Request("a", scheduler="magic"),
    lambda: Request("a", width=65),
    lambda: Request("a", height=15),
    lambda: Request("a", interval=(5, 3)),
    lambda: make("LCM", {"beta_schedule": "scaled_linear"}, 80),
    lambda: images.read_settings(b"no picture"),
    lambda: catalog.resolve("sd15"),  # the tests are offline
    lambda: catalog.resolve(str(UI)),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_refusals_of_core_are_said_in_the_visitors_language(refused):
    with pytest.raises(ValueError) as error:
        refused()
    assert texts.sentence("en", error.value) == str(error.value)
    japanese = texts.sentence("ja", error.value)
    assert re.search("[ぁ-ん]", japanese), f"no Japanese for: {error.value}"
    assert not re.search(r"\bThe\b|[{}]", japanese)


def test_an_unknown_refusal_is_said_as_it_is():
    assert texts.sentence("ja", ValueError("Something else.")) == "Something else."


@pytest.mark.parametrize(
    "cookies, accept, language",
    [
        (None, None, "en"),
        (None, "ja", "ja"),
        (None, "ja-JP,ja;q=0.9,en;q=0.8", "ja"),
        (None, "en-US,en;q=0.9,ja;q=0.8", "en"),
        (None, "fr,ja;q=0.5,en;q=0.7", "en"),
        (None, "de", "en"),
        (None, ";;;q=x,,", "en"),
        ("a=b; language=ja", "en", "ja"),
        ("language=xx", "ja", "ja"),
        ("notlanguage=ja", "en", "en"),
    ],
)
def test_the_switch_comes_before_the_browser(cookies, accept, language):
    assert texts.language_of(cookies, accept) == language
