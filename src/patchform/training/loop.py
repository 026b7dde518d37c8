"""The training loop, read from top to bottom. There are no callbacks: what wants to change it is probably a Model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint as recompute

from patchform import distributed, lookup
from patchform.data.collate import split, to_device
from patchform.data.dataset import evaluation_pictures, open_data, training_pictures
from patchform.data.loader import (
    TrainingBatches,
    aspects,
    balance,
    derive,
    evaluation_loader,
    generator,
    training_loader,
)
from patchform.data.transforms import Mixing
from patchform.descriptions import Preprocessing
from patchform.device import pick_device
from patchform.errors import DataError, DivergedError, Interrupted, PeerError, ResourceError
from patchform.evaluation import evaluate
from patchform.model import Model, load, save
from patchform.records import Batch
from patchform.settings import Recipe
from patchform.tasks.base import Task
from patchform.training import checkpoint, ema, optimizer, run, schedule
from patchform.training.memory import keep_freed_memory
from patchform.training.metrics_log import MetricsLog
from patchform.training.preparation import (
    checked,
    identity_of,
    model_of,
    plain,
    refuse_nonsense,
    seed_everything,
)
from patchform.training.progress import Reporter
from patchform.weights.files import failpoint, replace_text


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    model: Model
    """As saved in the folder: the best by validation, the moving average if there is one; in evaluation mode."""
    step: int
    """Optimizer steps taken."""
    best: float | None
    """The score of the model, None without one."""
    best_step: int


def train(recipe: Recipe, *, resume: bool = False, progress: bool = True) -> Run:
    """Train a model, or go on with a run that was stopped, to the same bits as if it had not been.

    The run folder `recipe.runs`/`recipe.name` gets recipe.yaml, metrics.csv, steps.jsonl, tensorboard/, checkpoints/,
    best/ (the best model so far) and, at the end, the model itself. What lies in it is described in `patchform.model`,
    `training.checkpoint` and `training.metrics_log`.

    Of several processes (`patchform.distributed`) each looks at its share of every batch; gradients are added up, so
    all take one step, that of the whole batch. The first one validates and writes.

    Args:
        recipe: all settings; complete in itself.
        resume: go on from the newest whole checkpoint of the folder.
        progress: show how it goes, on stderr.

    Raises:
        UsageError: a setting out of range, an unknown name.
        DataError: data that cannot be used.
        ModelFileError: on resume, no whole checkpoint or one of another run.
        FolderError: the run exists already, is in use, or is not there to resume.
        DivergedError: the loss or the gradient is not finite; the weights before that step are saved.
        ResourceError: out of memory, a full disk.
        Interrupted: SIGTERM or Ctrl-C; the run was saved.
        PeerError: of several processes another one failed; the run was saved.
    """
    refuse_nonsense(recipe)
    settings = recipe.training
    stem = f"{recipe.task}-{recipe.model.backbone.replace('/', '-')}"
    with (
        run.Stop() as stop,
        distributed.process_group() as place,
        Reporter(shown=progress, heard=place.is_main) as reporter,
        run.opened(Path(recipe.runs), recipe.name, stem=stem, resume=resume) as folder,
    ):
        # ------------------------------------------------------------------------------------------------- data
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = pick_device(settings.device)
        if device.type == "cpu":
            keep_freed_memory()
        preprocessing = recipe.preprocessing
        splits = open_data(recipe.data, seed=settings.seed, preprocessing=preprocessing, task=recipe.task)
        for note in splits.notes:
            reporter.note(note)
        counts = splits.train.counts()
        weighted = recipe.loss.class_weights in ("balanced", "root")
        if not resume or recipe.data.skip_bad or weighted:  # a resumed run was checked already
            splits, counts = checked(splits, recipe.data, preprocessing, reporter, stop=stop)
        listing = splits.train
        epoch = math.ceil(len(listing) / settings.batch_size)
        steps = epoch * settings.epochs
        pictures = training_pictures(listing, preprocessing, recipe.augmentation, settings.seed)
        mixing = Mixing(recipe.augmentation, len(listing.classes))
        held_out = evaluation_pictures(splits.validation, preprocessing, settings.seed)
        part = min(settings.micro_batch or settings.batch_size, settings.batch_size)
        pin = device.type == "cuda"
        validation = evaluation_loader(held_out, part, recipe.data.workers, pin=pin)

        # ------------------------------------------------------------------------------------ model and optimizer
        seed_everything(settings.seed)
        model = model_of(recipe, listing, preprocessing, counts=counts, say=reporter.note).to(device)
        task: Task = lookup.the_class("tasks", recipe.task, Task).of(model.head)  # type: ignore[attr-defined]
        average = ema.average_of(model) if settings.ema else None
        judged = average or model
        if recipe.model.checkpointing:
            recompute_activations(model)
        if recipe.model.compile:
            model.trained.compile()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        mover = optimizer.build(model, recipe.optimizer)
        counters = checkpoint.Counters()
        parts = checkpoint.Parts(model=model, average=average, optimizer=mover, counters=counters)

        # ------------------------------------------------------------------------------------------------ resume
        checkpoints = folder / run.CHECKPOINTS
        checkpoints.mkdir(exist_ok=True)
        identity = identity_of(recipe, model, splits)
        saved = 0
        if resume:
            found, notes = checkpoint.newest(checkpoints)
            if found is None:
                notes.append("nothing was saved yet: beginning at step 0")
            else:
                notes += checkpoint.restore(parts, found, identity=identity)
                notes.append(f"resuming after step {counters.step}")
                saved = counters.step
            for note in notes:
                reporter.note(note)
        model.begin(step=counters.step, steps=steps, epoch=epoch)
        resolved = dataclasses.replace(recipe, name=folder.name)
        if place.is_main:
            replace_text(folder / run.RECIPE, yaml.safe_dump(plain(dataclasses.asdict(resolved)), sort_keys=False))
            _warn_of_little_room(folder, parts, reporter)
        distributed.broadcast(list(model.state_dict().values()))

        def rate_at(step: int) -> float:
            return recipe.optimizer.lr * schedule.multiplier(recipe.schedule, step, steps=steps, epoch=epoch)

        def keep() -> None:
            """Write a checkpoint of this step, unless there is one."""
            nonlocal saved
            if counters.step == saved or not place.is_main:
                return
            if not all_finite(model, average):
                raise DivergedError(f"weights are not finite after step {counters.step}", remedy="lower optimizer.lr")
            with _save_errors(settings.on_save_error, reporter):
                checkpoint.save(parts, checkpoints, identity=identity, keep=settings.keep)
                saved = counters.step

        def end_epoch(log: MetricsLog | None) -> str:
            """Validate, and keep the model if it is the best so far; the counters afterwards, as text."""
            step = counters.step
            numbers: dict[str, float | None] = {"train_loss": counters.epoch_loss / epoch}
            if every(step, epoch * settings.validate_every) or step >= steps:
                scores = evaluate(
                    judged,
                    validation,
                    task,
                    device=device,
                    precision=settings.precision,
                    pixels=settings.pixels_at_once,
                    progress=lambda done: stop.check(),
                )
                numbers |= scores.numbers
                for note in scores.notes:
                    reporter.note(note)
                counters.without_better += 1
                if scores.best is not None and (counters.best is None or scores.best > counters.best):
                    failpoint("before-best")
                    with _save_errors(settings.on_save_error, reporter):
                        save(judged, folder / run.BEST, thresholds=task.thresholds(scores))
                        counters.best, counters.best_step, counters.without_better = scores.best, step, 0
            speed = reporter.speed()
            if log is not None:
                log.epoch(step // epoch, step, numbers | {"lr": rate_at(step - 1), "images_per_second": speed})
            reporter.epoch(step // epoch, step, numbers)
            counters.reported, counters.epoch_loss = step, 0.0
            return counters.told()

        # ------------------------------------------------------------------------------------------------- steps
        weights = balance(listing) if recipe.data.balanced else None
        groups = None if preprocessing.resize == "squash" else aspects(listing)
        order = TrainingBatches(
            len(listing), settings.batch_size, settings.seed, counters.step, steps, weights, groups, share=place
        )
        statistics = running_statistics(model)
        incoming = iter(training_loader(pictures, order, recipe.data.workers, pin=pin))
        reporter.note(
            f"{len(listing)} {listing.thing}s to learn from, {len(splits.validation)} to validate on; batches of"
            f" {min(settings.batch_size, len(listing))}, {part} at once; {epoch} steps an epoch, {steps} in all"
        )
        reporter.begin(counters.step, steps)
        model.train()
        kept = functools.partial(MetricsLog, folder, counters.step, counters.reported, tensorboard=settings.tensorboard)
        with memory_errors(part, preprocessing), kept() if place.is_main else nullcontext() as log:
            try:
                while True:
                    step = counters.step
                    at_epoch, last = every(step, epoch), step >= steps

                    # -------------------------------------------------------- end of an epoch: validate, keep the best
                    if at_epoch and counters.reported < step:
                        counters.tell(distributed.broadcast_text(lambda: end_epoch(log)))

                    # ---------------------------------------------------------------------------------- save, stop
                    last |= 0 < settings.patience <= counters.without_better
                    if last or (every(step, settings.save_every) if settings.save_every else at_epoch):
                        distributed.all_or_none(keep)
                    distributed.all_or_none(stop.check)
                    if last:
                        break

                    # ------------------------------------------------------------------------------------ one step
                    dice: tuple[int, ...] = () if place.single else (place.rank,)
                    if dice:  # of what the model draws, nothing need be remembered
                        torch.manual_seed(derive(settings.seed, "model", step, *dice))
                    batch = to_device(distributed.all_or_none(lambda: next(incoming)), device)
                    batch = mixing.mix(batch, generator(settings.seed, "mix", step, *dice))
                    rate = rate_at(step)
                    loss, norm = gradients(
                        model,
                        batch,
                        part=settings.micro_batch,
                        pixels=settings.pixels_at_once,
                        precision=settings.precision,
                        counts=not order.borrowed(step),
                    )
                    if not math.isfinite(loss + norm):
                        names = [listing.name(index) for _, index in order.whole(step)]
                        raise _diverged(folder, step + 1, names, loss=loss, norm=norm, rate=rate)
                    if recipe.optimizer.clip:
                        clip_grads_with_norm_(parameters, recipe.optimizer.clip, torch.tensor(norm, device=device))
                    optimizer.set_rate(mover, rate)
                    mover.step()
                    mover.zero_grad(set_to_none=True)
                    distributed.all_reduce_mean(statistics)
                    if average is not None:
                        ema.update(average, model, settings.ema)
                    model.after_step(step)
                    counters.step, counters.epoch_loss = step + 1, counters.epoch_loss + loss
                    failpoint("before-log")
                    if log is not None:
                        log.step(step + 1, loss=loss, norm=norm, lr=rate)
                    seen = order.size(step)
                    reporter.step(step + 1, epoch=step // epoch + 1, loss=loss, rate=rate, images=seen)
            except (Interrupted, DataError, DivergedError, PeerError):
                if all_finite(model, average):
                    keep()
                raise

        # --------------------------------------------------------------------------------------------- the model
        final = judged if counters.best is None else load(folder / run.BEST)
        distributed.all_or_none(lambda: save(final, folder) if place.is_main else None)
        return Run(folder, final.eval(), counters.step, counters.best, counters.best_step)


# ------------------------------------------------------------------------------------------------------- one step


def every(step: int, period: int) -> bool:
    """Whether a period ends at this step; none ends at step 0."""
    return step > 0 and step % period == 0


def gradients(
    model: Model, batch: Batch, *, part: int, precision: str, pixels: int = 0, counts: bool = True
) -> tuple[float, float]:
    """Add the gradients of a batch's loss, `part` images at a time; the sum is that of the whole batch at once.

    Each part weighs what `model.count` says of its targets: a mean of means would be another loss when parts differ.
    So do the shares of several processes, whose gradients are added up.

    Args:
        model: in training mode.
        batch: on the model's device.
        part: images that go through the model together; 0 for all.
        precision: "float32" or "bfloat16" (autocast).
        pixels: that go through the model together, padding included; 0: no bound. See `collate.split` on padding.
        counts: False weighs the batch 0: this process has none of its own.

    Returns:
        The loss and the norm of the gradient, of all processes.
    """
    device = batch.images.device.type
    everything = model.count(batch.targets) * counts
    distributed.all_reduce_sum([everything])
    everything = everything.clamp(min=1e-6)  # 0 where all pixels are ignored: nothing to learn
    losses = []
    for piece in split(batch, part, pixels):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = torch.stack(list(model(piece).values())).sum()
        loss = loss * (model.count(piece.targets) * counts / everything).to(loss.device)
        loss.backward()
        losses.append(loss.detach())
    total = torch.stack(losses).sum()
    if not distributed.rank_and_world().single:
        _add_up(model, total)
    norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    loss_and_norm = torch.stack([total, norm]).tolist()  # one wait for the device a step
    return loss_and_norm[0], loss_and_norm[1]


def _add_up(model: Model, loss: Tensor) -> None:
    """Put the sums over all processes into the gradients and the loss; what was used in one process was used in all."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    distributed.all_reduce_sum([used])
    for parameter, times in zip(parameters, used.tolist()):
        if times and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    distributed.all_reduce_sum([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])


def running_statistics(model: Model) -> list[Tensor]:
    """What batch normalisation has seen so far, which several processes see each in their own share of a batch."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    found = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    return [value for value in found if value is not None]


def recompute_activations(model: Model) -> None:
    """Keep only the input of each of the backbone's layers and compute the rest again in the backward pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". The gradients are the same; random numbers are
    drawn alike both times.
    """
    for layer in model.trained.layers():
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return recompute(forward, *inputs, use_reentrant=False, **named)


@torch.no_grad()
def all_finite(*models: nn.Module | None) -> bool:
    """Whether all parameters and buffers are finite."""
    states = [model.state_dict() for model in models if model is not None]
    tensors = [tensor for state in states for tensor in state.values() if tensor.is_floating_point() and tensor.numel()]
    largest = torch._foreach_norm(tensors, math.inf)
    return bool(torch.stack([norm.float() for norm in largest]).isfinite().all())


def _diverged(folder: Path, step: int, names: Sequence[str], *, loss: float, norm: float, rate: float) -> DivergedError:
    """The error, after all file names of the batch were written beside the log."""
    if distributed.rank_and_world().is_main:
        replace_text(folder / "diverged.json", json.dumps({"step": step, "files": list(names)}, indent=1))
    return DivergedError(
        f"the loss is {loss:g} and its gradient's norm {norm:g} at step {step} (learning rate {rate:g})",
        where=", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        remedy="look at these pictures, lower optimizer.lr, or set optimizer.clip",
    )


# ---------------------------------------------------------------------------------------------- what the machine says


def _warn_of_little_room(folder: Path, parts: checkpoint.Parts, reporter: Reporter) -> None:
    size = sum(tensor.nbytes for tensor in parts.model.state_dict().values())
    needed = 3 * size * (3 + (parts.average is not None))  # weights, two moments, the average
    if (free := shutil.disk_usage(folder).free) < needed:
        reporter.note(f"the disk may become full: {free >> 20} MB are free, three checkpoints need {needed >> 20} MB")


@contextmanager
def _save_errors(policy: str, reporter: Reporter) -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        if policy == "stop":
            raise
        reporter.note(f"not saved, going on: {error}")


@contextmanager
def memory_errors(part: int, preprocessing: Preprocessing) -> Iterator[None]:
    """Say what was too large; nothing is ever made smaller unasked."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in ("can't allocate memory", "out of memory")):
            raise
        height, width = preprocessing.size
        raise ResourceError(
            f"out of memory with {part} images of {height}x{width} at once",
            remedy="lower training.micro_batch (the result stays the same) or training.pixels_at_once, or set"
            " model.checkpointing",
        ) from error
