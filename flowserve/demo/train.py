"""Trains a demo model on one CPU core within a time budget: fresh data, Muon and AdamW, a curriculum by accuracy.

    python -m flowserve.demo.train --stage reader --minutes 60 --out build/reader

Writes OUT/checkpoint.pt now and then, from which --resume goes on, and a line of progress. The learning rate is
constant for the first part of the time and falls linearly to zero at its end. A GPU is used when there is one.
The data and the initial weights are seeded; how many steps fit the minutes depends on the machine.
"""

import argparse
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowserve.demo.batches import Batch, Encoder
from flowserve.demo.initialise import initialise
from flowserve.demo.model import Model
from flowserve.demo.stages import STAGES, Stage

BUDGET_TOKENS = 4608
PEAK_RATE = 2e-3
WARM_UP_STEPS = 40
CONSTANT_SHARE = 0.35  # of the time, before the learning rate falls
CLIP = 1.0
SAVE_EVERY_S = 120.0
REPORT_EVERY_S = 20.0


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimisers. `running` is the share of right answers by kind."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    level: int = 0
    since_level: int = 0
    running: dict[str, float] = field(default_factory=dict)


class Trainer:
    """One training run; `step` makes a batch and learns from it."""

    def __init__(self, stage: Stage, seed: int, minutes: float) -> None:
        self.stage, self.seed, self.minutes = stage, seed, minutes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        core = stage.tokenizer()
        self.encoder = Encoder(core)
        self.rng = Random(seed)
        torch.manual_seed(seed)
        self.model = Model(stage.shape(len(core)))
        initialise(self.model, stage.flags(core.get_vocab()), seed)
        self.model.to(self.device)
        self.optimisers = _optimisers(self.model)
        self.progress = Progress()
        self.loss = 0.0

    def step(self) -> None:
        level = self.stage.levels[self.progress.level]
        batch = self.stage.make(self.rng, self.encoder, level, BUDGET_TOKENS, "train")
        loss, right = self.loss_of(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.set_rate()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.loss = 0.95 * (self.loss or loss.item()) + 0.05 * loss.item()
        self.progress.step += 1
        self.progress.tokens += int((batch.segments >= 0).sum())
        self.count(batch, right)

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of answer tokens, and which of them were the most probable token."""
        device = self.device
        with torch.autocast(device.type, torch.bfloat16):
            states = self.model(batch.tokens.to(device), batch.positions.to(device), batch.mask().to(device))
            logits = self.model.logits(states.flatten(0, 1)[batch.at.to(device)]).float()
        targets = batch.targets.to(device)
        return functional.cross_entropy(logits, targets), (logits.argmax(-1) == targets).cpu()

    def set_rate(self) -> None:
        done = self.progress.seconds / (60 * self.minutes)
        falling = min(1.0, max(0.0, (1 - done) / (1 - CONSTANT_SHARE)))
        rate = PEAK_RATE * min(1.0, (self.progress.step + 1) / WARM_UP_STEPS) * falling
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def count(self, batch: Batch, right: Tensor) -> None:
        """Updates the running accuracy, and goes to the next level when every kind passes."""
        progress = self.progress
        for kind, share in accuracy(batch, right).items():
            progress.running[kind] = 0.97 * progress.running.get(kind, 0.0) + 0.03 * share
        progress.since_level += 1
        passed = min(progress.running.values()) > self.stage.pass_mark and progress.since_level > 100
        if passed and progress.level + 1 < len(self.stage.levels):
            progress.level, progress.since_level = progress.level + 1, 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "progress": vars(self.progress),
            "random": self.rng.getstate(),
            "torch_random": torch.get_rng_state(),
            "seed": self.seed,
            "stage": self.stage.name,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.rng.setstate(state["random"])
        torch.set_rng_state(state["torch_random"])

    def line(self) -> str:
        progress = self.progress
        left = 60 * self.minutes - progress.seconds
        scores = " ".join(f"{kind} {share:.3f}" for kind, share in sorted(progress.running.items()))
        return (
            f"step {progress.step} level {self.stage.levels[progress.level]} loss {self.loss:.4f} {scores} | "
            f"{progress.tokens / 1e6:.2f}M tokens, {progress.tokens / max(progress.seconds, 1e-9):.0f}/s, "
            f"{progress.seconds:.0f} s, {max(left, 0):.0f} s left"
        )


def accuracy(batch: Batch, right: Tensor) -> dict[str, float]:
    """The share of turns by kind whose every answer token is right."""
    wrong = set(batch.turn_of[~right].tolist())
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for turn, kind in enumerate(batch.kinds):
        counts[kind][0] += turn not in wrong
        counts[kind][1] += 1
    return {kind: good / total for kind, (good, total) in counts.items()}


def _optimisers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save(trainer: Trainer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(trainer.state(), partial)
    os.replace(partial, path)


def run(trainer: Trainer, out: Path) -> None:
    """Trains until the minutes are used up, counting those before a resume."""
    path = out / "checkpoint.pt"
    saved = reported = last = time.monotonic()
    while trainer.progress.seconds < 60 * trainer.minutes:
        trainer.step()
        now = time.monotonic()
        trainer.progress.seconds += now - last
        last = now
        if now - reported > REPORT_EVERY_S:
            print(trainer.line(), flush=True)
            reported = now
        if now - saved > SAVE_EVERY_S:
            save(trainer, path)
            saved = now
    save(trainer, path)
    print(trainer.line(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a demo model.")
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trainer = Trainer(STAGES[options.stage], options.seed, options.minutes)
    if options.resume:
        trainer.restore(torch.load(options.out / "checkpoint.pt", weights_only=False))
    run(trainer, options.out)


if __name__ == "__main__":
    main()
