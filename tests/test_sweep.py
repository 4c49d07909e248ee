"""The grid: what is shared, what it costs, and that each cell is its own single run."""

import pytest
import torch

from core import sweep
from core.sampling import Request, denoise
from core.sweep import Sweep, parse_scales

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
    assert sweep.cost(toy, grid) == sweep.Cost(306, 360)
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
