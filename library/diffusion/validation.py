"""How wrong the model is about images that it does not learn, measured in the same way each time.

A LoRA that overfits gets better at its own images and no better at others of the same kind. So a few images are
held out, and a training image is measured beside each of them, at the same timesteps and on the same noise: what is
left between the two is the gap. Regularization images show what happens to old knowledge: how far their loss is from
that of the unchanged model is the drift. Timesteps are fixed, as in sd-scripts; noise follows from the seed and a
image's place alone, so that two measurements differ by what the model has learnt and by nothing else. No random
stream of the training is read or moved.

The loss is the plain mean square: weights (min-SNR, ...), Huber losses and noise offsets are ways to learn, and with
them two runs could not be compared. sd-scripts uses those of the run, and subtracts the training loss of random
timesteps.
"""

import random
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from library.files import seed_from


class MeasuredBatch(NamedTuple):
    """Images, and how the model answers to them."""

    latents: Tensor  # (B, C, h, w)
    mask: Tensor | None  # (B, 1, h, w) how much each place counts; None: all of every image
    predict: Callable[[Tensor, Tensor], Tensor]  # noisy (B, C, h, w), t (B,) -> prediction (B, C, h, w)


class Measured(NamedTuple):
    """One validation."""

    timesteps: list[int]
    held_out: Tensor  # (images, timesteps) float32, on the CPU: the loss of each at each
    beside: Tensor  # the same for the training images beside them
    regularization: Tensor  # (regularization images, timesteps); there may be none

    @classmethod
    def of(
        cls, times: list[int], held_out: dict[int, Tensor], beside: dict[int, Tensor], old: dict[int, Tensor]
    ) -> "Measured":
        """From what `losses` gives for each; the n-th training image goes with the n-th that is held out."""
        rows = [[of_place[place] for place in sorted(held_out)] for of_place in (held_out, beside)]
        rows.append([old[place] for place in sorted(old)])
        return cls(times, *(torch.stack(own) if own else torch.empty(0, len(times)) for own in rows))

    @property
    def is_finite(self) -> bool:
        return all(bool(rows.isfinite().all()) for rows in self[1:])

    @property
    def loss(self) -> float:
        return float(self.held_out.mean())

    @property
    def training_loss(self) -> float:
        return float(self.beside.mean())

    @property
    def gap(self) -> float:
        """What overfitting widens."""
        return float((self.held_out - self.beside).mean())

    def values(self) -> dict[str, object]:
        """As run.jsonl has it."""
        rows = dict(held_out=self.held_out, training=self.beside, regularization=self.regularization)
        return {
            "loss": self.loss,
            "training_loss": self.training_loss,
            "gap": self.gap,
            "timesteps": self.timesteps,
            "rows": {name: own.tolist() for name, own in rows.items()},
        }


def timesteps(minimum: int, maximum: int, count: int) -> list[int]:
    """Where the loss is measured: evenly within (minimum, maximum); as sd-scripts, four of 0 and 1000: 200, 400, ..."""
    step = (maximum - minimum) / (count + 1)
    return [int(minimum + step * (place + 1)) for place in range(count)]


def sample_of(count: int, wanted: int, seed: int) -> list[int]:
    """The places of a fair sample of so many, in order."""
    return sorted(random.Random(f"{seed} sample").sample(range(count), min(count, wanted)))


def groups(kinds: list[Hashable], sizes: list[int], seed: int) -> list[list[int]]:
    """The places of images, in batches of one kind, in an order of which any beginning is a fair sample.

    Args:
        kinds: of each image; those of different kinds (sizes) cannot be in one batch.
        sizes: of each image, how many of its kind may be.
    """
    places = list(range(len(kinds)))
    rng = random.Random(f"{seed} validation")
    rng.shuffle(places)
    by_kind: dict[Hashable, list[int]] = {}
    for place in places:
        by_kind.setdefault(kinds[place], []).append(place)
    batches = [
        members[at : at + sizes[members[0]]]
        for members in by_kind.values()
        for at in range(0, len(members), sizes[members[0]])
    ]
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def losses(
    batches: list[list[int]],
    batch_of: Callable[[list[int]], MeasuredBatch],
    corrupt: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    times: list[int],
    seed: int,
) -> dict[int, Tensor]:
    """The loss of each image at each timestep.

    Args:
        batches: places of images.
        batch_of: gives a batch.
        corrupt: latents, noise, t (B,) -> noisy latents, and what the model should answer.
        loss: prediction, that answer, mask -> (B,).
        times: timesteps.
        seed: of the noise.

    Returns:
        Of each place its losses (timesteps,) float32, on the CPU.
    """
    measured = []
    for places in batches:
        batch = batch_of(places)
        latents = batch.latents
        noise = torch.stack([noise_of(seed, place, (len(times), *latents.shape[1:])) for place in places], dim=1)
        rows = []
        for own, time in zip(noise.to(latents.device), times, strict=True):
            t = torch.full((len(places),), time)
            noisy, target = corrupt(latents, own, t)
            rows.append(loss(batch.predict(noisy, t), target, batch.mask))
        measured.append(torch.stack(rows, dim=1))  # read below: reading here would stall the device
    return {
        place: row
        for places, rows in zip(batches, measured, strict=True)
        for place, row in zip(places, rows.float().cpu(), strict=True)
    }


def noise_of(seed: int, place: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of the given shape, on the CPU, that follows from seed and place alone."""
    number = seed_from(f"{seed} validation {place}")
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))
