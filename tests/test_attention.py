"""The recorder against diffusers' own attention scores."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from core import attention
from core.attention import Record, heat_map
from core.sampling import Request, denoise

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
