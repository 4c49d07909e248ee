"""Latents: edits of them, pictures in and out, and how near two pictures are."""

import math

import pytest
import torch
from PIL import Image

from core import latents


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(1, 4, 8, 6, generator=latents.generator(3))


def test_an_edit_stays_in_its_channel_and_patch(z):
    mask = torch.zeros(8, 6, dtype=torch.bool)
    mask[2:4, 1:3] = True
    for edit in latents.EDITS:
        other = latents.edited(z, edit, 0.7, channel=2, mask=mask)
        moved = (other != z)[0]  # (4, 8, 6)
        assert moved[2][mask].all(), f"{edit} acts where it should"
        assert moved.sum() == mask.sum(), f"{edit} acts nowhere else"


def test_edits_do_what_their_names_say(z):
    assert torch.equal(latents.edited(z, "shift", 1.5), z + 1.5)
    assert latents.edited(z, "zero", 0).abs().max() == 0
    assert torch.equal(latents.edited(z, "noise", 0), z) and torch.equal(latents.edited(z, "blur", 0), z)
    noise = latents.edited(z, "noise", 0.5, seed=9) - z
    assert torch.allclose(noise, 0.5 * torch.randn(z.shape, generator=latents.generator(9)), atol=1e-6)


def test_a_blur_keeps_what_is_even_and_flattens_the_rest(z):
    even = torch.full_like(z, 0.3)
    assert torch.allclose(latents.blurred(even, 1.0), even, atol=1e-6), "the edge is repeated, not darkened"
    assert latents.blurred(z, 0.5).std() < z.std() and latents.blurred(z, 2).std() < latents.blurred(z, 0.5).std()
    spot = torch.zeros(1, 4, 9, 9)
    spot[:, :, 4, 4] = 1
    seen = latents.blurred(spot, 1.0)[0, 0]
    assert torch.allclose(seen, seen.T) and float(seen.sum()) == pytest.approx(1, abs=1e-3)
    assert float(seen[4, 5] / seen[4, 4]) == pytest.approx(math.exp(-0.5), abs=1e-5), "a Gaussian's fall at one sigma"


def test_wrong_edits_are_refused(z):
    with pytest.raises(ValueError, match="There is no edit 'twist'"):
        latents.edited(z, "twist", 1)
    with pytest.raises(ValueError, match="There is no channel 5"):
        latents.edited(z, "zero", 0, channel=4)
    with pytest.raises(ValueError, match="another size than the latents"):
        latents.edited(z, "zero", 0, mask=torch.ones(6, 8, dtype=torch.bool))


def test_each_channel_is_shifted_alone(toy):
    z = torch.randn(1, 4, 8, 8, generator=latents.generator(1))
    pictures = list(latents.shifted(toy, z, 2.0))
    assert len(pictures) == 5 and torch.equal(pictures[0], latents.decode(toy, z))
    for c in range(4):
        moved = z.clone()
        moved[:, c] += 2
        assert torch.equal(pictures[c + 1], latents.decode(toy, moved))


def test_psnr_is_the_papers():
    black, grey = -torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4) + 2 * 0.1
    assert latents.psnr(black, grey) == pytest.approx(20), "a tenth of the range off: 10 log10(1 / 0.01)"
    assert latents.psnr(black, black) == math.inf


def test_pixels_of_a_picture():
    picture = Image.new("RGB", (3, 2), (0, 127, 255))
    picture.putpixel((2, 0), (255, 0, 0))
    pixels = latents.pixels_of(picture)
    assert pixels.shape == (1, 3, 2, 3)
    assert pixels[0, :, 1, 0].tolist() == pytest.approx([-1, -1 / 255, 1], abs=1e-6)
    assert pixels[0, :, 0, 2].tolist() == [1, -1, -1], "column 2 of row 0"
