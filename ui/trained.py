"""What a visitor has trained, in the model menus: for this person alone, and there again after a restart of the app."""

from collections.abc import Sequence
from contextlib import suppress

import gradio as gr

from core import catalog, models
from core.engine import OFFERED_PER_OWNER, LocalEngine
from core.lane import ENDED
from core.trainings import Trainings
from ui import common
from ui.common import QUICK, Shared
from ui.texts import say


def offer(engine: LocalEngine, trainings: Trainings, owner: str, one: str, step: int, strength: float = 1.0) -> str:
    """Puts a checkpoint of a training among this person's models, and returns its name there. Raises ValueError if it is not kept."""
    base = trainings.settings(one, owner)["recipe"]["model"]
    role = catalog.role_of(base)
    checkpoint = trainings.checkpoint(one, owner, step)
    name = trainings.model(one, owner, step, strength)
    if name not in engine.for_role(role, owner):  # offered anew, it would have to be loaded anew
        engine.offer(name, role, lambda: models.adapted(engine.model(base), checkpoint, strength), owner)
    return name


def offer_all(engine: LocalEngine, trainings: Trainings, owner: str, language: str, used: str | None = None) -> dict[str, str]:
    """What this person has trained, offered: name -> its line in a menu. Of a training that has ended, that is its last checkpoint and
    those that were chosen; of all trainings, the newest that the engine keeps at once, and the one that is used now."""
    all_of, found = [], {}
    for one in reversed(trainings.mine(owner)):
        with suppress(ValueError):  # deleted meanwhile
            settings, kept = trainings.settings(one, owner), trainings.chosen(one, owner)
            if trainings.status(one, owner).state in ENDED and (steps := trainings.checkpoints(one, owner)):
                kept = [(steps[-1], 1.0), *kept]
            all_of += [(one, settings, *chosen) for chosen in dict.fromkeys(kept)]

    def is_used(its: tuple) -> bool:
        with suppress(ValueError):  # its checkpoint is gone
            return trainings.model(its[0], owner, *its[2:]) == used
        return False

    all_of.sort(key=is_used)
    for one, settings, step, strength in all_of[-OFFERED_PER_OWNER:]:
        with suppress(ValueError):  # of a large model, old checkpoints go
            found[offer(engine, trainings, owner, one, step, strength)] = title(settings, step, strength, language)
    return found


def names(engine: LocalEngine, trainings: Trainings, owner: str, one: str) -> list[str]:
    """This person's models that came from one training."""
    base = trainings.settings(one, owner)["recipe"]["model"]
    return [name for name in engine.for_role(catalog.role_of(base), owner) if name.startswith(f"dreambooth-{one[:8]}-")]


def title(settings: dict, step: int, strength: float, language: str) -> str:
    """A trained model's line in a menu."""
    words = common.short(settings["recipe"]["instance_prompt"])
    subject = f"{words} ({settings['subject']})" if settings["subject"] else words
    key = "dreambooth_trained" if strength == 1 else "dreambooth_trained_weak"
    return say(language, key, subject=subject, step=step, strength=f"{strength:g}")


def choices(
    engine: LocalEngine, trainings: Trainings, roles: Sequence[str], owner: str, language: str, used: str | None = None
) -> list[tuple[str, str]]:
    """A model menu's lines for this person: (what it shows, name), everyone's models first. used: what the menu shows now."""
    titles = offer_all(engine, trainings, owner, language, used)
    names = [name for role in roles for name in engine.for_role(role)]
    own = [name for role in roles for name in engine.for_role(role, owner) if name in titles]
    return [(common.title_of(name), name) for name in names] + [(titles[name], name) for name in own]


def follow(shared: Shared, menu: gr.Dropdown, roles: Sequence[str], first: str | None) -> None:
    """Keeps a model menu up to date with what its visitor trains. first: what it shows where the model that it showed is gone."""
    # The engine refuses what this visitor may not use, in its own words; Gradio would refuse what a page knew before a restart.
    menu.preprocess = lambda payload: payload  # pyright: ignore[reportAttributeAccessIssue]

    def fill(stored: str | None, chosen: str | None, request: gr.Request):
        owner = common.owner_of(stored)
        lines = choices(shared.engine, shared.trainings, roles, owner, common.language(request), chosen)
        gone = chosen not in [name for _, name in lines]
        return gr.Dropdown(choices=lines, value=first) if gone else gr.Dropdown(choices=lines)

    events = [gr.context.Context.root_block.load, shared.trained.change]
    gr.on(events, fill, [shared.owner, menu], menu, **QUICK)
