"""The scalar whose gradients give the curvature: the log-likelihood of labels drawn from the model's own output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressor.algebra.moments import wide
from compressor.algebra.patches import keyed_hash


def sampled_log_likelihood(output: Tensor, ids: Tensor, key: int) -> Tensor:
    """Sum over samples (and positions) of log p(label), labels drawn from the model's own softmax over dimension 1.

    The noise is keyed by sample id. A single score z counts as the two classes (0, z).
    """
    scores = output.float().reshape(len(output), -1) if output.dim() < 3 else output.float().flatten(2)
    scores = scores[:, :, None] if scores.dim() == 2 else scores  # (N, C, P)
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    places = math.prod(scores.shape[1:])
    ids = ids.to(scores.device)
    cells = ids[:, None] * places + torch.arange(places, device=scores.device)[None, :]
    dtype = wide(scores.device)
    uniform = (keyed_hash(cells, key) >> 9).to(dtype) / float(1 << 53)
    edge = 1e-12 if dtype == torch.float64 else 1e-7
    gumbel = -torch.log(-torch.log(uniform.clamp(edge, 1 - edge))).reshape(scores.shape)
    labels = (scores.detach() + gumbel.to(scores.dtype)).argmax(1, keepdim=True)
    return torch.log_softmax(scores, 1).gather(1, labels).sum()
