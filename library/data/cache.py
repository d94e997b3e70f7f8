"""Latents and caption states that are worked out once and kept, in memory or on disk.

A cache that cannot be stale: the key under which something is kept is the SHA-256 of everything it follows from (the
picture's bytes, the VAE, bucket, crop, kernel, mirroring, this file's FORMAT), never a file's name or date. What was
changed is simply not found, and what is found is right. `shards` keeps the rows; a damaged one is made anew. Which
bytes a picture has is `remembered` too, so that a run which starts need not read a hundred thousand pictures.

Numbers are kept in fp16, also in memory, so that a run does not depend on where its cache lies. Latents are about -5 to
5; rounding moves them by less than 1 part in 2000, far less than the VAE's own noise, and takes half the space of fp32.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from library.contracts import Conditioning, Fit, Sample
from library.data import images
from library.data.file_index import facts_of
from library.data.shards import Lost, Memory, Rows, Shards
from library.data.threads import in_order
from library.files import sha256, sha256_of_file
from library.messages import UserError, say

FORMAT = 2  # raise it when pictures are read, resized or kept in another way: old rows are then no longer found

Wanted = tuple[Sample, Fit, bool]  # a picture, how it is fitted, whether it is mirrored
Progress = Callable[[int, int], None]  # done, all that must be worked out


class BadLatents(UserError):
    """The VAE gave NaN or infinity for pictures that are named in the message."""


@dataclass(frozen=True)
class Filled:
    """What filling a cache amounted to."""

    made: int
    reused: int
    repaired: int = 0  # damaged rows that were made anew; counted in `made` too


def fingerprint(*modules: nn.Module, settings: object = None) -> str:
    """Changes with the modules' weights, with their dtype, and with whatever settings decide their output too."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for module in modules:
        for name, weight in module.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(*facts: object) -> bytes:
    return sha256(repr((FORMAT, *facts)).encode())


def _rows_of(folder: Path | None, kind: str, fingerprint: str) -> Shards | Memory:
    if folder is None:
        return Memory()
    return Shards(folder / kind, sha256(fingerprint.encode()).hex()[:12])


class LatentCache:
    """The latents of pictures, each under everything it follows from.

    Args:
        folder: where to keep them; None: in memory.
        vae_fingerprint: changes with the VAE's weights and with the precision it computes in.
    """

    def __init__(self, folder: Path | None, vae_fingerprint: str):
        self._rows = _rows_of(folder, "latents", vae_fingerprint)
        self._folder = folder
        self._vae_fingerprint = vae_fingerprint
        self._numbers: dict[tuple[Path, Fit, bool], int] = {}  # of rows

    def fill(
        self,
        wanted: Iterable[Wanted],
        encode_images: Callable[[Tensor], Tensor],
        *,
        apart: Iterable[Wanted] = (),
        batch_size: int = 1,
        thread_count: int = 2,
        progress: Progress | None = None,
    ) -> Filled:
        """Make sure that all of these can be got. Reading pictures, encoding and writing overlap.

        Args:
            apart: others that can be got as well. None of them is encoded together with the first, whose numbers, in
                their last digits, are those that they would be without these.
            encode_images: (B, 3, H, W) float32 pixels in [-1, 1] on the CPU -> (B, C, h, w) scaled latents anywhere.
            batch_size: pictures encoded at once; they share a bucket.
            thread_count: threads that read pictures meanwhile.

        Raises:
            BadLatents: latents are not finite; the pictures are named.
            UserError: the folder cannot be written.
        """
        parts = [[(sample.image_path, fit, flip) for sample, fit, flip in part] for part in (wanted, apart)]
        uses = parts[0] + parts[1]
        pictures = list(dict.fromkeys(path for path, _, _ in uses))
        found = facts_of(pictures, sha256_of_file, folder=self._folder, kind="digests", thread_count=thread_count)
        digests = dict(zip(pictures, found, strict=True))
        keys = [self._key(digests[path], fit, flip) for path, fit, flip in uses]
        missing = (self._rows.find(keys) < 0).nonzero()[0].tolist()
        repaired = sum(keys[at] in self._rows.damaged for at in missing)

        def kind(at: int) -> tuple:
            return at >= len(parts[0]), uses[at][1].bucket

        missing.sort(key=kind)  # stable: batches of one bucket

        def read(at: int) -> Tensor:
            """Pixels, and the key once more from the same bytes: the file may have changed in between."""
            path, fit, flip = uses[at]
            data = path.read_bytes()
            keys[at] = self._key(sha256(data), fit, flip)
            return images.to_pixels([images.load(path, fit, flip=flip, data=data)])

        def encoded() -> Iterator[Rows]:
            batch: list[Tensor] = []
            for place, pixels in enumerate(in_order(read, missing, thread_count), 1):
                batch.append(pixels)
                ends = place == len(missing) or kind(missing[place]) != kind(missing[place - 1])
                if ends or len(batch) == batch_size:
                    these = missing[place - len(batch) : place]
                    latents = _encode([uses[at][0] for at in these], torch.cat(batch), encode_images)
                    yield [keys[at] for at in these], [latents]
                    batch = []

        done = 0
        for count in self._rows.append(encoded()) if missing else ():
            done += count
            if progress:
                progress(done, len(missing))
        self._numbers |= zip(uses, self._rows.find(keys).tolist(), strict=True)
        self._rows.sweep()
        return Filled(len(missing), len(uses) - len(missing), repaired)

    def get(self, sample: Sample, fit: Fit, flip: bool = False) -> Tensor:
        """(C, h, w) float32, as `fill` was told to keep it."""
        return self.get_batch([(sample, fit, flip)])[0]

    def get_batch(self, uses: list[Wanted]) -> Tensor:
        """(B, C, h, w) float32, as `fill` was told to keep them; they share a bucket."""
        try:
            (latents,) = self._rows.read([self._numbers[sample.image_path, fit, flip] for sample, fit, flip in uses])
        except Lost as lost:
            path = uses[lost.at][0].image_path
            raise UserError(
                say(
                    f"the cached latents of {path} vanished or were damaged during the run. Start again",
                    f"{path} 的缓存在训练途中消失或损坏，请重新开始",
                )
            ) from None
        return torch.from_numpy(latents).float()

    def _key(self, digest: bytes, fit: Fit, flip: bool) -> bytes:
        usual = (digest, self._vae_fingerprint, fit.bucket, fit.resized, fit.crop, flip)
        return _key("latents", *usual, *filter(None, [fit.kernel]))


def _encode(pictures: list[Path], pixels: Tensor, encode_images: Callable[[Tensor], Tensor]) -> np.ndarray:
    """(B, C, h, w) float16 latents."""
    with torch.no_grad():
        latents = encode_images(pixels).to("cpu", torch.float16)
    bad = [path for path, own in zip(pictures, latents, strict=True) if not own.isfinite().all()]
    if bad:
        names = ", ".join(str(path) for path in bad)
        raise BadLatents(
            say(
                f"the VAE gives NaN or infinity for {names}. Use a VAE that works in fp16 (vae = ...), or "
                'mixed_precision = "no"',
                f"VAE 对 {names} 给出 NaN 或无穷大。请换用可在 fp16 下工作的 VAE（vae = ...），"
                '或设 mixed_precision = "no"',
            )
        )
    return latents.numpy()


class TextCache:
    """What the text encoders make of captions: for text encoders that are not trained, captions that can be listed.

    Args:
        folder: where to keep it; None: in memory.
        text_fingerprint: changes with the text encoders' weights and whatever else decides their output (clip_skip,
            max_token_length, precision).
    """

    def __init__(self, folder: Path | None, text_fingerprint: str):
        self._rows = _rows_of(folder, "captions", text_fingerprint)
        self._text_fingerprint = text_fingerprint
        self._numbers: dict[str, int] = {}  # of rows

    def fill(
        self,
        captions: Iterable[str],
        encode_captions: Callable[[list[str], Tensor], Conditioning],
        *,
        apart: Iterable[str] = (),
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> Filled:
        """Make sure that all of these can be got.

        Args:
            apart: others; see `LatentCache.fill`.
            encode_captions: the family's; every caption must give as many tokens' states as any other.

        Raises:
            UserError: states are not finite, the caption is named; or the folder cannot be written.
        """
        first = dict.fromkeys(captions)
        captions = list(first | dict.fromkeys(apart))
        keys = [_key("caption", caption, self._text_fingerprint) for caption in captions]
        missing = (self._rows.find(keys) < 0).nonzero()[0].tolist()
        repaired = sum(keys[at] in self._rows.damaged for at in missing)

        def encoded() -> Iterator[Rows]:
            for part in ([at for at in missing if (at < len(first)) == is_first] for is_first in (True, False)):
                for start in range(0, len(part), batch_size):
                    these = part[start : start + batch_size]
                    yield [keys[at] for at in these], _states([captions[at] for at in these], encode_captions)

        done = 0
        for count in self._rows.append(encoded()) if missing else ():
            done += count
            if progress:
                progress(done, len(missing))
        self._numbers |= zip(captions, self._rows.find(keys).tolist(), strict=True)
        self._rows.sweep()
        return Filled(len(missing), len(captions) - len(missing), repaired)

    def get(self, captions: list[str], sizes: Tensor) -> Conditioning:
        """(B) captions, as `fill` was given them, and their uses' (B, 6) sizes -> float32 conditioning."""
        try:
            states, *pooled = self._rows.read([self._numbers[caption] for caption in captions])
        except Lost as lost:
            caption = captions[lost.at]
            raise UserError(
                say(
                    f'the cached caption "{caption}" vanished or was damaged during the run. Start again',
                    f"标签“{caption}”的缓存在训练途中消失或损坏，请重新开始",
                )
            ) from None
        states = torch.from_numpy(states).float()
        return Conditioning(states, torch.from_numpy(pooled[0]).float(), sizes) if pooled else Conditioning(states)


def _states(captions: list[str], encode_captions: Callable[[list[str], Tensor], Conditioning]) -> list[np.ndarray]:
    """(B, S, D) float16 states, and (B, D2) pooled ones where there are any."""
    with torch.no_grad():  # sizes belong to the use, not to the caption: zeros stand in
        conditioning = encode_captions(captions, torch.zeros(len(captions), 6))
    parts = [part for part in (conditioning.states, conditioning.pooled) if part is not None]
    parts = [part.to("cpu", torch.float16) for part in parts]
    for row, caption in enumerate(captions):
        if not all(part[row].isfinite().all() for part in parts):
            raise UserError(
                say(
                    f'the text encoder gives NaN or infinity for "{caption}". Set mixed_precision = "no"',
                    f'文本编码器对“{caption}”给出 NaN 或无穷大。请设 mixed_precision = "no"',
                )
            )
    return [part.numpy() for part in parts]
