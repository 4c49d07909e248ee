"""The grid: what is shared, what it costs, and that each cell is its own single run."""

from dataclasses import replace

import pytest
import torch
from conftest import toy_model

from core import sweep
from core.engine import LocalEngine
from core.sampling import Request, denoise
from core.sweep import Meter, Sweep, Tile, parse_scales, parse_values
from core.text import Edit
from core.trace import Trace

REQUEST = Request("a dog in a hat", steps=20, seed=3)


def counted(sd, grid, **options):
    rows = []
    hook = sd.unet.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    try:
        cells = list(sweep.run(sd, grid, **options))
    finally:
        hook.remove()
    return sum(rows), cells


@pytest.mark.parametrize(
    ("typed", "scales"),
    [
        ("0, 1, 2, 10", (0, 1, 2, 10)),
        ("1-9 (+2)", (1, 3, 5, 7, 9)),
        ("0.5,1.5", (0.5, 1.5)),
        ("1-2 (+0.25)", (1, 1.25, 1.5, 1.75, 2)),
        ("1-3, 2, 7.5,", (1, 2, 3, 7.5)),
        ("", ()),
    ],
)
def test_scales_are_read_as_people_write_them(typed, scales):
    assert parse_scales(typed) == scales


@pytest.mark.parametrize("typed", ["a", "1;2", "9-1", "1-9 (+0)", "-3", "1-99999999", "nan"])
def test_what_is_no_scale_is_named(typed):
    with pytest.raises(ValueError, match=r"guidance scale|range"):
        parse_scales(typed)


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_nine_scales_of_twenty_steps_are_306_passes(toy, batch):
    grid = Sweep(REQUEST, tuple(range(9)))
    cost = sweep.cost(toy, grid)
    assert cost == sweep.Cost(first=2, rest=304, naive=360, pictures=9) and (cost.passes, cost.saved) == (306, 54)
    assert counted(toy, grid, batch=batch)[0] == 306


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("seed", ("1", "2")),
        ("steps", ("3", "5")),
        ("scheduler", ("Euler", "Heun")),
        ("negative", ("", "red")),
        ("swap", ("dog", "dog -> cat")),
    ],
)
def test_every_cell_is_its_own_single_run_and_the_cost_is_as_said(toy, axis, values):
    grid = Sweep(Request("a dog in a hat", steps=4, seed=3), (0, 1, 3), axis, values)
    passes, cells = counted(toy, grid)
    assert passes == sweep.cost(toy, grid).passes
    done = {(c.row, c.column): c for c in cells if c.done}
    assert len(done) == 6
    for k, row in enumerate(grid.rows()):
        for n, request in enumerate(row):
            *_, last = denoise(toy, request)
            assert (done[k, n].step.x_next - last.x_next).abs().max() < 1e-4
            assert done[k, n].picture.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("axis", "typed", "values"),
    [
        ("none", "anything", ("",)),
        ("seed", "1, 2,\n7", ("1", "2", "7")),
        ("seed", "4294967290-4294967295 (+5)", ("4294967290", "4294967295")),
        ("steps", "5-20 (+5), 5", ("5", "10", "15", "20")),
        ("scheduler", "DDIM, DPM++ 2M Karras", ("DDIM", "DPM++ 2M Karras")),
        ("negative", "red, or blue\n\ngreen", ("grey", "red, or blue", "green")),
        ("swap", "dog -> cat, dog -> fox\nhat -> crown", ("dog", "dog -> cat", "dog -> fox", "hat", "hat -> crown")),
        ("seed", " , ", ()),
        ("negative", "", ()),
    ],
)
def test_values_of_the_second_axis_are_read_as_people_write_them(axis, typed, values):
    assert parse_values(axis, typed, Request("a dog in a hat", "grey")) == values


def test_a_range_of_seeds_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no end"):
        parse_values("seed", "1-4000000000", REQUEST)


def test_a_swap_leaves_no_edits_without_their_places():
    edited = replace(REQUEST, edits=(Edit("blank", 2),))
    with pytest.raises(ValueError, match="Edits belong to places among the words"):
        Sweep(edited, (2,), "swap", ("dog", "dog -> cat"))
    assert Sweep(edited, (2,), "swap", ("dog",)).rows()[0][0].edits == edited.edits, "unchanged words keep theirs"


def test_a_swap_puts_in_what_is_typed_and_nothing_else():
    (_, (row, *_)) = Sweep(REQUEST, (2,), "swap", ("dog", r"dog -> \1 $ cat")).rows()
    assert row.prompt == r"a \1 $ cat in a hat"


@pytest.mark.parametrize(
    ("request_", "scales"),
    [
        (Request("", steps=4), (0, 1, 5)),  # both branches read the same
        (Request("a dog", "red", steps=4, scheduler="Heun"), (0, 1, 5)),
        (Request("a dog", steps=4, interval=(1, 3)), (0, 1, 5)),
        (Request("a dog", steps=1), (1,)),
    ],
)
def test_the_cost_is_what_the_unet_counts(toy, request_, scales):
    grid, meter = Sweep(request_, scales), Meter()
    passes, _ = counted(toy, grid, meter=meter)
    assert passes == sweep.cost(toy, grid).passes == meter.passes
    assert meter.pictures == len(scales) and meter.unet > 0 and meter.decoding > 0
    assert meter.seconds(2 * passes, 0) == pytest.approx(2 * meter.unet)
    assert Meter().seconds(1, 1) is None


def test_where_memory_ends_fewer_cells_are_drawn_at_once():
    small, calls = toy_model(), []

    def narrow(_, args):
        calls.append(len(args[0]))
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError

    small.unet.register_forward_pre_hook(narrow)
    grid = Sweep(Request("a dog", steps=2, model="toy"), (2, 3, 4, 5, 6))
    done = [c for c in sweep.run(small, grid, batch=5) if c.done]
    assert [c.column for c in done] == [0, 1, 2, 3, 4] and max(calls) == 10 and calls[-1] <= 4
    engine = LocalEngine(lambda _: small, allowed=("toy",))
    job = engine.submit_work("toy", sweep.work(grid, batch=5), "me", "sweep")
    assert [s.state for s in engine.events(job)][-1] == "done"
    engine.close()


# --- as work for the engine -------------------------------------------------------------------------------------------------------


def drawn(toy, grid) -> list[Tile]:
    return [part.value for part in sweep.work(grid)(toy)]


def test_the_work_hands_over_a_tile_a_step_and_the_run_at_the_end(toy):
    grid = Sweep(Request("a dog in a hat", steps=3, seed=3), (0, 1, 4), "seed", ("3", "4"))
    parts = list(sweep.work(grid)(toy))
    assert [(p.i, p.count) for p in parts] == [(n, 18) for n in range(18)]
    tiles = [p.value for p in parts]
    runs = {(t.row, t.column): t.trace for t in tiles if t.trace is not None}
    assert len(runs) == 6 and all(t.trace is None for t in tiles if t.i < 2)
    assert tiles[-1].passes == sweep.cost(toy, grid).passes and tiles[-1].seconds > tiles[0].seconds > 0
    assert tiles[-1].seconds_left == 0 and all(t.seconds_left > 0 for t in tiles if t.i < 2)
    for (row, column), trace in runs.items():
        request = grid.rows()[row][column]
        assert trace.request == request and not trace.stopped
        alone = Trace.start(toy, request)
        *_, last = alone.follow(denoise(toy, request))
        alone.finish(toy, last.x_next)
        assert len(trace) == 3
        assert all((a.x0 - b.x0).abs().max() < 1e-4 for a, b in zip(trace, alone, strict=True))
        assert (trace.picture.int() - alone.picture.int()).abs().max() <= 1
        again = sweep.tiles_of(trace)
        mine = [t for t in tiles if (t.row, t.column) == (row, column)]
        assert all(torch.equal(a.preview, b.preview) and a.strengths == b.strengths for a, b in zip(mine, again, strict=True))


def test_a_tile_s_numbers_are_those_of_its_step(toy):
    w0, w1, w4 = drawn(toy, Sweep(Request("a dog", steps=1, seed=3), (0, 1, 4)))
    assert w0.strengths.cond is None and w0.strengths.pull is None and w0.strengths.eps == w0.strengths.uncond
    assert w1.strengths.uncond is None and w1.strengths.eps == w1.strengths.cond
    (step,) = w4.trace
    assert w4.strengths.pull == pytest.approx(float(((step.eps_cond - step.eps_uncond) ** 2).mean().sqrt()))
    assert w4.strengths.uncond == w0.strengths.uncond and w4.strengths.cond == w1.strengths.cond


def test_beyond_the_budget_the_pictures_are_kept_without_their_steps(toy, monkeypatch):
    monkeypatch.setattr(sweep, "KEPT_BYTES", 60_000)
    runs = [t.trace for t in drawn(toy, Sweep(Request("a dog", steps=3, seed=3), (2, 3, 4, 5))) if t.trace is not None]
    assert all(trace.picture is not None for trace in runs)
    lengths = [len(trace) for trace in runs]
    assert lengths[0] == 3 and lengths[-1] == 0
    assert sum(trace.nbytes for trace in runs if len(trace)) <= 60_000


def test_a_prediction_that_is_not_finite_keeps_what_is_done():
    sick, calls = toy_model(), []

    def spoil(module, args, output):
        calls.append(1)
        return (output[0] * float("nan"),) if len(calls) > 2 else output

    sick.unet.register_forward_hook(spoil)
    engine = LocalEngine(lambda _: sick, allowed=("toy",))
    grid = Sweep(Request("a dog", steps=2, model="toy"), (2, 3, 4))
    job = engine.submit_work("toy", sweep.work(grid, batch=1), "me", "sweep")
    assert [s.state for s in engine.events(job)][-1] == "stopped"
    *tiles, why = engine.values(job)
    assert [t.column for t in tiles if t.trace is not None] == [0] and "not finite" in why
    broken = engine.submit_work("toy", sweep.work(grid, batch=1), "me", "sweep")
    assert [s.state for s in engine.events(broken)][-1] == "failed", "nothing done, nothing kept"
    engine.close()


def test_the_first_step_is_the_same_for_all_scales_and_their_paths_part_by_w(toy):
    for scheduler in ("DDIM", "Euler", "Euler a", "DPM++ 2M"):
        grid = Sweep(Request("a dog in a hat", steps=4, seed=3, scheduler=scheduler), (0, 1, 2, 5, 10))
        tiles = drawn(toy, grid)
        first = {t.column: t.strengths.pull for t in tiles if t.i == 0}
        assert first[2] == first[3] == first[4] > 0, "one noise, one pair of predictions"
        runs = [t.trace for t in tiles if t.trace is not None]
        ways = [sweep.apart(runs[1], trace) for trace in runs]
        assert ways[1] == [0] * 5 and all(way[0] == 0 for way in ways)
        one = ways[2][1]  # from w = 1 to w = 2
        assert [way[1] / one for way in ways] == pytest.approx([1, 0, 1, 4, 9], rel=1e-2)
        assert all(0 < sweep.halfway(way) <= 4 for n, way in enumerate(ways) if n != 1)


def test_the_speed_is_measured_on_the_device(toy):
    clock = sweep.measure(toy, Sweep(Request("a dog", steps=50, interval=(3, 9)), (1, 4), "seed", ("1", "2")))
    assert clock.passes in (2 + 3, 2 + 2 * 3) and clock.pictures == 2, "two cells in two or three steps"
    assert clock.seconds(10 * clock.passes, 20) == pytest.approx(10 * clock.seconds(clock.passes, 2))


def test_batches_are_as_large_as_pays(toy, emoji):
    assert sweep.batch_of(toy, REQUEST) == 32  # 8 x 8 latents
    assert sweep.batch_of(emoji, REQUEST) == 8
    assert sweep.batch_of(emoji, Request("a", width=512, height=512)) == 1


def test_stopping_keeps_what_is_done(toy):
    done = []
    for cell in sweep.run(toy, Sweep(Request("a dog", steps=2), (1, 2, 3, 4)), batch=2):
        done += [cell] if cell.done else []
        if len(done) == 2:
            break
    assert [c.column for c in done] == [0, 1]


def test_wrong_grids_are_refused():
    for arguments, sentence in [
        (((),), "no guidance scales"),
        (((31,),), "guidance is 31"),
        (((1,), "colour", ("red",)), "no axis 'colour'"),
        (((1,), "seed", ("x",)), "no whole number"),
        (((1,), "steps", ("0",)), "steps is 0"),
        (((1,), "scheduler", ("Magic",)), "no scheduler"),
        (((1,), "swap", ("fox -> cat",)), "does not hold 'fox'"),
        ((tuple(range(20)), "seed", tuple("123456")), "120 cells; at most 64"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Sweep(REQUEST, *arguments)


def test_known_predictions_and_a_record_do_not_go_together(toy):
    from core.attention import Record
    from core.sampling import denoise_many

    with pytest.raises(ValueError, match="leave no attention to record"):
        next(denoise_many(toy, [REQUEST], Record(), {(3, ""): torch.zeros(1)}))
