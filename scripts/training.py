"""What every training script shares: the clock that stops it, the weights' moving average, and a state that survives a kill."""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script sees its own folder only, and core/ is beside that
from core.models import has_bfloat16

STATE = Path(__file__).resolve().parent.parent / ".data" / "train"
MODELS = Path(__file__).resolve().parent.parent / "assets" / "models"
SHARD = "8MB"  # every weights file stays under 9 MB, so that it travels anywhere without large-file storage


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed() -> torch.autocast:
    """bfloat16 where it is fast, float32 elsewhere."""
    return torch.autocast(device().type, torch.bfloat16, enabled=has_bfloat16(device()))


def fast_attention(unet: nn.Module) -> None:
    """The fused kernel's backward pass takes a third of a step in bfloat16 on a CPU: plain matrix products are 1.6 times as fast
    there. In float32 the fused kernel is the faster one, by a quarter."""
    if device().type == "cpu" and has_bfloat16(device()):
        unet.set_attn_processor(AttnProcessor())


class Clock:
    """Minutes trained so far, over all sessions, against the minutes planned; the learning rate follows it, not the step count,
    so a run on any machine ends with its rate at the floor."""

    def __init__(self, minutes: float, plan: float, done: float = 0.0):
        self.minutes, self.plan, self.before, self.start = minutes, plan, done, time.monotonic()

    @property
    def done(self) -> float:
        return self.before + (time.monotonic() - self.start) / 60

    @property
    def progress(self) -> float:
        return min(1.0, self.done / self.plan)

    @property
    def over(self) -> bool:
        return (time.monotonic() - self.start) / 60 >= self.minutes or self.done >= self.plan

    def rate(self, peak: float, step: int, warmup: int = 200, floor: float = 0.02) -> float:
        """Linear warm-up over steps, then half a cosine over the planned minutes."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return peak * cosine * min(1.0, (step + 1) / warmup)


class Average:
    """Exponential moving average of the weights; young averages forget faster, (1 + n) / (10 + n)."""

    def __init__(self, modules: dict[str, nn.Module], decay: float = 0.9995):
        self.decay, self.modules = decay, modules
        self.values = {k: {n: p.detach().clone() for n, p in m.state_dict().items()} for k, m in modules.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, module in self.modules.items():
            new = module.state_dict()
            floats = [n for n, v in self.values[key].items() if v.is_floating_point()]
            torch._foreach_lerp_([self.values[key][n] for n in floats], [new[n] for n in floats], 1 - decay)

    def swap(self) -> None:
        """Puts the average into the modules and keeps what they had; a second call undoes it."""
        for key, module in self.modules.items():
            old = {n: p.detach().clone() for n, p in module.state_dict().items()}
            module.load_state_dict(self.values[key])
            self.values[key] = old


class Muon(torch.optim.Optimizer):
    """Momentum whose every matrix is made orthogonal before it is a step (Jordan et al. 2024; Liu et al. 2025 for the factor that
    makes AdamW's learning rates fit). A convolution's kernel is the matrix (out, in h w). torch.optim.Muon takes no kernels."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 1e-3):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.shapes: dict[tuple[int, int], list[nn.Parameter]] = {}  # one batched product for all matrices of a shape
        for p in parameters:
            sides = p.shape[0], p[0].numel()
            self.shapes.setdefault((min(sides), max(sides)), []).append(p)

    @staticmethod
    def takes(p: nn.Parameter) -> bool:
        return p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16

    @staticmethod
    def orthogonal(x: Tensor, rounds: int = 5) -> Tensor:
        """(N, r, c), r <= c: all singular values to about 1, by Newton and Schulz's iteration with Jordan's quintic. Every iterate is
        (a polynomial of x xT) x, so the rounds are done on (N, r, r): 2.5 times fewer products for a convolution's wide kernel."""
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        gram = x @ x.mT
        one = torch.eye(gram.shape[-1], device=x.device)
        whole = one
        for _ in range(rounds):
            turn = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
            whole, gram = turn @ whole, turn @ gram @ turn
        return whole @ x

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        group = self.param_groups[0]
        for (_, columns), parameters in self.shapes.items():
            moves = []
            for p in parameters:
                assert p.grad is not None
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                move = p.grad.lerp(mean, group["momentum"]).reshape(p.shape[0], -1)
                moves.append(move if move.shape[0] <= move.shape[1] else move.mT)
            for p, move in zip(parameters, self.orthogonal(torch.stack(moves)) * 0.2 * columns**0.5, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_((move if p.shape[0] <= p[0].numel() else move.mT).reshape(p.shape), alpha=group["lr"])


def write_manifest(folder: Path) -> None:
    """sha256 of every weights file; core.models.load() holds them against it. And no config tells where it was trained."""
    for config in folder.glob("*/config.json"):
        facts = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(facts, indent=2) + "\n")
    files = sorted(folder.glob("*/*.safetensors"))
    digests = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}, indent=1) + "\n")


def kept(name: str, about: list, make: Callable[[], Any]) -> Any:
    """What make() returns, read from disk if it was made before; everything that it depends on stands in `about`."""
    path = STATE / f"{name}-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.pt"
    if path.exists():
        return torch.load(path)
    value = make()
    STATE.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return value


def save_state(name: str, state: dict) -> None:
    """Written beside, then renamed: a kill leaves the old state or the new one."""
    STATE.mkdir(parents=True, exist_ok=True)
    path = STATE / f"{name}.pt"
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_state(name: str) -> dict | None:
    path = STATE / f"{name}.pt"
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def train_loop(
    name: str,
    modules: dict[str, nn.Module],
    loss_of: Callable[[Clock], Tensor],
    *,
    minutes: float,
    plan: float,
    peak: float,
    report: Callable[[], str],
    decay: float = 0.9995,
    every: float = 3.0,
    weight_decay: float = 1e-3,
) -> int:
    """Trains until the clock is over, saves every few minutes, resumes where a former call stopped. Returns the steps done.
    loss_of(clock) makes one batch's loss; report() is called with the average in the modules and its text is printed."""
    where = device()
    named = [(n, p) for m in modules.values() for n, p in m.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    matrices = [p for n, p in named if Muon.takes(p) and "embedding" not in n]
    rest = [p for p in parameters if not any(p is m for m in matrices)]
    optimizers = [
        Muon(matrices, peak, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.99), weight_decay=0, fused=True),  # biases, norms, embeddings
    ]
    average, step, done = Average(modules, decay), 0, 0.0
    if (state := load_state(name)) is not None:
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        average.values = {k: {n: v.to(where) for n, v in d.items()} for k, d in state["average"].items()}
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, done = state["step"], state["minutes"]
        torch.set_rng_state(state["rng"])
        print(f"{name}: resumed at step {step}, {done:.1f} of {plan} minutes", flush=True)
    clock, saved, losses = Clock(minutes, plan, done), time.monotonic(), []

    def save() -> None:
        average.swap()
        text = report()
        average.swap()
        lr = optimizers[0].param_groups[0]["lr"]
        mean = sum(losses) / max(1, len(losses))
        print(f"{name}: step {step} · {clock.done:.1f} min · loss {mean:.4f} · lr {lr:.1e} · {text}", flush=True)
        save_state(
            name,
            {
                "modules": {k: m.state_dict() for k, m in modules.items()},
                "average": average.values,
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step,
                "minutes": clock.done,
                "rng": torch.get_rng_state(),
            },
        )

    while not clock.over:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = clock.rate(peak, step)
        loss = loss_of(clock)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(step)
        losses = [*losses[-199:], loss.item()]
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"{name}: the loss is {losses[-1]} at step {step}; the last saved state is intact.")
        if time.monotonic() - saved > every * 60:
            save()
            saved = time.monotonic()
    save()
    average.swap()  # the modules leave with the average in them
    return step
