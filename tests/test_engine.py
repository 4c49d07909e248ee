"""One lane, many people: nobody's picture mixes with another's, and everyone gets a turn."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import toy_model

from core import schedulers
from core.engine import LocalEngine, Part
from core.sampling import Request, denoise

NAMES = ["DDIM", "PNDM", "Euler", "DPM++ 2M", "UniPC", "Heun"]


@pytest.fixture
def engine(toy):
    made = LocalEngine(lambda name: toy, allowed=("toy", "broken"))
    yield made
    made.close()


def ask(k: int) -> Request:
    return Request(f"a dog number {k}", seed=k, steps=3 + k % 4, guidance=1.5 + k % 5, scheduler=NAMES[k % 6], model="toy")


def single(sd, request):
    *_, last = denoise(sd, request)
    return last.x_next


def test_48_jobs_of_8_threads_equal_their_single_runs(engine, toy):
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda k: engine.submit(ask(k), owner=f"person {k}"), range(48)))
        traces = [engine.result(one, timeout=120) for one in ids]
    assert [t.request for t in traces] == [ask(k) for k in range(48)]
    assert sum(torch.equal(t.steps[-1].x_next, single(toy, ask(k))) for k, t in enumerate(traces)) == 48


def test_interleaved_loops_equal_their_single_runs(toy):
    runs = [denoise(toy, ask(k)) for k in range(6)]
    ends = {}
    while len(ends) < 6:
        for k, steps in enumerate(runs):
            if k not in ends and (step := next(steps, None)) is not None and step.i == step.count - 1:
                ends[k] = step.x_next
    assert all(torch.equal(ends[k], single(toy, ask(k))) for k in range(6))


def test_a_shared_scheduler_would_fail_this(toy, monkeypatch):
    """The test above can fail: with one scheduler for all, runs that take turns spoil each other."""
    asked = [replace(ask(k), scheduler="DPM++ 2M", steps=6) for k in range(4)]
    right = [single(toy, r) for r in asked]
    shared = schedulers.make("DPM++ 2M", toy.scheduler_config, 6)
    monkeypatch.setattr(schedulers, "make", lambda *_: shared)
    runs = [denoise(toy, r) for r in asked]
    ends: dict[int, torch.Tensor] = {}
    for _ in range(6):
        for k, steps in enumerate(runs):
            try:
                ends[k] = next(steps).x_next
            except (IndexError, StopIteration):  # the other runs have used up its steps
                ends[k] = torch.zeros(0)
    assert any(ends[k].shape != right[k].shape or not torch.equal(ends[k], right[k]) for k in range(4))


def test_events_tell_the_story(engine):
    job = engine.submit(Request("a dog", steps=50, model="toy"))
    seen = list(engine.events(job, rate=1000))
    states = [s.state for s in seen]
    assert states[-1] == "done" and "failed" not in states
    assert [s.version for s in seen] == sorted({s.version for s in seen})
    steps = [s.i for s in seen if s.state == "running" and s.i]
    assert steps == sorted(steps) and all(s.count == 50 for s in seen if s.i)
    assert any(s.preview is not None and s.preview.shape == (3, 8, 8) for s in seen)
    assert list(engine.events(job))[-1].state == "done"  # a page that comes back finds it


def slow(sd):
    """A model that takes 20 ms a step, so that a test can act in the middle."""
    sd.unet.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    return sd


def test_stop_acts_within_one_step_and_the_next_job_runs():
    engine = LocalEngine(lambda _: slow(toy_model()), allowed=("toy",))
    first, second = (engine.submit(Request("a dog", steps=n, model="toy"), owner=o) for o, n in (("a", 100), ("b", 3)))
    for snapshot in engine.events(first, rate=1000):
        if snapshot.i >= 3:
            engine.cancel(first)
            stopped_at = next(engine.events(first)).i
            break
    trace = engine.result(first, timeout=5)
    assert trace.stopped and trace.picture is None
    assert len(trace) <= stopped_at + 1
    assert any(s.i for s in engine.events(second))
    assert not engine.result(second, timeout=5).stopped
    engine.close()


def test_a_waiting_job_can_be_stopped():
    engine = LocalEngine(lambda _: slow(toy_model()), allowed=("toy",))
    first = engine.submit(Request("a dog", steps=30, model="toy"))
    second = engine.submit(Request("a cat", steps=30, model="toy"))
    engine.cancel(second)
    assert list(engine.events(second))[-1].state == "stopped"
    with pytest.raises(ValueError, match="stopped before it began"):
        engine.result(second)
    assert not engine.result(first, timeout=20).stopped
    engine.close()


def test_who_asks_for_one_does_not_wait_for_who_asks_for_three():
    engine = LocalEngine(lambda _: slow(toy_model()), allowed=("toy",))
    heavy = [engine.submit(Request("x", seed=k, steps=3, model="toy"), owner="heavy") for k in range(3)]
    light = [engine.submit(Request("y", steps=3, model="toy"), owner=f"light {k}") for k in range(4)]
    done, lock = [], threading.Lock()

    def wait(job):
        engine.result(job, timeout=60)
        with lock:
            done.append(job)

    with ThreadPoolExecutor(7) as pool:
        list(pool.map(wait, heavy + light))
    assert max(done.index(j) for j in light) <= 5  # at most two of the heavy one's came before
    engine.close()


def test_places_count_down():
    engine = LocalEngine(lambda _: slow(toy_model()), allowed=("toy",))
    jobs = [engine.submit(Request("x", seed=k, steps=4, model="toy"), owner=str(k)) for k in range(4)]
    places = [s.place for s in engine.events(jobs[3], rate=1000) if s.state == "queued"]
    assert places == sorted(places, reverse=True) and places[-1] >= 1
    engine.close()


def test_limits_are_said(engine):
    with pytest.raises(ValueError, match="no model 'emoji' in this app"):
        engine.submit(Request("a dog"))
    gate = threading.Event()
    blocked = LocalEngine(lambda _: gate.wait(60) and toy_model(), allowed=("toy",))
    try:
        first = blocked.submit(ask(0), owner="a")
        assert next(s for s in blocked.events(first) if s.state != "queued").state == "loading"
        for k in range(3):
            blocked.submit(ask(k), owner="a")
        with pytest.raises(ValueError, match="3 runs waiting already"):
            blocked.submit(ask(5), owner="a")
    finally:
        gate.set()
        blocked.close()


def test_an_error_ends_its_job_and_not_the_lane(toy):
    def load(name):
        if name == "broken":
            raise ValueError("The model broken is broken.")
        return toy

    engine = LocalEngine(load, allowed=("toy", "broken"))
    bad = engine.submit(Request("a dog", model="broken"))
    with pytest.raises(ValueError, match="The model broken is broken"):
        engine.result(bad, timeout=5)
    assert list(engine.events(bad))[-1].message == "The model broken is broken."
    assert engine.result(engine.submit(ask(1)), timeout=20).picture is not None
    engine.close()


@pytest.mark.parametrize("at", [0, 2])  # of three calls
def test_out_of_memory_is_a_sentence_and_the_next_run_is_right(at):
    sd, calls = toy_model(), []

    def fail(*_):
        calls.append(1)
        if len(calls) == at + 1:
            raise torch.OutOfMemoryError("no memory")

    sd.unet.register_forward_pre_hook(fail)
    engine = LocalEngine(lambda _: sd, allowed=("toy",))
    with pytest.raises(ValueError, match="ran out of memory; choose a smaller size"):
        engine.result(engine.submit(ask(0)), timeout=20)
    assert torch.equal(engine.result(engine.submit(ask(1)), timeout=20).steps[-1].x_next, single(sd, ask(1)))
    engine.close()


def test_a_model_is_read_while_another_loads(toy):
    """A page that counts tokens must not wait for somebody else's checkpoint."""
    gate = threading.Event()

    def load(name):
        assert name == "toy" or gate.wait(60)
        return toy

    engine = LocalEngine(load, allowed=("toy", "broken"))
    engine.model("toy")
    slow_job = engine.submit(Request("a dog", model="broken"))
    assert next(s for s in engine.events(slow_job) if s.state != "queued").state == "loading"
    assert engine.model("toy") is toy
    engine.cancel(slow_job)
    gate.set()
    assert list(engine.events(slow_job))[-1].state == "stopped"
    engine.close()
    with pytest.raises(ValueError, match="closing"):
        engine.submit(ask(1))


def test_nan_is_a_sentence(toy):
    sd = toy_model()
    sd.unet.register_forward_hook(lambda *_: (torch.full((2, 4, 8, 8), float("nan")),))
    engine = LocalEngine(lambda _: sd, allowed=("toy",))
    with pytest.raises(ValueError, match="noise prediction of step 1 is not finite"):
        engine.result(engine.submit(ask(0)), timeout=20)
    engine.close()


def test_finished_runs_are_kept_for_their_owner_up_to_a_limit(engine):
    ids = []
    for k in range(10):
        ids.append(engine.submit(replace(ask(k), steps=1), owner="a"))
        engine.result(ids[-1], timeout=60)
    other = engine.submit(replace(ask(1), steps=1), owner="b")
    engine.result(other, timeout=60)
    deadline = time.time() + 5
    while len(engine.mine("a")) > 8 and time.time() < deadline:
        time.sleep(0.01)
    assert engine.mine("a") == ids[2:] and engine.mine("b") == [other]
    with pytest.raises(ValueError, match="no longer kept"):
        engine.result(ids[0])


# --- anything else that needs a model -----------------------------------------------------------------------------------------


def test_a_work_hands_over_its_parts_and_is_stopped_between_two(engine):
    def count(sd):
        for i in range(1000):
            time.sleep(0.01)
            yield Part(i, 1000, i * i)

    one = engine.submit_work("toy", count, "anna", "counting")
    for snapshot in engine.events(one):
        if snapshot.i >= 3:
            engine.cancel(one)
    assert snapshot.state == "stopped" and 3 <= snapshot.i < 1000
    assert engine.values(one) == [i * i for i in range(snapshot.i)]
    assert engine.values(one, 2)[0] == 4
    assert engine.mine("anna", "counting") == [one] and one not in engine.mine("anna")
    with pytest.raises(ValueError, match="before it began"):
        engine.result(one)


def test_a_question_waits_for_its_turn_and_leaves_nothing_behind(engine):
    assert engine.ask("toy", lambda sd: sd.factor, "ben") == 8

    def wrong(sd):
        raise ValueError("The picture is too small; take a larger one.")

    with pytest.raises(ValueError, match="take a larger one"):
        engine.ask("toy", wrong, "ben")
    assert not engine.mine("ben", "question")


def test_a_run_made_elsewhere_is_kept_and_everything_can_be_forgotten(engine):
    trace = engine.result(engine.submit(Request("a", steps=2, model="toy"), "cleo"))
    again = engine.keep(trace, "cleo")
    assert engine.result(again) is trace and len(engine.mine("cleo")) == 2
    engine.forget("cleo")
    assert not engine.mine("cleo")
    with pytest.raises(ValueError, match="no longer kept"):
        engine.result(again)


# --- private models -----------------------------------------------------------------------------------------------------------


def test_a_private_model_is_its_owners_alone(engine, toy):
    loads = []
    engine.offer("mine", "base", lambda: loads.append(1) or replace(engine.model("toy"), name="mine"), "anna")
    assert engine.for_role("base", "anna") == ["toy", "broken", "mine"] and engine.for_role("base", "ben") == ["toy", "broken"]
    assert engine.for_role("base") == ["toy", "broken"] and not loads
    mine = replace(ask(1), model="mine")
    trace = engine.result(engine.submit(mine, "anna"), timeout=60)
    assert torch.equal(trace.steps[-1].x_next, single(toy, ask(1)))
    assert engine.ask("mine", lambda sd: sd.name, "anna") == "mine" and loads == [1]
    for owner in ("ben", ""):
        for refused in (
            lambda who: engine.submit(mine, who),
            lambda who: engine.ask("mine", lambda sd: 1, who),
            lambda who: engine.submit_work("mine", lambda sd: iter([]), who),
        ):
            with pytest.raises(ValueError, match="no model 'mine' in this app; choose one of toy, broken"):
                refused(owner)
    with pytest.raises(ValueError, match="The name 'mine' is taken"):
        engine.offer("mine", "base", lambda: toy, "ben")
    with pytest.raises(ValueError, match="The name 'toy' is taken"):
        engine.offer("toy", "base", lambda: toy, "ben")
    engine.withdraw("mine")
    engine.withdraw("mine")
    with pytest.raises(ValueError, match="no model 'mine'"):
        engine.submit(mine, "anna")


def test_offered_again_it_is_another_and_forgotten_it_is_gone(engine, toy):
    engine.offer("mine", "base", lambda: replace(toy, source="first"), "anna")
    assert engine.model("mine").source == "first"
    engine.offer("mine", "base", lambda: replace(toy, source="second"), "anna")
    assert engine.model("mine").source == "second"
    engine.forget("anna")
    assert engine.for_role("base", "anna") == ["toy", "broken"] and engine.loaded("mine") is None


def test_of_private_models_the_three_used_last_stay_in_memory(engine, toy):
    for name in "abcd":
        engine.offer(name, "base", lambda: toy, "anna")
    for name in ("toy", "a", "b", "c", "a", "d"):
        engine.model(name)
    assert [name for name in "abcd" if engine.loaded(name)] == ["a", "c", "d"] and engine.loaded("toy")
    assert engine.model("b") is toy, "and comes back when it is asked for"


def test_a_private_model_leaves_the_memory_when_nobody_uses_it(toy, monkeypatch):
    monkeypatch.setattr("core.engine.IDLE", 0.2)
    engine = LocalEngine(lambda name: replace(toy, name=name), allowed=("toy",))
    engine.offer("mine", "base", lambda: replace(toy, name="mine"), "anna")
    made = weakref.ref(engine.model("mine"))
    engine.model("toy")
    ends = time.monotonic() + 20
    while engine.loaded("mine") and time.monotonic() < ends:
        time.sleep(0.05)
    assert not engine.loaded("mine") and made() is None and engine.loaded("toy")
    assert engine.ask("mine", lambda sd: sd.name, "anna") == "mine", "and comes back when it is asked for"
    engine.close()


def test_a_person_has_so_many_private_models(engine, toy):
    for k in range(30):
        engine.offer(f"m{k}", "base", lambda: toy, "anna")
    assert engine.for_role("base", "anna")[2:] == [f"m{k}" for k in range(29, 5, -1)]


def test_a_private_model_that_cannot_be_loaded_says_why(engine):
    def load():
        raise ValueError("The checkpoint of step 5 is damaged; choose another.")

    engine.offer("mine", "base", load, "anna")
    with pytest.raises(ValueError, match="step 5 is damaged"):
        engine.result(engine.submit(replace(ask(1), model="mine"), "anna"), timeout=20)
    assert engine.result(engine.submit(ask(1), "anna"), timeout=20).picture is not None
