"""The training loop that all stages share: wall-clock budget, learning rate, EMA, log.

A stage gives a ``loss()`` function and modules; the loop runs AdamW steps until its minutes, which
do not count compilation, are over. The learning rate warms up, stays, and falls to zero over the
last part of the budget; with ``anneal=False`` it stays, for a stage that a later call resumes.

Networks this small keep a GPU waiting for the next kernel launch, so on CUDA one whole step
(forward, backward, clipping, AdamW) is captured once as a graph and replayed. ``loss()`` must
therefore draw its random numbers from the default generator and never wait for the device. A step
whose gradient is not finite changes nothing.
"""

import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Budget", "Trainer"]


class Budget:
    """How much of a number of minutes is over."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        return min(1.0, self.seconds / (60 * self.minutes))


class Trainer:
    """AdamW with EMA over ``modules``, checkpointed in ``folder``/``name``.pt."""

    def __init__(
        self,
        name: str,
        modules: Mapping[str, Any],
        folder: Path,
        *,
        peak_rate: float,
        weight_decay: float = 0.03,
        ema_decay: float = 0.999,
        warm_up_steps: int = 300,
        anneal_from: float = 0.6,
    ) -> None:
        self.name = name
        self.modules: dict[str, Any] = dict(modules)
        self.folder = folder
        self.peak_rate = peak_rate
        self.ema_decay = ema_decay
        self.warm_up_steps = warm_up_steps
        self.anneal_from = anneal_from
        self.step = 0
        self.seconds_before = 0.0
        named = [(n, p) for m in self.modules.values() for n, p in m.named_parameters()]
        self.parameters: list[Tensor] = [p for _, p in named if p.requires_grad]
        device = self.parameters[0].device
        self.ema: dict[str, Any] = {
            key: deepcopy(m).requires_grad_(False) for key, m in self.modules.items()
        }
        self.ema_parameters: list[Tensor] = [p for m in self.ema.values() for p in m.parameters()]
        self.fused = device.type == "cuda"
        self.rate = torch.tensor(peak_rate, device=device)
        self.optimizer: Any = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if p.ndim >= 2]},
                {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.rate if self.fused else peak_rate,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=self.fused,
            capturable=self.fused,
        )
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def save(self, seconds: float) -> None:
        state = {
            "step": self.step,
            "seconds": seconds,
            "modules": {key: m.state_dict() for key, m in self.modules.items()},
            "ema": {key: m.state_dict() for key, m in self.ema.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        device = self.parameters[0].device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        for key in self.modules:
            self.modules[key].load_state_dict(state["modules"][key])
            self.ema[key].load_state_dict(state["ema"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if self.fused else self.peak_rate
        self.step, self.seconds_before = state["step"], state["seconds"]
        return True

    def _rate(self, steps_here: int, fraction: float, anneal: bool) -> float:
        rate = self.peak_rate * min(1.0, (steps_here + 1) / self.warm_up_steps)
        if anneal and fraction > self.anneal_from:
            rate *= (1 - fraction) / (1 - self.anneal_from)
        return rate

    def run(
        self,
        loss: Callable[[], Tensor],
        minutes: float,
        *,
        anneal: bool = True,
        log_every: int = 250,
        save_every_seconds: float = 120.0,
    ) -> float:
        """Train for ``minutes`` and return the last mean loss."""
        device = self.parameters[0].device
        advance = self._captured(loss) if self.fused else lambda: self._advance(loss)
        budget = Budget(minutes)
        total, counted, steps_here, mean, saved = torch.zeros((), device=device), 0, 0, 0.0, 0.0
        while (fraction := budget.fraction) < 1:
            rate = self._rate(steps_here, fraction, anneal)
            self._set_rate(rate)
            value = advance()
            self.step += 1
            steps_here += 1
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema_parameters, self.parameters, 1 - decay)
                total += value
            counted += 1
            if counted == log_every:
                mean = self._log(total.item() / counted, rate, budget.seconds)
                total.zero_()
                counted = 0
                if budget.seconds - saved > save_every_seconds:
                    saved = budget.seconds
                    self.save(self.seconds_before + saved)
        if counted:
            mean = self._log(total.item() / counted, 0.0, budget.seconds)
        self.seconds_before += budget.seconds
        self.save(self.seconds_before)
        return mean

    def _set_rate(self, rate: float) -> None:
        if self.fused:
            self.rate.fill_(rate)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _advance(self, loss: Callable[[], Tensor]) -> Tensor:
        """One step of the optimizer; returns the loss ()."""
        self.optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        if self.fused:
            # fused AdamW skips its update where this is 1
            self.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        return value.detach().nan_to_num(posinf=0.0)

    def _captured(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that replays one step; the first few, at rate 0, compile and allocate."""
        self._set_rate(0.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                self._advance(loss)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = self._advance(loss)

        def replay() -> Tensor:
            graph.replay()
            return value

        return replay

    def _log(self, mean: float, rate: float, seconds: float) -> float:
        line = {
            "stage": self.name,
            "step": self.step,
            "seconds": round(self.seconds_before + seconds, 1),
            "loss": round(mean, 5),
            "rate": round(rate, 7),
        }
        print(" ".join(f"{key}={value}" for key, value in line.items()), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return mean
