"""An exponential moving average of a network's weights (Polyak averaging), kept and saved beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a network's parameters and floating buffers.

    Args:
        network: the network to follow.
        decay: share of the old average kept at each update, after a warm-up that grows as ``(1 + n) / (10 + n)``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network as it is now."""
        self.count += 1
        rate = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        average, current = [], []
        for name, value in network.state_dict().items():
            kept = self.values[name]
            if kept.device != value.device:
                kept = self.values[name] = kept.to(value.device)
            if value.is_floating_point():
                average.append(kept)
                current.append(value.detach())
            else:
                kept.copy_(value)
        torch._foreach_lerp_(average, current, rate)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the block the network has the averaged weights; after it, its own again."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.values)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """What ``load_state_dict`` takes."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: dict[str, int | dict[str, Tensor]]) -> None:
        """Go on from a saved average."""
        count, values = state["count"], state["values"]
        if not isinstance(count, int) or not isinstance(values, dict):
            raise TypeError("expected {'count': int, 'values': dict}")
        self.count = count
        self.values = {name: value.clone() for name, value in values.items()}
