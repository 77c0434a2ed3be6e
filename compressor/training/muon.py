"""Muon for the matrices of a network, AdamW for its other weights: fewer steps than AdamW alone.

torch.optim.Muon takes no convolutions, and computes in bfloat16 on any device: on CPUs without it, many times slower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compressor.sources.samples import Batch
from compressor.units.fetched import there
from compressor.units.modes import evaluating
from compressor.units.program import forward

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

MOMENTUM = 0.95
SIZE = 0.2
"""Root mean square of a step of AdamW, in learning rates; Muon's steps get the same (Liu et al. 2025, 2502.16982)."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x, x^3, x^5: brings singular values of (0, 1] to about 1 in few rounds (Jordan et al. 2024)."""
ROUNDS = 5
WORK = 1.0
"""The most that a step of Muon may cost, in passes of its layer forwards and back."""


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the `matrices` among the weights, AdamW for the rest, with steps of one size."""

    def __init__(
        self, weights: list[nn.Parameter], matrices: set[nn.Parameter], lr: float, weight_decay: float
    ) -> None:
        """One rate is for all; a matrix is (outputs, inputs), or a kernel with more axes behind these."""
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.matrices = [weight for weight in weights if weight in matrices]
        rest = [weight for weight in weights if weight not in matrices]
        self.others = torch.optim.AdamW(rest, lr, weight_decay=weight_decay) if rest else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step along the gradients, at the rate of the first group."""
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for weight in self.matrices:
            if weight.grad is not None:
                weight.mul_(1 - rate * decay).add_(self._direction(weight), alpha=-rate)
        if self.others is not None:
            self.others.param_groups[0]["lr"] = rate
            self.others.step()

    def _direction(self, weight: nn.Parameter) -> Tensor:
        """The gradients' moving mean with its singular values made equal; Nesterov's look ahead."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight.grad)
        state["mean"].lerp_(weight.grad, 1 - MOMENTUM)
        ahead = there(weight.grad.lerp(state["mean"], MOMENTUM))
        made = orthogonal(ahead.flatten(1))
        return (SIZE * math.sqrt(max(made.shape)) * made).reshape(weight.shape).to(weight.dtype)


def matrices_of(model: nn.Module, example: Batch, batch: int) -> set[nn.Parameter]:
    """The weights that Muon is for, when `model` sees `batch` inputs a step; `example`: some inputs, to find sizes by.

    Weights of linear layers and kernels of convolutions in one group, (outputs, inputs x kernel), that see many rows a
    step (positions of all inputs): so many that Muon's work is at most WORK of the layer's own. Wide layers that see
    one row of each input are left to AdamW, which takes many more steps in the same time; so are embeddings.
    """
    rows: dict[nn.Parameter, float] = {}

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight: Any = module.weight
        rows[weight] = rows.get(weight, 0.0) + output.numel() / len(weight) / len(example.ids) * batch

    hooks = [module.register_forward_hook(count) for module in model.modules() if _is_dense(module)]
    try:
        with torch.no_grad(), evaluating(model):
            forward(model, example.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return {weight for weight, seen in rows.items() if _work(weight) <= WORK * 6 * seen * weight.numel()} - tables


def _is_dense(module: nn.Module) -> bool:
    kind = isinstance(module, nn.Linear) or (isinstance(module, CONVS) and module.groups == 1)
    return kind and module.weight.numel() > 0  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _work(weight: Tensor) -> float:
    """Multiplications and additions of one step of Muon; a layer's own are 6 for each weight and row."""
    rows, columns = sorted((weight.shape[0], weight.numel() // weight.shape[0]))
    return ROUNDS * (4 * rows**2 * columns + 2 * rows**3)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V' of a matrix U S V', about: singular values between 0.7 and 1.2, those near zero less; in float32.

    Newton and Schulz's iteration with a quintic that is steep at zero (Jordan et al. 2024).
    """
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp_min(1e-7)
    first, third, fifth = QUINTIC
    for _ in range(ROUNDS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
