"""The batches of an epoch, the same bits for the same (seed, epoch): on every system, with any number of threads, and
when an epoch is continued in its middle.

What is left to chance at a use of an image (mirroring, cropping, colours, the order of tags) comes from a stream of
its own, seeded with (seed, epoch, place in the epoch). No global random state is read or moved.
"""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from library.contracts import Batch, Conditioning, Fit, Sample
from library.data import captions, decoding, masks
from library.data.buckets import crop_around, crop_at_random, face_in_name, face_range, size_record
from library.data.cache import LatentCache, TextCache, Wanted
from library.data.plan import Plan, batches_of_epoch
from library.data.threads import in_order
from library.options.derived import changes_images
from library.options.training import Config


def latents_wanted(plan: Plan, config: Config) -> list[Wanted]:
    """What `LatentCache.fill` must be given before training: with `flip_aug` every image twice."""
    wanted = [
        (sample, plan.fit(sample), flip)
        for sample in plan.samples_used
        for flip in ((False, True) if (sample.options or config).flip_aug else (False,))
    ]
    if len(plan.sets) == 1:
        return wanted
    unique = {(sample.image_path, fit, flip): (sample, fit, flip) for sample, fit, flip in wanted}  # in several sets
    return list(unique.values())


def captions_wanted(plan: Plan, config: Config) -> list[str] | None:
    """What `TextCache.fill` must be given before training; None where chance makes too many captions to cache."""
    texts: dict[int, tuple[Config, list[str]]] = {}  # by the identity of the options
    for sample in plan.samples_used:
        options = sample.options or config
        texts.setdefault(id(options), (options, []))[1].append(sample.caption)
    found: set[str] = set()
    for options, own in texts.values():
        possible = captions.possible(own, options)
        if possible is None:
            return None
        found.update(possible)
    return sorted(found)


def latents_measured(plan: Plan) -> list[Wanted]:
    """The same of the images that are not learnt, to be filled apart: latents depend by a hair on the images that
    they are encoded with, and those of the training must not depend on these."""
    return [(sample, plan.fit(sample), False) for sample in plan.samples.validation]


def captions_measured(plan: Plan) -> list[str]:
    """Their captions, to be filled apart as well."""
    return sorted({sample.caption for sample in plan.samples.validation})


class Dataset:
    """Batches by epoch.

    Args:
        seed: the run's; `config.seed` may be None, so whoever drew one hands it in.
        latents: filled with `latents_wanted`; None: batches carry pixels.
        texts: filled with `captions_wanted`; None: batches carry captions only.
        scale: pixels to a latent, along a side: the size of masks.
        size_conditioning: the family's.
    """

    def __init__(
        self,
        plan: Plan,
        config: Config,
        seed: int,
        *,
        latents: LatentCache | None = None,
        texts: TextCache | None = None,
        scale: int = 8,
        size_conditioning: Callable[[Tensor], Conditioning] = lambda sizes: {},
    ):
        changed = any(changes_images(sample.options or config) for sample in plan.samples_used)
        assert latents is None or not changed, "config forbids these with cache_latents"
        self.plan, self.config, self.seed = plan, config, seed
        self.latents, self.texts, self.scale, self.size_conditioning = latents, texts, scale, size_conditioning
        self._mask = lru_cache(masks.kept_count(plan.sizes, scale))(masks.load)

    def batches(self, epoch: int, start: int = 0, process: int = 0, of: int = 1) -> Iterator[Batch | None]:
        """The batches of an epoch in their order.

        Args:
            epoch: from 1.
            start: so many batches are left out at the beginning; the others are what they would have been.
            process, of: batches are dealt out to so many processes in turn; None stands for those of the others.
        """
        batches = batches_of_epoch(self.plan, self.seed, epoch)
        steps_before = sum(self.plan.step_counts[: epoch - 1])
        places = []  # of each batch's first sample in the epoch
        place = 0
        for samples in batches:
            places.append(place)
            place += len(samples)

        def make(index: int) -> Batch | None:
            if index % of != process:
                return None
            step = steps_before + index // self.plan.batches_per_step
            return self._batch(batches[index], epoch, places[index], step)

        yield from in_order(make, range(start, len(batches)), self.config.max_data_loader_n_workers)

    def batch_of(self, samples: list[Sample]) -> Batch:
        """A batch outside of all epochs, of images of one bucket that leave nothing to chance: `held_out.fixed`."""
        return self._batch(samples, epoch=0, place=0, step=0)

    def _batch(self, samples: list[Sample], epoch: int, place: int, step: int) -> Batch:
        texts, sizes, weights, images, uses, learnt = [], [], [], [], [], []
        for offset, sample in enumerate(samples):
            rng = random.Random(f"{self.seed} {epoch} {place + offset}")
            options, fit = sample.options or self.config, self.plan.fit(sample)
            flip = options.flip_aug and rng.random() < 0.5
            warmup = options.token_warmup_step  # steps, or a share of all
            warmup = min(1.0, step / (warmup * self.plan.step_count if warmup < 1 else warmup)) if warmup else 1.0
            texts.append(captions.process(sample.caption, options, rng=rng, epoch=epoch, warmup=warmup))
            sizes.append(size_record((sample.width, sample.height), fit))
            weights.append(self.config.prior_loss_weight if sample.is_regularization else 1.0)
            if self.latents:
                uses.append((sample, fit, flip))
            else:
                fit = _fit_of_use(sample, fit, options, rng)
                colours = decoding.ColourChange.draw(rng) if options.color_aug else None
                images.append(decoding.load(sample.image_path, fit, flip=flip, colours=colours))
            mask = self._mask(sample, fit, self.scale) if sample.mask else None
            learnt.append(mask[:, ::-1] if flip and mask is not None else mask)
        return Batch(
            samples=samples,
            captions=texts,
            weights=torch.tensor(weights, dtype=torch.float32),
            size_conditioning=self.size_conditioning(torch.tensor(sizes, dtype=torch.float32)),
            latents=self.latents.get_batch(uses) if self.latents else None,
            pixels=None if self.latents else decoding.to_pixels(images),
            text_embeddings=self.texts.get(texts) if self.texts else None,
            masks=_stacked(learnt),
        )


def _fit_of_use(sample: Sample, fit: Fit, options: Config, rng: random.Random) -> Fit:
    """The fit of one use of an image, where that is left to chance."""
    face = face_in_name(sample.image_path)
    if face and options.face_crop_aug_range:
        size, faces = (sample.width, sample.height), face_range(options.face_crop_aug_range)
        return crop_around(face, size, fit, faces, rng, anywhere=options.random_crop)
    return crop_at_random(fit, rng) if options.random_crop else fit


def _stacked(learnt: list[np.ndarray | None]) -> Tensor | None:
    """(B, 1, h, w) of masks (h, w), where None is all of an image; None if that is so for all."""
    shape = next((mask.shape for mask in learnt if mask is not None), None)
    if shape is None:
        return None
    whole = np.ones(shape, np.float32)
    return torch.from_numpy(np.stack([whole if mask is None else mask for mask in learnt])[:, None])
