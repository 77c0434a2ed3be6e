"""One training by several processes: each takes its part of every batch, and all make the same step.

Gradients are sums over samples, so the parts' gradients add up to those of the whole batch. What is drawn (order of
samples, averages of two) is drawn in every process alike, for the whole batch: the training is that of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, distributed, nn

from compressor.observe.processes import connected, meet, processes
from compressor.units.fetched import there


def numbers_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network's state is made of, by name: to copy from and into. What modules add to it beside
    tensors (`get_extra_state`) is nothing that training changes.
    """
    return {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def set_numbers(model: nn.Module, numbers: Mapping[str, Tensor]) -> None:
    """Copy the tensors of another state, as `numbers_of` names them, into the network's; each keeps its own dtype."""
    for name, tensor in numbers_of(model).items():
        tensor.copy_(numbers[name])


class Team:
    """The processes that train one network together; this one alone where it is not shared, or nobody else is there.

    All methods that exchange something are collective: every process calls them, in the same order.
    """

    def __init__(self, shared: bool) -> None:
        self.rank, self.size = processes() if shared else (0, 1)

    def part(self, count: int) -> tuple[Tensor, float]:
        """This process's places among 0..count-1, and their share of all.

        Where there are more processes than samples some look at one sample that does not count: a share of 0.
        """
        first, last = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return torch.arange(first, max(last, first + 1)), (last - first) / count

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place and the same in each."""
        if self.size > 1:
            meet()
            with connected():
                distributed.all_reduce(values)
        return values

    def of_first(self, value: float) -> float:
        """What the first process has."""
        return float(self.total(torch.tensor(value if self.rank == 0 else 0.0, dtype=torch.float64)))

    def start_alike(self, model: nn.Module) -> None:
        """The first process's weights in all: devices may differ in the last bits of what was computed before."""
        if self.size > 1:
            meet()
            for tensor in numbers_of(model).values():
                if tensor.is_floating_point():
                    same = there(tensor).contiguous()
                    with connected():
                        distributed.broadcast(same, 0)
                    tensor.copy_(same)

    def join(self, loss: Tensor, weights: Sequence[nn.Parameter], share: float) -> float:
        """The whole batch's mean loss; the weights' gradients become those of it. One exchange.

        `loss` is the mean over this process's part, which is `share` of the batch, and gradients are of that. A weight
        that no process used keeps no gradient.
        """
        if self.size == 1:
            return loss.item()
        dtype = reduce(torch.promote_types, (weight.dtype for weight in weights), torch.float32)
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        used = torch.tensor([weight.grad is not None for weight in weights], device=loss.device)
        own = torch.cat([*(grad.flatten().to(dtype) for grad in grads), loss.detach().reshape(1).to(dtype)])
        # a part that does not count adds nothing, whatever it is
        message = torch.cat([own * share if share else torch.zeros_like(own), used.to(dtype)])
        self.total(message)
        *parts, value, used = message.split([*(weight.numel() for weight in weights), 1, len(weights)])
        for weight, grad, part, by_any in zip(weights, grads, parts, (used > 0).tolist(), strict=True):
            weight.grad = grad.copy_(part.reshape(grad.shape)) if by_any else None
        return value.item()
