"""Inside Stable Diffusion: opens the page. `python app.py --help` lists what can be set."""

import argparse
import os
import threading
from dataclasses import replace
from pathlib import Path

# Nothing leaves the machine: said before gradio and huggingface_hub are imported, for they read it then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from starlette.middleware import Middleware

import ui
from core import models
from core.catalog import CATALOG, role_of
from core.engine import LocalEngine
from core.models import StableDiffusion
from core.trace import Trace
from core.trainings import Trainings
from ui import common, trained

HOST = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # Hugging Face Spaces sets it
STYLE = Path(__file__).parent / "assets" / "style.css"


def places_of(extra: list[str]) -> dict[str, str]:
    """The names that the menu has for the models of the command line, and where they are."""
    return {(Path(m).resolve().name if Path(m).is_dir() else m): str(Path(m).resolve()) if Path(m).is_dir() else m for m in extra}


def make_engine(extra: list[str], download: bool = False) -> tuple[LocalEngine, str]:
    """An engine for the catalogue's models and those named on the command line, and the base model to begin with.

    A local folder goes by its last name, so that no picture's settings tell where it lies on this machine. Without `download` the menu
    opens what is on disk only: a visitor's click must not make a server fetch gigabytes.
    """
    places = places_of(extra)

    def load(name: str) -> StableDiffusion:
        return replace(models.load(places.get(name, name), fetch=download), name=name)

    roles = {name: role_of(place) for name, place in places.items()} | {
        name: role_of(name) for name in CATALOG if name not in places
    }
    return LocalEngine(load, roles), next(name for name, role in roles.items() if role == "base")


def make_app(engine: LocalEngine, default: str, example: Path = common.EXAMPLE, trainings: Trainings | None = None) -> gr.Blocks:
    """The page, ready to launch with **LAUNCH. trainings: those of this machine, if it is not told of others."""
    with gr.Blocks(title="Inside Stable Diffusion", fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        model, owner = common.header(engine, default, demo)
        first = Trace.open(example) if example.exists() else None
        states = (
            gr.State(""),
            gr.State(None),
            gr.State(None),
            gr.State(None),
        )
        news = gr.State(None)  # here: Gradio counts what stands among the tabs as tabs
        with gr.Tabs(elem_id="tabs") as tabs:
            shared = common.Shared(engine, default, model, owner, first, *states, tabs, trainings or Trainings(), news)
            trained.follow(shared, model, ["base"], default)
            for tab in ui.TABS:
                with gr.Tab(common.i18n(tab.TITLE), id=tab.TITLE, elem_id=tab.TITLE) as place:
                    tab.build(shared, place)
    return demo.queue(max_size=common.WATCHERS, api_open=False)


# Plain shapes and the bundled fonts; colours and sizes are in assets/style.css.
FONT = [
    gr.themes.utils.fonts.LocalFont("IBM Plex Sans"),
    "Noto Sans CJK JP",
    "Hiragino Sans",
    "Yu Gothic UI",
    "system-ui",
    "sans-serif",
]
MONO = [gr.themes.utils.fonts.LocalFont("IBM Plex Mono"), "ui-monospace", "monospace"]
LAUNCH = {
    "theme": gr.themes.Base(
        primary_hue="slate",
        secondary_hue="slate",
        neutral_hue="slate",
        text_size="lg",
        radius_size="md",
        font=FONT,
        font_mono=MONO,
    ).set(  # what shows before the style sheet has come
        body_background_fill="#fafaf8",
        body_background_fill_dark="#12151a",
        body_text_color="#1a1e26",
        body_text_color_dark="#e9ecf1",
    ),
    "app_kwargs": {"middleware": [Middleware(common.SwitchedLanguage)]},
    "css_paths": STYLE,
    "head_paths": [Path(ui.__file__).parent / name for name in ("head.html", "maps.html", "dom.html")],
    "i18n": common.i18n,
    "footer_links": ["api"],
    "run_history": False,
    "share": False,
    "ssr_mode": False,
    "pwa": False,
    "enable_monitoring": False,
    "max_file_size": "20mb",  # a photo of 25 megapixels, the most that images.py lets in, takes up to 15
    "max_threads": common.WATCHERS + 40,
    "show_error": True,
    "strict_cors": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME_OR_FOLDER", help="comes first in the menu; may be repeated"
    )
    parser.add_argument("--host", default=HOST, help="0.0.0.0 lets other machines in; default %(default)s")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--download", action="store_true", help="let the menu fetch models from the Hugging Face Hub")
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    arguments = parser.parse_args()

    try:
        engine, default = make_engine(arguments.model, arguments.download)
    except ValueError as error:  # a folder that is no model
        parser.error(str(error))
    threading.Thread(target=warm, args=(engine, default), daemon=True).start()
    demo = make_app(engine, default, trainings=Trainings(places=places_of(arguments.model)))
    demo.launch(server_name=arguments.host, server_port=arguments.port, inbrowser=arguments.open, **LAUNCH)


def warm(engine: LocalEngine, model: str) -> None:
    """Loads the first model while the page opens. What goes wrong is said to whoever draws, and here."""
    try:
        engine.model(model)
    except ValueError as error:
        print(f"The model could not be loaded: {error}", flush=True)


if __name__ == "__main__":
    main()
