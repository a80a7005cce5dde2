"""The training itself: steps, epochs, and going on from where it stopped, bit for bit."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.corruptions import ImageRng, to_float
from robustbench_ln.errors import InputError, TrustError
from robustbench_ln.models import Classifier, save_model
from robustbench_ln.norms import frozen_state
from robustbench_ln.norms.convert import all_norms
from robustbench_ln.norms.layer import LocalNorm
from robustbench_ln.planning import visiting_order
from robustbench_ln.training.curves import save_curves
from robustbench_ln.training.folder import TrainingFolder
from robustbench_ln.training.images import Part, Pixels, ahead, augmented, epoch_order
from robustbench_ln.training.optimization import LossScale, all_finite, learning_rate, make_optimizer, scale_gradients
from robustbench_ln.training.planning import TrainingPlan
from robustbench_ln.training.processes import Processes, group_parameters, own_part, whole_state

_SAVE_EVERY = 300.0  # seconds between saved states inside of an epoch, and between pictures
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch gave.

    Attributes:
        epoch: counted from 1.
        step: steps from the beginning.
        learning_rate: of its last step.
        loss: mean over its training images, in nats.
        accuracy: share of its training images that were right when they were trained on.
        eval_loss: mean over the held-out images; None without.
        eval_accuracy: share of the held-out images that are right; None without.
        best: whether no epoch before was as accurate on them.
        seconds: wall time, the evaluation not counted.
        images_per_second: of the training.
        norms: by layer, ``weight`` and ``bias``: mean and variance over channels in each group.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    eval_loss: float | None
    eval_accuracy: float | None
    best: bool
    seconds: float
    images_per_second: float
    norms: dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is.

    Attributes:
        epoch: counted from 1.
        epochs: how many there will be.
        images: that were trained on, all epochs together.
        total: what they will be in the end.
        loss: of the newest step.
        accuracy: of the newest step.
        learning_rate: of the newest step.
    """

    epoch: int
    epochs: int
    images: int
    total: int
    loss: float
    accuracy: float
    learning_rate: float


class Training:
    """A training that can be carried on from any step.

    Args:
        plan: what to train.
        folder: where its files are; the first process alone writes them.
        among: the processes that share it, and where this one computes.
        workers: threads that read and prepare images ahead; 0 for none.
    """

    def __init__(self, plan: TrainingPlan, folder: TrainingFolder, *, among: Processes, workers: int) -> None:
        self.plan, self.folder, self.among, self.workers = plan, folder, among, workers
        self.device = device = among.device
        settings = plan.settings
        self.steps = len(plan.train) // settings.batch_size
        self.epoch = self.step = 0
        self.log: list[dict[str, Any]] = []
        self._sums = torch.zeros(2, dtype=torch.float64)  # of this epoch's losses and right answers
        self._last = (0.0, 0.0)  # loss and accuracy of the newest step
        self._seconds = 0.0
        self._drawn = time.monotonic()
        self._scale = LossScale(settings.precision == "fp16")
        dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        # On CPUs too a quarter faster than images in planes.
        self._whole = plan.network.to(device, dtype).to(memory_format=torch.channels_last)
        state = among.together(folder.read_state)
        if state is not None:
            self._whole.load_state_dict(state["network"])
        self._part = own_part(self._whole, among)
        self._own = group_parameters(self._part)
        self._own_parameters = [self._part.get_parameter(name) for name in self._own]
        self._optimizer = make_optimizer(self._part, settings)
        if state is not None:
            self._restore(state)
        self._classifier = Classifier(self._part, settings.mean, settings.std).to(device, dtype)
        self._model = among.averaging(self._classifier, {f"network.{name}" for name in self._own})
        self._labels = plan.train.labels()

    @functools.cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self.plan.train, pinned=self.device.startswith("cuda"))

    @functools.cached_property
    def _held_out_pixels(self) -> Pixels:
        assert self.plan.held_out is not None
        return Pixels(self.plan.held_out)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch == self.plan.settings.epochs

    def run(self, *, stop: Callable[[], bool], on_event: Callable[[Epoch | Progress], None]) -> bool:
        """Train to the end, or until `stop` says so between two steps; what was done is saved either way.

        Returns: whether the training is finished.

        Raises:
            TrustError: the loss is not finite; the files are those of the last good epoch.
        """
        if not self.finished:
            on_event(self._progress())
        while not self.finished:
            done = self._train_epoch(stop, on_event)
            self._save()  # before the evaluation too, which may take long
            if not done:
                self._draw()
                return False
            on_event(self._finish_epoch())
            if self.finished or time.monotonic() - self._drawn > _SAVE_EVERY:
                self._draw()
        return True

    def _train_epoch(self, stop: Callable[[], bool], on_event: Callable[[Epoch | Progress], None]) -> bool:
        """Go on with the current epoch; False when asked to stop."""
        settings = self.plan.settings
        self._part.train()
        pixels = self._pixels
        order = epoch_order(settings.seed, self.epoch, self.plan.train.indices)
        batches = [
            order[step * settings.batch_size :][: settings.batch_size][self.among.share(settings.batch_size)]
            for step in range(self.step, self.steps)
        ]
        # Looking at a loss makes the CPU wait for the GPU, so there it is done now and then.
        tick = 20 if self.device.startswith("cuda") else 1
        seen: list[Tensor] = []
        started = saved = time.monotonic()
        for positions, levels in zip(batches, ahead(pixels.read, batches, self.workers), strict=True):
            seen.append(self._train_step(positions, levels))
            self.step += 1
            if self.step % tick and self.step < self.steps:
                continue
            asked, due = self._take_stock(seen, stop(), time.monotonic() - saved > _SAVE_EVERY)
            seen.clear()
            now = time.monotonic()
            self._seconds, started = self._seconds + now - started, now
            on_event(self._progress())
            if asked:
                return False
            if due and self.step < self.steps:
                self._save()
                saved = time.monotonic()
        return True

    def _train_step(self, positions: Tensor, levels: Tensor) -> Tensor:
        """One step; returns ``(2,)``: loss and share of right answers in this process's part of the batch."""
        settings, among = self.plan.settings, self.among
        # Dropout and the like depend on the step alone, so that no state of a generator has to be kept.
        step = (settings.seed * settings.epochs + self.epoch) * self.steps + self.step
        torch.manual_seed(step * among.size + among.rank)
        levels = levels.to(self.device, non_blocking=True)
        rng = ImageRng(
            settings.seed, "train/augment", torch.from_numpy(self.plan.train.indices)[positions], repeat=self.epoch
        )
        images = augmented(levels, rng, crop=settings.crop, flip=settings.flip)
        images = images.to(_DTYPES["fp64" if settings.precision == "fp64" else "fp32"])
        labels = self._labels[positions].to(self.device, non_blocking=True)
        rate = learning_rate(settings, self.epoch + (self.step + 0.5) / self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast(), among.shared_statistics():
            logits = self._model(images.contiguous(memory_format=torch.channels_last))
        if not isinstance(logits, Tensor):
            raise InputError(
                f"{settings.arch} returns no logits in train()",
                found=type(logits).__name__,
                hint="a network whose forward returns one tensor, without auxiliary outputs",
            )
        logits = logits if settings.precision == "fp64" else logits.float()
        loss = F.cross_entropy(logits, labels)
        torch.autograd.backward(loss * self._scale.scale if self._scale.enabled else loss)
        # The loss is a mean over the whole batch, of which this process has seen a part.
        scale_gradients(self._own_parameters, 1 / among.size)
        if self._step_is_good():
            self._optimizer.step()
        return torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).to(loss.dtype).mean()])

    def _autocast(self) -> Any:
        precision = self.plan.settings.precision
        if precision in ("fp32", "fp64"):
            return nullcontext()
        return torch.autocast(self.device.partition(":")[0], _DTYPES[precision])

    def _step_is_good(self) -> bool:
        """Take the scale of float16 off the gradients; False where they overflowed in any process."""
        if not self._scale.enabled:
            return True
        parameters = list(self._part.parameters())
        scale_gradients(parameters, 1 / self._scale.scale)
        finite = self.among.sum(all_finite(parameters).logical_not().float()[None]).item() == 0
        self._scale.update(finite)
        return finite

    def _take_stock(self, seen: list[Tensor], asked: bool, due: bool) -> tuple[bool, bool]:
        """Look at the losses of the last steps, and agree with the other processes on what comes next."""
        flags = torch.tensor([float(asked), float(due)], dtype=torch.float64)
        both = self.among.sum(torch.cat([flags, torch.stack(seen).cpu().double().flatten()]))
        results = both[2:].view(-1, 2) / self.among.size
        for back, loss in enumerate(results[:, 0].tolist()):
            if not math.isfinite(loss):
                raise self._diverged("the training loss", self.step - len(seen) + back + 1)
        self._sums += results.sum(0) * self.plan.settings.batch_size
        self._last = (results[-1, 0].item(), results[-1, 1].item())
        return both[0].item() > 0, both[1].item() > 0

    def _diverged(self, what: str, step: int) -> TrustError:
        rate = learning_rate(self.plan.settings, self.epoch + (step - 0.5) / self.steps)
        kept = "no epoch was finished"
        if self.log:
            kept = f"{self.folder.last} has the weights after epoch {len(self.log)}"
        return TrustError(
            f"{what} is not finite",
            found=f"epoch {self.epoch + 1}, step {step} of {self.steps}, learning rate {rate:.3g}",
            hint=f"a smaller --learning-rate or a longer --warmup; {kept}",
        )

    def _progress(self) -> Progress:
        settings = self.plan.settings
        done, each = self.epoch * self.steps + self.step, settings.batch_size
        return Progress(
            self.epoch + 1,
            settings.epochs,
            done * each,
            self.steps * settings.epochs * each,
            self._last[0],
            self._last[1],
            learning_rate(settings, self.epoch + max(self.step - 0.5, 0) / self.steps),
        )

    def _finish_epoch(self) -> Epoch:
        settings = self.plan.settings
        n = self.steps * settings.batch_size
        loss, accuracy = (self._sums / n).tolist()
        eval_loss, eval_accuracy = self._evaluate(self.plan.held_out) if self.plan.held_out else (None, None)
        finite = all(value.isfinite().all() for value in self._whole.state_dict().values())
        if not finite or not math.isfinite(eval_loss or 0):
            raise self._diverged("a weight or the held-out loss", self.steps)
        before = [record["eval_accuracy"] for record in self.log]
        best = eval_accuracy is None or all(eval_accuracy > other for other in before)
        record = Epoch(
            epoch=self.epoch + 1,
            step=(self.epoch + 1) * self.steps,
            learning_rate=learning_rate(settings, self.epoch + 1 - 0.5 / self.steps),
            loss=loss,
            accuracy=accuracy,
            eval_loss=eval_loss,
            eval_accuracy=eval_accuracy,
            best=best,
            seconds=round(self._seconds, 3),
            images_per_second=round(n / max(self._seconds, 1e-9), 1),
            norms=norm_statistics(self._whole),
        )
        self.log.append(asdict(record))
        self.epoch, self.step, self._seconds = self.epoch + 1, 0, 0.0
        self._sums.zero_()
        self._save(checkpoint=True, best=best)
        return record

    def _collect(self) -> None:
        """Bring the whole network up to date with the parts of all processes."""
        state = whole_state(self._part, self.among)
        if self._whole is not self._part:
            self._whole.load_state_dict(state)

    def _evaluate(self, part: Part) -> tuple[float, float]:
        """Mean loss and accuracy in eval(), in batches of training's size cut from one shuffled order."""
        settings = self.plan.settings
        order = visiting_order(settings.seed, len(part))
        size = min(settings.batch_size, len(part))
        labels_of = part.labels()
        whole = Classifier(self._whole, settings.mean, settings.std).to(self.device)
        sums = torch.zeros(2, dtype=torch.float64)
        starts = range(0, len(part), size)
        with frozen_state(whole):
            for start in list(starts)[self.among.rank :: self.among.size]:
                # The last batch is completed by wrapping around; those images are not counted twice.
                positions = order[torch.arange(start, start + size) % len(part)]
                images = to_float(self._held_out_pixels.read(positions).to(self.device))
                labels = labels_of[positions]
                with self._autocast():
                    logits = whole(images.to(next(whole.parameters()).dtype))
                counted = slice(min(size, len(part) - start))
                logits, labels = logits[counted].cpu().double(), labels[counted]
                right = (logits.argmax(1) == labels).sum()
                sums += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right.double()])
        loss, accuracy = (self.among.sum(sums) / len(part)).tolist()
        return loss, accuracy

    def _save(self, *, checkpoint: bool = False, best: bool = False) -> None:
        self._collect()
        optimizer = self._whole_optimizer()
        state = {
            "network": self._whole.state_dict(),
            "optimizer": optimizer,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums,
            "seconds": self._seconds,
            "scale": [self._scale.scale, self._scale.good],
            "log": self.log,
        }

        def write() -> None:
            if not self.among.first:
                return
            if checkpoint:
                save_model(self.folder.last, self._whole, metadata=self.plan.metadata)
            if best:
                save_model(self.folder.best, self._whole, metadata=self.plan.metadata)
            self.folder.write_state(state)
            self.folder.write_log(self.log)

        self.among.together(write)

    def _draw(self) -> None:
        def draw() -> None:
            if self.among.first and self.log:
                save_curves(self.log, self.folder.path)

        self.among.together(draw)
        self._drawn = time.monotonic()

    def _names(self) -> list[str]:
        """Names of the parameters in the order of the optimiser's state."""
        of = {id(parameter): name for name, parameter in self._part.named_parameters()}
        return [of[id(p)] for group in self._optimizer.param_groups for p in group["params"]]

    def _each_state(self, change: Callable[[Tensor], Tensor], states: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """The optimiser's states, those of group parameters changed where they have its shape and are no count."""
        names = self._names()
        return {
            index: {
                key: change(value) if names[index] in self._own and isinstance(value, Tensor) and value.dim() else value
                for key, value in state.items()
            }
            for index, state in states.items()
        }

    def _whole_optimizer(self) -> dict[int, Any]:
        states = self._optimizer.state_dict()["state"]
        return states if self.among.size == 1 else self._each_state(self.among.rows, states)

    def _restore(self, state: dict[str, Any]) -> None:
        states = self._each_state(lambda rows: rows[self.among.share(len(rows))].clone(), state["optimizer"])
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})
        self.epoch, self.step, self.log = state["epoch"], state["step"], state["log"]
        self._sums, self._seconds = state["sums"], state["seconds"]
        self._scale.scale, self._scale.good = state["scale"]


def norm_statistics(network: nn.Module) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean and variance over channels of gamma (``weight``) and beta (``bias``), a value a group (figure 5)."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, layer in all_norms(network).items():
        for kind, parameter in layer.named_parameters(recurse=False):
            if kind in ("weight", "bias"):
                groups = layer.n_groups if isinstance(layer, LocalNorm) else 1
                rows = parameter.detach().double().reshape(groups, -1)
                var, mean = torch.var_mean(rows, 1, correction=0)
                found.setdefault(name, {})[kind] = {"mean": mean.tolist(), "var": var.tolist()}
    return found
