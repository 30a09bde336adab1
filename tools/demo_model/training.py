"""Teach the network longer and longer lists, with noise on K and V as a quantized cache has it."""

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from demo_model.network import DemoNetwork, Shape
from demo_model.sketch import sketch
from demo_model.tasks import training_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps over lists of one length. It ends early once `until` of the tokens are right."""

    num_pairs: int
    batch_size: int
    max_steps: int
    until: float | None = None
    learning_rate: float = 1e-3
    last_learning_rate: float = 1e-3
    kv_noise: float
    spread: bool = True

    @property
    def num_tokens(self) -> int:
        # Short lists get as many question tokens as list tokens; long ones fewer, for they cost
        # more, and stay a little above 2,048 tokens.
        return self.num_pairs * 8 if self.num_pairs <= 128 else self.num_pairs * 4 + 512


# Matching one key among few is learned first; what is left for the long lists is to sharpen it.
CURRICULUM = [
    Stage(num_pairs=16, batch_size=16, max_steps=250, until=0.97, kv_noise=0.0, spread=False),
    Stage(num_pairs=48, batch_size=8, max_steps=200, until=0.985, kv_noise=0.05),
    Stage(num_pairs=128, batch_size=4, max_steps=120, until=0.995, kv_noise=0.1),
    Stage(num_pairs=256, batch_size=3, max_steps=60, until=0.99, kv_noise=0.1),
    Stage(num_pairs=544, batch_size=2, max_steps=160, kv_noise=0.12, last_learning_rate=5e-5),
]

WARM_UP_STEPS = 50
# A stage is over when the mean over this many steps is good: one lucky batch is not enough.
STEPS_AVERAGED = 10


def train(seed: int, shape: Shape, curriculum: list[Stage]) -> DemoNetwork:
    """The trained network; the same seed, thread count and torch build give the same weights."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    draw = np.random.default_rng(seed)
    network = DemoNetwork(shape)
    sketch(network)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    num_steps, begin_s = 0, time.monotonic()
    for stage in curriculum:
        accuracies: list[float] = []
        for step in range(stage.max_steps):
            change = stage.last_learning_rate - stage.learning_rate
            rate = stage.learning_rate + change * step / stage.max_steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (num_steps + 1) / WARM_UP_STEPS)
            loss, accuracy = train_step(network, optimizer, draw, stage)
            accuracies.append(accuracy)
            num_steps += 1
            if step % 20 == 0:
                logger.info(
                    "%5.0f s  %3d pairs, step %4d: loss %.4f, right %.3f",
                    time.monotonic() - begin_s, stage.num_pairs, step, loss, accuracy,
                )  # fmt: skip
            recent = accuracies[-STEPS_AVERAGED:]
            if stage.until and len(recent) == STEPS_AVERAGED and np.mean(recent) > stage.until:
                break
    logger.info("%.0f s  trained in %d steps", time.monotonic() - begin_s, num_steps)
    return network


def train_step(
    network: DemoNetwork, optimizer: torch.optim.Optimizer, draw: np.random.Generator, stage: Stage
) -> tuple[float, float]:
    """One step; the mean loss, and the share of tokens predicted right."""
    batch = training_batch(
        draw,
        batch_size=stage.batch_size,
        num_pairs=stage.num_pairs,
        num_tokens=stage.num_tokens,
        spread=stage.spread,
    )
    tokens_BT = torch.from_numpy(batch.tokens_BT)
    weights_BT = torch.from_numpy(batch.weights_BT)
    wanted_BT = weights_BT.roll(-1, 1) > 0
    wanted_BT[:, -1] = False
    is_target_BT = weights_BT[:, 1:] > 0
    expected, weights = tokens_BT[:, 1:][is_target_BT], weights_BT[:, 1:][is_target_BT]
    logits = network(tokens_BT, torch.from_numpy(batch.positions_BT), wanted_BT, stage.kv_noise)
    losses = F.cross_entropy(logits, expected, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    right = (logits.argmax(-1) == expected).float().mean()
    return loss.item(), right.item()
