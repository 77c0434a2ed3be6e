"""One training loop: for recipes, for recovery (with a loss that distils) and for capacity ladders."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.algebra.answers import LEFT_OUT, counted, hits
from compressor.algebra.probabilities import beside_zero
from compressor.errors import DataError, ModelError
from compressor.sources.samples import Batch, Samples, batches
from compressor.sources.trees import map_leaves
from compressor.training.augment import augmented, viewed, views
from compressor.training.muon import matrices_of
from compressor.training.schedules import Optimizer, Schedule, optimizer_of, rate
from compressor.training.targets import refuse_targets
from compressor.training.together import Team, numbers_of, set_numbers
from compressor.units.fetched import gradients_beside
from compressor.units.modes import evaluating, with_gradients
from compressor.units.outputs import as_answered, judged_part
from compressor.units.program import forward

Loss = Callable[[Any, Batch], Tensor]
"""(the network's output, the batch as the network saw it) -> mean loss per sample, a scalar."""
Criterion = Callable[[nn.Module], float]
"""How bad a network is, asked in eval mode without gradients: the smaller the better."""
CHECKS = 10
"""How often a criterion is asked, at equal distances and at last after the last step."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train. `lr` is the peak of the schedule; `seconds` ends it early, with the cycle fitted to that."""

    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    optimizer: Optimizer = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = False
    """Mirror half of the images left to right."""
    shift: int = 0
    """Move images by up to this many pixels in both directions, filling with the image's own edge."""
    bf16: bool = False
    """Run the network under bfloat16 autocast where the device computes in it (emulating it is slower than
    float32); weights and the optimizer stay float32."""
    seconds: float | None = None
    seed: int = 0
    steps: int | None = None
    """Exactly so many steps, in place of `epochs`."""
    mix: bool = False
    """Half of the inputs are mixed with others, images also cut and moved by a pixel; labels are dropped: for a loss
    that asks the inputs only."""
    frozen_modes: bool = False
    """The network stays in eval mode: batch norms keep their running statistics and use them, dropout is off."""
    schedule: Schedule = "one_cycle"


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training did: mean loss of every epoch, accuracy in percentage points where labels allow."""

    losses: tuple[float, ...]
    train_accuracy: float | None
    """Over the last epoch, as it went (with augmentation and moving weights)."""
    accuracy: float | None
    """On the samples given as `check`, after the last step."""
    steps: int
    seconds: float
    checks: tuple[tuple[int, float], ...] = ()
    """(step, value) wherever the criterion was asked, first before any step; the least value's weights came back."""
    stopped: str | None = None
    """Why training ended early, where a criterion let it end in peace."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step done: `done` of 0..1, the mean loss of the epoch so far, and the network as it is (to look at only)."""

    epoch: int
    step: int
    done: float
    loss: float
    model: nn.Module


@with_gradients()
def train(
    model: nn.Module,
    samples: Samples,
    options: TrainOptions = TrainOptions(),
    *,
    loss: Loss | None = None,
    check: Samples | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], None] | None = None,
    criterion: Criterion | None = None,
    shared: bool = False,
) -> tuple[nn.Module, TrainingReport]:
    """A trained copy of `model` in eval mode, on the CPU, and what happened; the model given stays as it was.

    The default loss is cross-entropy with the labels, squared error where they are numbers. The same seed, data and
    machine give the same weights (with `seconds`: only nearly); the caller's random numbers are left alone. With a
    `criterion` the weights that it liked best come back, those given included, and a loss that is no longer finite
    only ends the training. With `shared` all processes of a group train it, each on its part of every batch, and all
    end with the weights that one process would have, up to the rounding of sums; norms must be frozen then (they would
    see one part only), and inputs may be mixed, but neither `flip` nor `shift` moves them. `criterion` must answer the
    same in each.
    Raises DataError where the loss needs labels and there are none or none that fit, ModelError where the loss is no
    longer finite, ValueError for options that cannot be shared.
    """
    if shared and (options.flip or options.shift or not options.frozen_modes):
        raise ValueError("only a training with frozen modes, and without flip and shift, can be shared")
    if loss is None and (options.mix or samples.labels is None):
        raise DataError(samples.name, "no labels", "labels to train with", "give a dataset of (input, label).")
    device = torch.device(device)
    learner = copy.deepcopy(model).to(device).train()
    gradients_beside(learner)
    channels_last = put_channels_last(learner)
    with _own_random_state(options.seed, device):
        if loss is None:
            refuse_targets(learner, samples, device)
        run = _Run(
            learner,
            samples,
            options,
            loss or _against_labels(options.label_smoothing),
            device,
            channels_last,
            criterion,
            Team(shared),
        )
        report = run.finish(progress, check)
    learner.zero_grad(set_to_none=True)
    if channels_last:
        learner = learner.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return learner.cpu().eval(), report


def accuracy(model: nn.Module, samples: Samples, device: str | torch.device = "cpu", batch: int = 256) -> float:
    """Percentage of samples whose label is the largest output, in eval mode; the model's mode is restored."""
    right, single = 0.0, []
    with torch.no_grad(), evaluating(model):
        for part in batches(samples, batch, device):
            if part.labels is None:
                raise DataError(samples.name, "no labels", "labels", "give a dataset of (input, label).")
            found = judged_part(forward(model, part.inputs))[0]
            if found.numel() == len(found):  # all of them tell whether single answers are probabilities
                single.append((found.flatten().cpu(), part.labels.cpu()))
            else:
                right += float(hits(found, part.labels).sum())
    if single:
        right += float(hits(torch.cat([f for f, _ in single]), torch.cat([labels for _, labels in single])).sum())
    return 100 * right / len(samples)


def steps_per_epoch(samples: Samples, options: TrainOptions) -> int:
    """Batches of one pass; what does not fill a last batch waits for the next pass."""
    return max(1, len(samples) // options.batch)


class DivergedError(ModelError):
    """The loss is no longer finite."""


class _Run:
    """The state of one training."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        options: TrainOptions,
        loss: Loss,
        device: torch.device,
        channels_last: bool,
        criterion: Criterion | None,
        team: Team,
    ) -> None:
        self.model, self.samples, self.options, self.loss, self.team = model, samples, options, loss, team
        self.device, self.channels_last = device, channels_last
        self.dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
        self.optimizer = optimizer_of(model, options.optimizer, options.lr, options.weight_decay, self._matrices)
        self.weights: list[nn.Parameter] = [w for group in self.optimizer.param_groups for w in group["params"]]
        self.precision = precision(options, device)
        self.draws = torch.Generator().manual_seed(options.seed)
        self.started = time.perf_counter()
        self.per_epoch = steps_per_epoch(samples, options)
        self.total = self.per_epoch * options.epochs if options.steps is None else options.steps
        self.steps = 0
        self.criterion, self.checks = criterion, list[tuple[int, float]]()
        self.best: dict[str, Tensor] = {}
        self.dropouts = {module: module.dropout for module in model.modules() if isinstance(module, nn.RNNBase)}

    def _matrices(self) -> set[nn.Parameter]:
        few = self.samples.take(range(min(2, len(self.samples))))
        (example,) = batches(few, len(few), self.device, self.dtype)
        return matrices_of(self.model, example, self.options.batch)

    def finish(self, progress: Callable[[Progress], None] | None, check: Samples | None) -> TrainingReport:
        losses: list[float] = []
        right: float | None = None
        stopped: str | None = None
        self.team.start_alike(self.model)
        self._ask()
        self._set_modes()
        try:
            while self._done() < 1:
                mean, right = self._epoch(len(losses), progress)
                losses.append(mean)
        except DivergedError as error:
            if self.criterion is None:
                raise
            stopped = f"{error.got} at {error.where}"
        for module, share in self.dropouts.items():
            module.dropout = share
        if self.best:
            set_numbers(self.model, self.best)
        measured = None if check is None else accuracy(self.model, check, self.device)
        seconds = time.perf_counter() - self.started
        return TrainingReport(tuple(losses), right, measured, self.steps, seconds, tuple(self.checks), stopped)

    def _set_modes(self) -> None:
        """The mode to learn in. cuDNN's recurrences learn in train mode only, which without dropout is eval mode."""
        self.model.train(not self.options.frozen_modes)
        for module in self.dropouts if self.options.frozen_modes else ():
            module.training, module.dropout = True, 0.0

    def _ask(self) -> None:
        """Ask the criterion and keep the weights if they are the best so far."""
        if self.criterion is None:
            return
        self.model.eval()
        with torch.no_grad():
            value = self.criterion(self.model)
        value = value if math.isfinite(value) else math.inf
        if not self.checks or value < min(known for _, known in self.checks):
            self.best = {name: tensor.clone() for name, tensor in numbers_of(self.model).items()}
        self.checks.append((self.steps, value))
        self._set_modes()

    def _is_time_to_ask(self) -> bool:
        marks = {round(self.total * place / CHECKS) for place in range(1, CHECKS + 1)}
        return self.steps in marks

    def _epoch(self, epoch: int, progress: Callable[[Progress], None] | None) -> tuple[float, float | None]:
        total, right, seen = 0.0, 0.0, 0
        labelled = True
        order = torch.randperm(len(self.samples), generator=self.draws)
        for step in range(self.per_epoch):
            done = self._done()
            if done >= 1:
                break
            ids = order[step * self.options.batch : (step + 1) * self.options.batch]
            batch, share = self._batch(ids)
            value, output = self._step(batch, share, rate(self.options.schedule, done, epoch) * self.options.lr)
            total, seen = total + value * len(ids), seen + len(ids)
            labelled = self.team.size == 1 and batch.labels is not None and not batch.labels.is_floating_point()
            if labelled and batch.labels is not None:
                right += float(hits(_scores(judged_part(output)[0].detach()), batch.labels).sum())
            if self._is_time_to_ask():
                self._ask()
            if progress is not None:
                progress(Progress(epoch, self.steps, min(1.0, self._done()), total / seen, self.model))
        return total / max(seen, 1), 100 * right / max(seen, 1) if labelled else None

    def _step(self, batch: Batch, share: float, lr: float) -> tuple[float, Any]:
        """One step on a batch of which this process has `share`; the whole batch's mean loss, and its own outputs."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.precision:
            output = forward(self.model, batch.inputs)
        self.optimizer.zero_grad(set_to_none=True)
        own = self.loss(output, batch)
        if not own.requires_grad:
            raise ModelError(
                "training", "outputs without gradients", "outputs that the weights can be trained by",
                "leave out `torch.no_grad()`, `inference_mode()` and `.detach()` from the network's forward.",
            )  # fmt: skip
        own.backward()
        value = self.team.join(own, self.weights, share)
        if not math.isfinite(value):
            raise DivergedError(
                f"training, step {self.steps + 1}",
                f"a loss of {value}",
                "a finite loss",
                f"lower lr (now {self.options.lr}), or look for broken labels.",
            )
        self.optimizer.step()
        self.steps += 1
        return value, output

    def _batch(self, ids: Tensor) -> tuple[Batch, float]:
        """This process's part of the batch of these samples, and its share of it; only what it needs is read."""
        own, share = self.team.part(len(ids))
        if self.options.mix:
            how = views(len(ids), self.draws).of(own)
            needed, places = torch.cat([own, how.partner]).unique(return_inverse=True)
            first, second = places.split(len(own))
            inputs, labels = viewed(self.samples.batch(ids[needed])[0], first, second, how), None
        else:
            inputs, labels = self.samples.batch(ids[own])

        def prepare(leaf: Tensor) -> Tensor:
            leaf = leaf.to(self.dtype) if leaf.is_floating_point() else leaf
            if leaf.ndim == 4:
                leaf = augmented(leaf, self.options.flip, self.options.shift, self.draws).to(self.device)
                order = torch.channels_last if self.channels_last else torch.contiguous_format
                return leaf.contiguous(memory_format=order)
            return leaf.to(self.device)

        return Batch(ids[own], map_leaves(prepare, inputs), None if labels is None else labels.to(self.device)), share

    def _done(self) -> float:
        share = self.steps / self.total
        if self.options.seconds is None:
            return share
        return max(share, self.team.of_first((time.perf_counter() - self.started) / self.options.seconds))


def _scores(found: Tensor) -> Tensor:
    """Scores of two classes from single answers, which are trained as log odds; others as they are."""
    if found.ndim > 1 and found.shape[1] > 1:
        return found
    return beside_zero(found[:, None] if found.ndim == 1 else found)


def _against_labels(smoothing: float) -> Loss:
    def loss(output: Any, batch: Batch) -> Tensor:
        assert batch.labels is not None
        found, _, moved = judged_part(output)
        found = found.float()
        if batch.labels.is_floating_point():
            given = as_answered(found, moved)
            return F.mse_loss(given, batch.labels.float().reshape(given.shape))
        scores = _scores(found)
        labels = batch.labels.long().masked_fill(~counted(batch.labels, scores.shape[1]), LEFT_OUT)
        return F.cross_entropy(scores, labels, label_smoothing=smoothing, ignore_index=LEFT_OUT)

    return loss


def put_channels_last(model: nn.Module) -> bool:
    """Lay the model's weights out with channels last where that is faster; whether it was done."""
    if wanted := _prefers_channels_last(model):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return wanted


def _prefers_channels_last(model: nn.Module) -> bool:
    """Two-dimensional convs run faster with channels last, on CPUs and on tensor cores.

    Not with a strided 1 x 1 convolution of fewer than 8 inputs (the skips of narrow ResNets): torch's CPU kernel for
    its gradient then writes beyond its memory (seen with 2.14 and 2 or 4 inputs; 8 are fine).
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    broken = [c for c in convs if c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 8]  # pyright: ignore
    return bool(convs) and not broken


def precision(options: TrainOptions, device: torch.device) -> torch.autocast:
    """What a network computes in while it is trained so: bfloat16 where that is asked and the device computes in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=options.bf16 and _computes_bf16(device))


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and the like draw from this seed; the caller's generators come back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
