"""The recorder against diffusers' own attention scores."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from core import attention
from core.attention import Record, heat_map
from core.sampling import Request, denoise
from core.trace import Trace

REQUEST = Request("a fox in a top hat", "a banana", steps=2, guidance=4)


class Reference(AttnProcessor):
    """diffusers' plain processor; get_attention_scores makes the matrix that we record."""

    def __init__(self, scores: list):
        self.scores = scores

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, record=None):
        if encoder_hidden_states is not None:
            q = attn.head_to_batch_dim(attn.to_q(hidden_states))
            k = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            self.scores.append(attn.get_attention_scores(q, k).unflatten(0, (-1, attn.heads)))
        return super().__call__(attn, hidden_states, encoder_hidden_states)


@pytest.mark.parametrize("model", ["toy", "toy_sd2", "emoji"])
@pytest.mark.parametrize("heads", [False, True])
def test_maps_equal_diffusers_scores(request, model, heads):
    sd = request.getfixturevalue(model)
    ours = next(denoise(sd, REQUEST, Record(heads=heads))).attention
    kept, scores = dict(sd.unet.attn_processors), []
    order = []
    try:
        sd.unet.set_attn_processor({n: Reference(scores) for n in kept})
        hooks = [
            m.register_forward_hook(lambda *_, name=n: order.append(name))
            for n, m in sd.unet.named_modules()
            if n.endswith("attn2")
        ]
        next(denoise(sd, REQUEST))
        for h in hooks:
            h.remove()
    finally:
        sd.unet.set_attn_processor(kept)
    assert set(order) == set(ours) == set(attention.layers_of(sd.unet))
    for layer, theirs in zip(order, scores, strict=True):
        theirs = theirs if heads else theirs.mean(1)
        assert ours[layer].shape == theirs.shape
        assert (ours[layer] - theirs).abs().max() < 1e-5


def test_rows_sum_to_one(emoji):
    for step in denoise(emoji, REQUEST, Record()):
        for p in step.attention.values():
            assert p.shape[0] == 2 and p.shape[-1] == 77  # uncond and cond, every position
            assert (p.sum(-1) - 1).abs().max() < 1e-5


def test_only_the_chosen_layers_are_recorded(toy):
    layer = attention.layers_of(toy.unet)[1]
    assert list(next(denoise(toy, REQUEST, Record(layers=(layer,)))).attention) == [layer]


def test_layers_run_from_input_to_output(emoji):
    names = attention.layers_of(emoji.unet)
    assert [n.split(".")[0] for n in names] == sorted(
        (n.split(".")[0] for n in names), key=["down_blocks", "mid_block", "up_blocks"].index
    )
    assert not any("attn1" in n for n in names)


def test_heat_map_averages_pieces_layers_and_steps():
    p = torch.zeros(2, 4, 77)
    p[1, :, 3] = torch.tensor([1.0, 0, 0, 0])
    p[1, :, 4] = torch.tensor([0.0, 0, 0, 1])
    steps = [{"a": p, "b": p}, {"a": p * 0}]
    found = heat_map(steps, (3, 4), size=(2, 2))
    assert torch.allclose(found, torch.tensor([[0.5, 0], [0, 0.5]]) * 2 / 3)
    assert heat_map(steps, (3,), size=(2, 2), branch=0).sum() == 0
    assert torch.allclose(heat_map(steps, (3,), size=(2, 2), layers=["b"]), torch.tensor([[1.0, 0], [0, 0]]))


def test_a_single_head_can_be_seen():
    p = torch.zeros(1, 2, 4, 77)
    p[0, 1, 2, 5] = 1
    assert heat_map([{"a": p}], (5,), size=(2, 2), head=1)[1, 0] == 1
    assert heat_map([{"a": p}], (5,), size=(2, 2), head=0).sum() == 0
    assert heat_map([{"a": p}], (5,), size=(2, 2))[1, 0] == 0.5


def test_heat_map_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="0 to 76"):
        heat_map([{"a": torch.zeros(1, 4, 77)}], (77,), size=(2, 2))
    with pytest.raises(ValueError, match="recorded no attention"):
        heat_map([], (1,), size=(2, 2))


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 7)])
def test_grids_of_every_level(size):
    h, w = size
    for _ in range(3):
        assert attention.grid_of(h * w, *size) == (h, w)
        h, w = -(-h // 2), -(-w // 2)
    with pytest.raises(ValueError, match="No level"):
        attention.grid_of(size[0] * size[1] - 1, *size)


@pytest.mark.parametrize("model", ["toy", "toy_sd2", "emoji"])
@pytest.mark.parametrize("what", [Record(), Record(heads=True, itself=attention.SMALL)])
def test_recording_changes_no_bit_of_the_picture(request, model, what):
    sd = request.getfixturevalue(model)
    *_, off = denoise(sd, REQUEST)
    *_, on = denoise(sd, REQUEST, what)
    assert torch.equal(off.x_next, on.x_next)


def test_self_attention_is_recorded_where_it_is_small(toy):
    found = next(denoise(toy, REQUEST, Record(itself=16))).attention
    own = {layer: p for layer, p in found.items() if "attn1" in layer}
    assert own and len(own) < len(found) - len(own) and {p.shape[1:] for p in own.values()} == {(16, 16)}
    assert all((p.sum(-1) - 1).abs().max() < 1e-5 for p in own.values())
    assert not any("attn1" in layer for layer in next(denoise(toy, REQUEST, Record())).attention)


def test_self_attention_equals_diffusers_scores(toy):
    asked = []
    name = next(n for n, _ in toy.unet.named_modules() if n.endswith("attn1"))
    layer = toy.unet.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    ours = next(denoise(toy, REQUEST, Record(itself=64))).attention[name]
    hook.remove()
    q, k = (layer.head_to_batch_dim(line(asked[0])) for line in (layer.to_q, layer.to_k))
    theirs = layer.get_attention_scores(q, k).unflatten(0, (-1, layer.heads)).mean(1)
    assert (ours - theirs).abs().max() < 1e-5


def test_attention_of_another_kind_is_refused(toy):
    from copy import deepcopy

    unet = deepcopy(toy.unet)
    next(m for n, m in unet.named_modules() if n.endswith("attn2")).rescale_output_factor = 2
    with pytest.raises(ValueError, match="not Stable Diffusion's"):
        attention.make_recordable(unet)


def test_maps_in_time_are_each_step_s_heat_maps(emoji):
    steps = [step.attention for step in denoise(emoji, REQUEST, Record())]
    found = attention.in_time(steps, size=(16, 16))
    assert found.shape == (2, 77, 16, 16)
    for k, maps in enumerate(steps):
        assert torch.allclose(found[k], attention.heat_maps([maps], size=(16, 16)), atol=1e-6)
    gather = torch.zeros(77, 1)
    gather[[3, 5]] = 1
    both = attention.in_time(steps, size=(16, 16), branch=0, gather=gather)
    one = attention.in_time(steps, size=(16, 16), branch=0)
    assert torch.allclose(both[:, 0], one[:, 3] + one[:, 5], atol=1e-6)


def test_iou_counts_the_upper_part_of_a_map():
    step = torch.tensor([[[0.0, 0.0, 0.9, 1.0]] * 4])
    half = torch.zeros(4, 4, dtype=torch.bool)
    half[:, 2:] = True
    assert attention.iou(step, half).tolist() == [1.0]
    assert attention.iou(step, ~half).tolist() == [0.0]
    assert attention.iou(step, torch.ones(4, 4, dtype=torch.bool)).tolist() == [0.5]
    assert attention.iou(step, half, share=0.95).tolist() == [0.5], "only the highest column"
    assert attention.upper(step, (8, 8)).shape == (1, 8, 8)


def test_overlap_is_one_for_the_same_place_and_zero_apart():
    left, right = torch.zeros(2, 1, 2, 2).unbind()
    left[0, :, 0], right[0, :, 1] = 1, 5
    assert attention.overlap(left, right).tolist() == [0.0]
    assert attention.overlap(left, left * 3).tolist() == [1.0], "whatever their height"
    assert attention.overlap(left, left + right / 5).tolist() == [0.5]


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_a_step_looked_at_again_is_the_pass_that_was_made(emoji, w):
    request = replace(REQUEST, guidance=w)
    trace = Trace.start(emoji, request)
    for _ in trace.follow(denoise(emoji, request, Record())):
        pass
    again = trace.look_again(emoji, 1, Record())
    assert again.keys() == trace.steps[1].attention.keys()
    assert all(torch.equal(again[layer], p) for layer, p in trace.steps[1].attention.items())
    single = trace.look_again(emoji, 1, Record(heads=True))
    for layer, p in trace.steps[1].attention.items():
        assert single[layer].shape[1] > 1 and (single[layer].float().mean(1) - p.float()).abs().max() < 1e-3


def test_a_model_that_changed_is_noticed(toy):
    request = replace(REQUEST, guidance=4.0)
    trace = Trace.start(toy, request)
    for _ in trace.follow(denoise(toy, request, Record())):
        pass
    with pytest.raises(ValueError, match="no longer predicts"):
        replace_prompt = Trace(**{**vars(trace), "request": replace(request, prompt="a wholly different crowd of elephants")})
        replace_prompt.look_again(toy, 0, Record())
