"""Keeping gradients within the range of float16.

Micikevicius et al. 2018, "Mixed precision training", section 3.2: the loss is multiplied by a factor before the
backward pass and the gradient divided by it afterwards. Where the gradient is not finite nothing moves and the factor
is halved; after 2000 steps without that it is doubled.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
"""The factor of the first step."""
LEAST_SCALE = 1.0
"""A gradient that is not finite with this factor is not finite: the run has diverged."""


class LossScaling(torch.amp.GradScaler):
    """Torch's scaler, which does nothing for other precisions, with a count of what was skipped.

    Args:
        device: type of the device.
        precision: of the forward and backward pass.
    """

    def __init__(self, device: str, precision: str) -> None:
        super().__init__(device, init_scale=FIRST_SCALE, enabled=precision == "float16")
        self.skipped = 0

    def tensors(self) -> dict[str, Tensor]:
        """() float64 each: what a checkpoint keeps; nothing for other precisions."""
        if not self.is_enabled():
            return {}
        numbers = {**self.state_dict(), "skipped": self.skipped}
        return {name.strip("_"): torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on as `tensors` were; a run that was of another precision before has none and begins anew."""
        if self.is_enabled() and tensors:
            numbers = {name: tensor.item() for name, tensor in tensors.items()}
            self.skipped = int(numbers.pop("skipped"))
            whole = {"growth_interval": int(numbers.pop("growth_interval"))}
            self.load_state_dict({**numbers, **whole, "_growth_tracker": int(numbers.pop("growth_tracker"))})


OFF = LossScaling("cpu", "float32")
"""Scales nothing."""
