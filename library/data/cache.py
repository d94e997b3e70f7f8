"""Latents and caption states that are worked out once and kept, in memory or on disk.

A cache that cannot be stale: the key under which something is kept is the SHA-256 of everything it follows from (the
image's bytes, the VAE, bucket, crop, kernel, mirroring, this file's FORMAT), never a file's name or date. What was
changed is simply not found, and what is found is right. `shards` keeps the rows; a damaged one is made anew. Which
bytes an image has is `remembered` too, so that a run which starts need not read a hundred thousand images.

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
from torch.nn import functional

from library.contracts import Conditioning, Fit, Sample
from library.data import decoding
from library.data.file_index import facts_of
from library.data.shards import Lost, Memory, Rows, Shapes, Shards
from library.data.threads import in_order
from library.files import sha256, sha256_of_file
from library.messages import UserError, say

FORMAT = 2  # raise it when images are read, resized or kept in another way: old rows are then no longer found
CAPTION_FORMAT = 2  # raise it when captions become other tokens

ROOM = 64  # captions that differ in length are kept in steps of so many tokens: lengths that have a shard of their own

Wanted = tuple[Sample, Fit, bool]  # an image, how it is fitted, whether it is mirrored
Progress = Callable[[int, int], None]  # done, all that must be worked out


class BadLatents(UserError):
    """The VAE gave NaN or infinity for images that are named in the message."""


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
    """The latents of images, each under everything it follows from.

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
        """Make sure that all of these can be got. Reading images, encoding and writing overlap.

        Args:
            apart: others that can be got as well. None of them is encoded together with the first, whose numbers, in
                their last digits, are those that they would be without these.
            encode_images: (B, 3, H, W) float32 pixels in [-1, 1] on the CPU -> (B, C, h, w) scaled latents anywhere.
            batch_size: images encoded at once; they share a bucket.
            thread_count: threads that read images meanwhile.

        Raises:
            BadLatents: latents are not finite; the images are named.
            UserError: the folder cannot be written.
        """
        parts = [[(sample.image_path, fit, flip) for sample, fit, flip in part] for part in (wanted, apart)]
        uses = parts[0] + parts[1]
        images = list(dict.fromkeys(path for path, _, _ in uses))
        found = facts_of(images, sha256_of_file, folder=self._folder, kind="digests", thread_count=thread_count)
        digests = dict(zip(images, found, strict=True))
        keys = [self._key(digests[path], fit, flip) for path, fit, flip in uses]
        missing = (self._rows.find(keys) < 0).nonzero()[0].tolist()
        repaired = sum(keys[at] in self._rows.damaged for at in missing)

        def kind(at: int) -> tuple[bool, tuple[int, int]]:
            return at >= len(parts[0]), uses[at][1].bucket

        missing.sort(key=kind)  # stable: batches of one bucket

        def read(at: int) -> Tensor:
            """Pixels, and the key once more from the same bytes: the file may have changed in between."""
            path, fit, flip = uses[at]
            data = path.read_bytes()
            keys[at] = self._key(sha256(data), fit, flip)
            return decoding.to_pixels([decoding.load(path, fit, flip=flip, data=data)])

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
                    f"the cached latents of {path} were deleted or damaged during the run. Start again",
                    f"{path} 的缓存在训练途中消失或损坏，请重新开始",
                )
            ) from None
        return torch.from_numpy(latents).float()

    def _key(self, digest: bytes, fit: Fit, flip: bool) -> bytes:
        usual = (digest, self._vae_fingerprint, fit.bucket, fit.resized, fit.crop, flip)
        return _key("latents", *usual, *filter(None, [fit.kernel]))


def _encode(images: list[Path], pixels: Tensor, encode_images: Callable[[Tensor], Tensor]) -> np.ndarray:
    """(B, C, h, w) float16 latents."""
    with torch.no_grad():
        latents = encode_images(pixels).to("cpu", torch.float16)
    bad = [path for path, own in zip(images, latents, strict=True) if not own.isfinite().all()]
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
        names: `FamilyFacts.text_embeddings`. Kept are rows of numbers alone, in this order.
    """

    def __init__(self, folder: Path | None, text_fingerprint: str, names: tuple[str, ...]):
        self._rows = _rows_of(folder, "captions", text_fingerprint)
        self._text_fingerprint, self._names = text_fingerprint, names
        self._numbers: dict[str, int] = {}  # of rows

    def fill(
        self,
        captions: Iterable[str],
        encode_captions: Callable[[list[str]], Conditioning],
        *,
        apart: Iterable[str] = (),
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> Filled:
        """Make sure that all of these can be got.

        Args:
            apart: others; see `LatentCache.fill`.
            encode_captions: the family's.

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
                    embeddings = _embeddings([captions[at] for at in these], encode_captions)
                    yield from _to_rows([keys[at] for at in these], embeddings, self._names)

        done = 0
        for count in self._rows.append(encoded()) if missing else ():
            done += count
            if progress:
                progress(done, len(missing))
        self._numbers |= zip(captions, self._rows.find(keys).tolist(), strict=True)
        self._rows.sweep()
        return Filled(len(missing), len(captions) - len(missing), repaired)

    def get(self, captions: list[str]) -> Conditioning:
        """(B) captions, as `fill` was given them -> their embeddings, float32, padded to the longest of these."""
        of_shapes: dict[Shapes, list[int]] = {}  # places among the captions of those that are read together
        numbers = [self._numbers[caption] for caption in captions]
        for place, number in enumerate(numbers):
            of_shapes.setdefault(self._rows.shapes(number), []).append(place)
        read = []
        for places in of_shapes.values():
            try:
                read.append((places, self._rows.read([numbers[place] for place in places])))
            except Lost as lost:
                caption = captions[places[lost.at]]
                raise UserError(
                    say(
                        f'the cached caption "{caption}" was deleted or damaged during the run. Start again',
                        f"标注“{caption}”的缓存在训练途中消失或损坏，请重新开始",
                    )
                ) from None
        return _from_rows(read, self._names)


def _embeddings(captions: list[str], encode_captions: Callable[[list[str]], Conditioning]) -> Conditioning:
    """The captions' embeddings on the CPU, float16 where they are not whole numbers."""
    with torch.no_grad():
        embeddings = {
            name: tensor.to("cpu", torch.float16 if tensor.is_floating_point() else torch.int32)
            for name, tensor in encode_captions(captions).items()
        }
    for row, caption in enumerate(captions):
        if not all(tensor[row].isfinite().all() for tensor in embeddings.values()):
            raise UserError(
                say(
                    f'the text encoder gives NaN or infinity for "{caption}". Set mixed_precision = "no"',
                    f'文本编码器对“{caption}”给出 NaN 或无穷大。请设 mixed_precision = "no"',
                )
            )
    return embeddings


def _to_rows(keys: list[bytes], embeddings: Conditioning, names: tuple[str, ...]) -> Iterator[Rows]:
    """Rows to keep. Those of captions of about one length come together, cut off after it."""
    assert tuple(embeddings) == names, (tuple(embeddings), names)
    varying = [name for name in names if f"{name}_length" in names]
    of_room: dict[tuple[int, ...], list[int]] = {}
    for row in range(len(keys)):
        room = tuple(-(-int(embeddings[f"{name}_length"][row]) // ROOM) * ROOM for name in varying)
        of_room.setdefault(room, []).append(row)
    for room, rows in of_room.items():
        own = {name: embeddings[name][rows] for name in names}
        own |= {name: _resized(own[name], count) for name, count in zip(varying, room, strict=True)}
        yield [keys[row] for row in rows], [_to_halves(tensor) for tensor in own.values()]


def _from_rows(read: list[tuple[list[int], list[np.ndarray]]], names: tuple[str, ...]) -> Conditioning:
    """The opposite: of (places in the batch, parts of the rows) one batch."""
    embeddings = {}
    for at, name in enumerate(names):
        parts = [_from_halves(arrays[at], name) for _, arrays in read]
        longest = max(part.shape[1] for part in parts)
        whole = parts[0].new_empty(sum(map(len, parts)), longest, *parts[0].shape[2:])
        for (places, _), part in zip(read, parts, strict=True):
            whole[places] = _resized(part, longest)
        embeddings[name] = whole
    for name in names:
        if name.endswith("_length"):
            embeddings[name] = embeddings[name].flatten()
            padded = name.removesuffix("_length")
            embeddings[padded] = embeddings[padded][:, : int(embeddings[name].max())]
    return embeddings


def _resized(tensor: Tensor, count: int) -> Tensor:
    """(B, S, ...) -> (B, count, ...), cut off or with zeros added."""
    return functional.pad(tensor[:, :count], (0, 0) * (tensor.ndim - 2) + (0, max(0, count - tensor.shape[1])))


def _to_halves(tensor: Tensor) -> np.ndarray:
    """Numbers as `shards` keeps them: whole ones (int32) as the bits of two."""
    array = tensor.numpy()
    return array if tensor.is_floating_point() else array.reshape(len(array), -1).view(np.float16)


def _from_halves(array: np.ndarray, name: str) -> Tensor:
    is_whole = name.endswith(("_ids", "_length"))
    return torch.from_numpy(array.view(np.int32)).long() if is_whole else torch.from_numpy(array).float()
