"""What tests ask of losses: their means, and gradients of a batch in parts."""

from patchform.data.collate import split
from patchform.training import step


def means(losses):
    """The mean of each, by name."""
    return {name: loss.mean for name, loss in losses.items()}


def total_loss(losses):
    """() what is minimised."""
    return sum(loss.mean for loss in losses.values())


def gradients(model, batch, *, part=0, pixels=0, **options):
    """`training.step.gradients` of a batch that goes through the model in parts of so many images and pixels."""
    return step.gradients(model, list(split(batch, part, pixels)), **options)
