"""What runs before any ablated unit gives the same in every ablation: computed once, remembered for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from compressor.capacity.collect import Place

ROOM = 2**28
"""Bytes of outputs that are remembered at most; the rest is computed again."""

_DEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Prefix:
    """Outputs of the linear layers and convolutions that run before the first of these places is reached.

    Only for passes over the same samples in the same batches, in eval mode.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place]) -> None:
        self.model = model
        self._places = {(place.module, place.side) for place in places}
        self._kept: dict[str, list[Tensor]] = {}
        self._bytes = 0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """One pass without ablation inside remembers; the model is as before afterwards."""
        reached = [False]
        modules = dict(self.model.named_modules())
        handles = []
        for name, side in self._places:
            attach = (
                modules[name].register_forward_hook if side == "output" else modules[name].register_forward_pre_hook
            )
            handles.append(attach(lambda *_: reached.__setitem__(0, True)))
        handles.append(self.model.register_forward_pre_hook(lambda *_: reached.__setitem__(0, False)))
        try:
            with _replaced(self._dear(), lambda name, module: self._recording(name, module, reached)):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def recalled(self) -> Iterator[None]:
        """A pass inside takes what was remembered."""
        with _replaced([(n, m) for n, m in self._dear() if n in self._kept], self._recalling):
            yield

    def _dear(self) -> list[tuple[str, nn.Module]]:
        """Layers of plain kinds that forward nothing of their own."""
        return [(n, m) for n, m in self.model.named_modules() if type(m) in _DEAR and "forward" not in m.__dict__]

    def _recording(self, name: str, module: nn.Module, reached: list[bool]) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if reached[0]:
                self._kept.pop(name, None)
            elif self._bytes + output.nbytes <= ROOM:
                self._bytes += output.nbytes
                self._kept.setdefault(name, []).append(output)
            else:
                self._kept.pop(name, None)
                self._bytes = ROOM  # no room for any later one either
            return output

        return run

    def _recalling(self, name: str, _module: nn.Module) -> Callable[..., Any]:
        left = iter(self._kept[name])
        return lambda *_args, **_kwargs: next(left)


@contextmanager
def _replaced(
    modules: Sequence[tuple[str, nn.Module]], made: Callable[[str, nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    done = []
    try:
        for name, module in modules:
            module.__dict__["forward"] = made(name, module)
            done.append(module)
        yield
    finally:
        for module in done:
            del module.__dict__["forward"]
