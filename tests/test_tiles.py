"""Super-resolution in tiles, and how much memory it is said to take."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_model
from diffusers import AutoencoderKL
from test_conditioning import picture
from torch.utils._python_dispatch import TorchDispatchMode

from core import latents, models, room, tiles
from core.conditioning import Pixels, Upscale
from core.engine import LocalEngine
from core.sampling import Request, denoise
from core.trace import to_uint8


@pytest.fixture(scope="module")
def toy():
    return toy_model(kind="upscale")


def asked(width, height, **changes) -> Request:
    return Request("a dog", seed=7, steps=2, guidance=2.0, source=Upscale(picture(width, height)), **changes)


def plain(sd, request: Request) -> np.ndarray:
    *_, last = denoise(sd, request)
    return to_uint8(latents.decode(sd, last.x_next))[0].movedim(0, -1).numpy()


def whole(sd, request: Request, side: int) -> np.ndarray:
    turns = list(tiles.draw(sd, request, side))
    small = request.source.picture
    made = {t.tile: t.picture for t in turns if t.picture is not None}
    under = np.zeros((small.height * sd.factor, small.width * sd.factor, 3), np.uint8)
    return tiles.blend(tiles.cut(small.height, small.width, side), made, under)


def test_one_tile_is_the_plain_run(toy):
    request = asked(24, 20)
    assert np.array_equal(whole(toy, request, 32), plain(toy, request))


def test_each_tile_is_the_run_of_its_piece_with_a_seed_of_its_own(toy):
    request = asked(40, 24)
    made = {t.tile: t.picture for t in tiles.draw(toy, request, 24) if t.picture is not None}
    assert len(made) == 3
    small = request.source.picture.array
    for k, tile in enumerate(tiles.cut(24, 40, 24)):
        piece = Pixels.of(small[:, tile.left : tile.left + 24])
        alone = replace(request, seed=7 + k, source=Upscale(piece))
        assert np.array_equal(made[k], plain(toy, alone))
    assert tiles.requests(replace(request, seed=2**32 - 1), tiles.cut(24, 40, 24))[1].seed == 0


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("length", [*range(17, 140, 3), 200, 250, 300, 511, 512])
def test_tiles_cover_every_length_with_enough_overlap(length, side):
    first = tiles.starts(length, side)
    if length <= side:
        assert first == [0]
        return
    assert first[0] == 0 and first[-1] + side == length
    gaps = np.diff(first)
    assert (gaps > 0).all() and (gaps <= side - tiles.OVERLAP).all()
    assert len(first) == -(-(length - tiles.OVERLAP) // (side - tiles.OVERLAP)), "no more than are needed"


@pytest.mark.parametrize("size", [(40, 40), (70, 90), (64, 33), (129, 47)])
def test_where_tiles_agree_the_blend_is_exact(size):
    height, width = size
    truth = np.random.default_rng(1).integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8)
    cut = tiles.cut(height, width, 32)
    made = {k: truth[4 * t.top : 4 * (t.top + t.height), 4 * t.left : 4 * (t.left + t.width)] for k, t in enumerate(cut)}
    assert np.array_equal(tiles.blend(cut, made, np.zeros_like(truth)), truth)


def test_one_tile_fades_into_the_next_in_a_straight_line():
    cut = tiles.cut(8, 48, 32)
    assert [t.left for t in cut] == [0, 16]
    dark, light = np.zeros((32, 128, 3), np.uint8), np.full((32, 128, 3), 200, np.uint8)
    row = tiles.blend(cut, {0: dark, 1: light}, np.zeros((32, 192, 3), np.uint8))[5, :, 0].astype(float)
    assert (row[:64] == 0).all() and (row[128:] == 200).all()
    wanted = 200 * (np.arange(64) + 0.5) / 64
    assert np.abs(row[64:128] - wanted).max() <= 0.5


def test_what_is_not_made_yet_shows_what_lies_under():
    cut, under = tiles.cut(8, 48, 32), np.full((32, 192, 3), 9, np.uint8)
    partly = tiles.blend(cut, {0: np.full((32, 128, 3), 200, np.uint8)}, under)
    assert (partly[:, :128] == 200).all() and (partly[:, 128:] == 9).all()


def test_the_work_counts_every_step_of_every_tile(toy):
    parts = list(tiles.work(asked(40, 24, scheduler="Heun"), 24)(toy))
    assert [p.i for p in parts] == list(range(3 * 3)) and {p.count for p in parts} == {9}  # Heun makes 3 turns of 2 steps
    assert [p.value.picture is not None for p in parts] == [False, False, True] * 3


# --- memory -------------------------------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """The most bytes of tensors that lived at once. What a kernel takes for itself is not seen."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage) -> None:
        if storage not in self.known and storage.nbytes():
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.less, storage.nbytes())

    def less(self, size: int) -> None:
        self.now -= size


def test_the_formula_holds_what_the_decoder_and_the_unet_keep_alive():
    sd = models.load("emoji-upscale", device="cpu")
    request = Request("a dog", steps=1, guidance=4.0, source=Upscale(picture(64, 48)), model="emoji-upscale")
    said = room.needed(sd, request)
    with Alive() as unet:
        *_, last = denoise(sd, request)
    with Alive() as decoder:
        latents.decode(sd, last.x_next)
    kept = said - 4 * 64 * 256 * 192 * 4
    assert unet.peak < decoder.peak
    assert 0.5 * (said - kept) < decoder.peak <= said - kept


def real_upscaler(device: str):
    """The configuration of stabilityai/stable-diffusion-x4-upscaler's VAE, without its weights."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            latent_channels=4,
        )
    return replace(toy_model(kind="upscale"), vae=vae, device=torch.device(device))


def test_the_real_upscaler_ends_at_248_pixels_on_16_gigabytes():
    sd = real_upscaler("cuda")
    sizes = {side: room.needed(sd, asked(side, side)) for side in (128, 248, 256, 512)}
    assert sizes[248] <= 16e9 < sizes[256]
    assert sizes[512] == 4 * 512**4 and sizes[128] < 4 * 2**30
    assert room.needed(real_upscaler("cpu"), asked(256, 256)) < 5e9, "a CPU's attention writes no table down"


def test_what_does_not_fit_is_refused_with_both_figures(toy, monkeypatch):
    request = asked(64, 64)
    room.check(toy, request)
    room.check(toy, Request("a dog"))
    monkeypatch.setattr(room, "free", lambda device: 10_000_000)
    with pytest.raises(ValueError, match=r"256 x 256 pixels take about 0\.\d GB of memory at once, and 0.0 GB are free; draw"):
        room.check(toy, request)


def test_a_container_may_have_less_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    everything = room.free(torch.device("cpu"))
    assert everything > 100e6
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\ninactive_file 500000\n")
    assert room.free(torch.device("cpu")) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free(torch.device("cpu")) > 100e6


def test_the_engine_refuses_what_does_not_fit_and_goes_on(toy, monkeypatch):
    engine = LocalEngine(lambda name: toy, ("toy",))
    try:
        monkeypatch.setattr(room, "free", lambda device: 1_000)
        with pytest.raises(ValueError, match="draw them in tiles"):
            engine.result(engine.submit(replace(asked(24, 20), model="toy")))
        monkeypatch.undo()
        assert engine.result(engine.submit(replace(asked(24, 20), model="toy"))).picture.shape == (3, 80, 96)
    finally:
        engine.close()
