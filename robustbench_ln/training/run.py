"""The public function `train`, and carrying out a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustbench_ln.data import Dataset
from robustbench_ln.numerics import full_float32
from robustbench_ln.planning import choose_device, threads_of
from robustbench_ln.training.folder import open_training
from robustbench_ln.training.loop import Epoch, Progress, Training
from robustbench_ln.training.planning import TrainingPlan, plan_training
from robustbench_ln.training.processes import Processes, processes


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a training gave.

    Attributes:
        folder: where its files are.
        best: the checkpoint of the epoch that was most accurate on the held-out images.
        last: that of the newest epoch.
        log: a record an epoch, with the fields of :class:`~robustbench_ln.training.Epoch`.
        finished: whether all epochs are done.
    """

    folder: Path
    best: Path
    last: Path
    log: list[dict[str, Any]]
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @property
    def summary(self) -> str:
        """A line for a reader."""
        chosen = [record for record in self.log if record["best"]][-1]
        if chosen["eval_accuracy"] is None:
            return f"{len(self.log)} epochs, training accuracy {100 * chosen['accuracy']:.2f} %: {self.last}"
        return f"held-out accuracy {100 * chosen['eval_accuracy']:.2f} % after epoch {chosen['epoch']}: {self.best}"


def train(
    *,
    data: str | Dataset,
    out: str | Path,
    model: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    groups: int | None = None,
    eval_data: str | Dataset | None = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "step",
    warmup: float = 0.0,
    crop: int | None = None,
    flip: bool = True,
    precision: str = "fp32",
    new_head: bool = False,
    normalize: str = "auto",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    trust: bool = False,
    ema: bool | None = None,
    on_bad_image: str = "stop",
    resize: int | None = None,
    center_crop: int | None = None,
    interpolation: str | None = None,
    on_event: Callable[[Epoch | Progress], None] | None = None,
) -> TrainingRun:
    """Train a classifier into a folder; the same call again goes on where it stopped, or finds it finished.

    Under ``torchrun`` its processes train together: each owns K / world_size groups of every LocalNorm layer, and the
    gradients of all other parameters are averaged.

    Args:
        data: training images: as the command line names them, or a :class:`~robustbench_ln.Dataset`.
        out: folder of the training.
        model: what to train on from, named as for :func:`~robustbench_ln.evaluate`.
        arch: architecture to train from scratch; with `model`, that of its file.
        norm: ``bn``, ``dynbn`` (trains as ``bn``), ``ln``, ``layernorm``, ``instancenorm``, ``groupnorm`` or
            ``switchnorm``, put in BatchNorm's place with its gamma and beta; None for the network's own.
        groups: K of LocalNorm; groups of channels of GroupNorm. 8 and 32 when left out; K is 4 for large images.
        eval_data: images that decide which epoch is best: ``auto`` takes the test images of a data set that has some,
            else holds a tenth of the training images back; ``none``; or as `data`.
        epochs: passes over the data. This and the next defaults are the paper's, for images up to 96 pixels (for
            larger ones): 200 (150).
        batch_size: images a step, over all processes; 128 (16).
        optimizer: ``sgd`` with Nesterov momentum, ``adam`` or ``adamw``.
        learning_rate: its peak; 0.1 (0.0015).
        momentum: of SGD; beta 1 of Adam.
        weight_decay: on kernels and matrices; norm parameters and biases have none.
        schedule: of the learning rate: ``step`` (a tenth after 25 % of the epochs, 0.03 after 61 %), ``cosine`` to
            zero, or ``constant``.
        warmup: epochs in which it rises to its peak.
        crop: pixels of zero padding for random crops; an eighth of the side when left out.
        flip: mirror images at random.
        precision: ``fp32``, ``bf16`` or ``fp16`` (mixed, with float32 weights), or ``fp64``.
        new_head: replace the output layer of `model` by a new one for the classes of the data.
        normalize: ``auto``, ``imagenet``, ``cifar10``, ``half``, ``none`` or ``MEAN;STD``; ``auto`` is the model's own,
            from scratch mean and deviation of the training images.
        seed: of weights, data order, augmentation and dropout, at least 0.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: of a step.
        workers: threads that prepare images ahead; 4 on a GPU, else 0.
        trust: allow files that can run code when read.
        ema: of files with two copies of the weights take the averaged one, or (False) the plain one.
        on_bad_image: ``stop``, or ``skip`` to leave unreadable images out.
        resize: shorter side after resizing, in pixels.
        center_crop: side of the centre crop, in pixels.
        interpolation: of resizing.
        on_event: called with :class:`~robustbench_ln.training.Progress` and :class:`~robustbench_ln.training.Epoch`.

    Raises:
        UsageError: a name or number that is none, a batch that does not fit the groups or the processes, a folder of
            other settings.
        InputError: a model or data set that cannot be used, or that do not go together.
        ResourceError: the folder cannot be written, or another process trains into it.
        TrustError: the loss is not finite, or the data changed.
    """
    target = choose_device(device)
    with threads_of(threads), processes(target) as among:
        plan = among.together(
            lambda: plan_training(
                data=data,
                model=model,
                arch=arch,
                norm=norm,
                groups=groups,
                eval_data=eval_data,
                epochs=epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                schedule=schedule,
                warmup=warmup,
                crop=crop,
                flip=flip,
                precision=precision,
                new_head=new_head,
                normalize=normalize,
                seed=seed,
                trust=trust,
                ema=ema,
                on_bad_image=on_bad_image,
                resize=resize,
                center_crop=center_crop,
                interpolation=interpolation,
                among=among,
            )
        )
        return train_plan(plan, out, among=among, workers=workers, on_event=on_event)


def train_plan(
    plan: TrainingPlan,
    out: str | Path,
    *,
    among: Processes,
    workers: int | None = None,
    stop: Callable[[], bool] | None = None,
    on_event: Callable[[Epoch | Progress], None] | None = None,
    command: str = "",
) -> TrainingRun:
    """Carry out a plan; see :func:`train`.

    Args:
        plan: from :func:`plan_training`.
        out: folder of the training.
        among: the processes that share it.
        workers: threads that read and prepare images ahead; None for 4 on a GPU, none elsewhere.
        stop: asked between steps; when it says so, the state is saved and the run comes back unfinished.
        on_event: called after steps and epochs.
        command: the command line to record.
    """
    if workers is None:
        workers = 4 if among.device.startswith("cuda") else 0
    with open_training(Path(out), plan.settings, command, among) as folder, full_float32():
        training = Training(plan, folder, among=among, workers=workers)
        finished = training.run(stop=stop or (lambda: False), on_event=on_event or (lambda _: None))
        return TrainingRun(folder.path, folder.best, folder.last, training.log, finished)
