"""Latents and caption states that are worked out once and kept, in memory or on disk.

A cache that cannot be stale: the name under which something is kept is the SHA-256 of everything it follows from (the
picture's bytes, the VAE, bucket, crop, mirroring, this file's FORMAT), never a file's name or date. What was changed
is simply not found, and what is found is right. Each file carries a checksum; a damaged one is made anew.
Files are written beside and then renamed, so an interrupted run leaves nothing half-written under a valid name.

Numbers are kept in fp16, also in memory, so that a run does not depend on where its cache lies. Latents are about -5 to
5; rounding moves them by less than 1 part in 2000, far less than the VAE's own noise, and takes half the space of fp32.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from library.config import Config
from library.contracts import Conditioning, Fit, Sample
from library.data import images
from library.data.threads import in_order
from library.messages import UserError, say

FORMAT = 1  # raise it when pictures are read, resized or kept in another way: old files are then no longer found

Wanted = tuple[Sample, Fit, bool]  # a picture, how it is fitted, whether it is mirrored
Progress = Callable[[int, int], None]  # done, all that must be worked out


class BadLatents(UserError):
    """The VAE gave NaN or infinity for pictures that are named in the message."""


@dataclass(frozen=True)
class Filled:
    """What filling a cache amounted to."""

    made: int
    reused: int
    repaired: int = 0  # damaged files that were made anew; counted in `made` too


def cache_folder(config: Config) -> tuple[Path | None, str | None]:
    """The folder for caches, made and tried out; None keeps them in memory. And a line where it is not the usual one.

    Raises:
        UserError: the user's own `cache_dir` cannot be written.
    """
    if not config.cache_latents_to_disk:
        return None, None
    usual = Path(config.cache_dir or Path(config.train_data_dir) / ".cache")
    if _can_write(usual):
        return usual, None
    if config.cache_dir:
        raise UserError(
            say(
                f"cache_dir = {usual} cannot be written. Choose another folder, or cache_latents_to_disk = False",
                f"cache_dir = {usual} 无法写入。请换一个目录，或设 cache_latents_to_disk = False",
            )
        )
    instead = Path(config.output_dir) / ".cache"
    if _can_write(instead):
        line = say(f"{usual} cannot be written, caching in {instead}", f"{usual} 无法写入，缓存改放在 {instead}")
        return instead, line
    return None, say(f"{usual} cannot be written, caching in memory", f"{usual} 无法写入，缓存只放在内存")


def _can_write(folder: Path) -> bool:
    trial = folder / f"trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError:
        return False
    return True


def fingerprint(*modules: nn.Module, settings: object = None) -> str:
    """Changes with the modules' weights, with their dtype, and with whatever settings decide their output too."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for module in modules:
        for name, weight in module.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Store:
    """Named tensors under keys, in a folder or in memory. `None` comes back for what is missing or damaged."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}

    def read(self, key: str) -> dict[str, Tensor] | None:
        if self.folder is None:
            return self._memory.get(key)
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        content, checksum = data[:-4], data[-4:]
        if zlib.crc32(content).to_bytes(4, "little") != checksum:
            return None
        return parse_tensors(content)

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        if self.folder is None:
            self._memory[key] = tensors
            return
        path = self._path(key)
        content = write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
            os.replace(beside, path)
        except OSError as error:
            raise UserError(
                say(
                    f"the cache cannot be written: {error}. Free some space, choose another cache_dir, or set "
                    "cache_latents_to_disk = False",
                    f"缓存无法写入：{error}。请腾出空间、更换 cache_dir，或设 cache_latents_to_disk = False",
                )
            ) from error

    def has_file(self, key: str) -> bool:
        """Whether there is a file, be it damaged."""
        return self.folder is not None and self._path(key).exists()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.cache"  # two letters: no folder with a hundred thousand files


def _key(*facts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()


class LatentCache:
    """The latents of pictures, each under everything it follows from.

    Args:
        folder: where to keep them; None: in memory.
        vae_fingerprint: changes with the VAE's weights and with the precision it computes in.
    """

    def __init__(self, folder: Path | None, vae_fingerprint: str):
        self._store = Store(folder and folder / "latents")
        self._vae_fingerprint = vae_fingerprint
        self._keys: dict[tuple[Path, Fit, bool], str] = {}

    def fill(
        self,
        wanted: Iterable[Wanted],
        encode_images: Callable[[Tensor], Tensor],
        *,
        batch_size: int = 1,
        thread_count: int = 2,
        progress: Progress | None = None,
    ) -> Filled:
        """Make sure that all of these can be got.

        Args:
            encode_images: (B, 3, H, W) float32 pixels in [-1, 1] on the CPU -> (B, C, h, w) scaled latents anywhere.
            batch_size: pictures encoded at once; they share a bucket.
            thread_count: threads that read pictures meanwhile.

        Raises:
            BadLatents: latents are not finite; the pictures are named.
        """
        wanted = list(wanted)
        pictures = list(dict.fromkeys(sample.image_path for sample, _, _ in wanted))
        digests = dict(zip(pictures, in_order(_digest_of_file, pictures, thread_count), strict=True))
        missing: list[Wanted] = []
        repaired = 0
        for sample, fit, flip in wanted:
            key = self._key(digests[sample.image_path], fit, flip)
            self._keys[sample.image_path, fit, flip] = key
            if self._store.read(key) is None:
                missing.append((sample, fit, flip))
                repaired += self._store.has_file(key)
        missing.sort(key=lambda use: use[1].bucket)  # stable: batches of one bucket

        def read(use: Wanted) -> tuple[str, Tensor]:
            """The key once more with the pixels, from the same bytes: the file may have changed in between."""
            sample, fit, flip = use
            data = sample.image_path.read_bytes()
            key = self._key(hashlib.sha256(data).hexdigest(), fit, flip)
            return key, images.to_pixels([images.load(sample.image_path, fit, flip=flip, data=data)])

        batch: list[tuple[Wanted, str, Tensor]] = []
        done = 0
        for at, (use, (key, pixels)) in enumerate(zip(missing, in_order(read, missing, thread_count), strict=True)):
            self._keys[use[0].image_path, use[1], use[2]] = key
            batch.append((use, key, pixels))
            is_last = at + 1 == len(missing) or missing[at + 1][1].bucket != use[1].bucket
            if is_last or len(batch) == batch_size:
                self._encode(batch, encode_images)
                done += len(batch)
                batch = []
                if progress:
                    progress(done, len(missing))
        return Filled(len(missing), len(wanted) - len(missing), repaired)

    def get(self, sample: Sample, fit: Fit, flip: bool = False) -> Tensor:
        """(C, h, w) float32, as `fill` was told to keep it."""
        tensors = self._store.read(self._keys[sample.image_path, fit, flip])
        if tensors is None:
            raise UserError(
                say(
                    f"the cached latents of {sample.image_path} vanished or were damaged during the run. Start again",
                    f"{sample.image_path} 的缓存在训练途中消失或损坏，请重新开始",
                )
            )
        return tensors["latents"].float()

    def _key(self, digest: str, fit: Fit, flip: bool) -> str:
        return _key("latents", digest, self._vae_fingerprint, fit.bucket, fit.resized, fit.crop, flip)

    def _encode(self, batch: list[tuple[Wanted, str, Tensor]], encode_images: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            latents = encode_images(torch.cat([pixels for _, _, pixels in batch])).to("cpu", torch.float16)
        bad = [use[0].image_path for (use, _, _), own in zip(batch, latents, strict=True) if not own.isfinite().all()]
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
        for (_, key, _), own in zip(batch, latents, strict=True):
            self._store.write(key, {"latents": own.clone()})


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TextCache:
    """What the text encoders make of captions: for text encoders that are not trained, captions that can be listed.

    Args:
        folder: where to keep it; None: in memory.
        text_fingerprint: changes with the text encoders' weights and whatever else decides their output (clip_skip,
            max_token_length, precision).
    """

    def __init__(self, folder: Path | None, text_fingerprint: str):
        self._store = Store(folder and folder / "captions")
        self._text_fingerprint = text_fingerprint

    def fill(
        self,
        captions: Iterable[str],
        encode_captions: Callable[[list[str], Tensor], Conditioning],
        *,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> Filled:
        """Make sure that all of these can be got.

        Args:
            encode_captions: the family's; every caption must give as many tokens' states as any other.
        """
        captions = list(dict.fromkeys(captions))
        missing = [caption for caption in captions if self._store.read(self._key(caption)) is None]
        repaired = sum(self._store.has_file(self._key(caption)) for caption in missing)
        for at in range(0, len(missing), batch_size):
            texts = missing[at : at + batch_size]
            with torch.no_grad():  # sizes belong to the use, not to the caption: zeros stand in
                conditioning = encode_captions(texts, torch.zeros(len(texts), 6))
            for row, caption in enumerate(texts):
                tensors = {"states": conditioning.states[row]}
                if conditioning.pooled is not None:
                    tensors["pooled"] = conditioning.pooled[row]
                tensors = {name: tensor.to("cpu", torch.float16).clone() for name, tensor in tensors.items()}
                if not all(tensor.isfinite().all() for tensor in tensors.values()):
                    raise UserError(
                        say(
                            f'the text encoder gives NaN or infinity for "{caption}". Set mixed_precision = "no"',
                            f'文本编码器对“{caption}”给出 NaN 或无穷大。请设 mixed_precision = "no"',
                        )
                    )
                self._store.write(self._key(caption), tensors)
            if progress:
                progress(at + len(texts), len(missing))
        return Filled(len(missing), len(captions) - len(missing), repaired)

    def get(self, captions: list[str], sizes: Tensor) -> Conditioning:
        """(B) captions, as `fill` was given them, and their uses' (B, 6) sizes -> float32 conditioning."""
        rows = [self._store.read(self._key(caption)) for caption in captions]
        lost = [caption for caption, row in zip(captions, rows, strict=True) if row is None]
        if lost:
            raise UserError(
                say(
                    f'the cached caption "{lost[0]}" vanished or was damaged during the run. Start again',
                    f"标签“{lost[0]}”的缓存在训练途中消失或损坏，请重新开始",
                )
            )
        states = torch.stack([row["states"] for row in rows]).float()
        if "pooled" not in rows[0]:
            return Conditioning(states)
        return Conditioning(states, torch.stack([row["pooled"] for row in rows]).float(), sizes)

    def _key(self, caption: str) -> str:
        return _key("caption", caption, self._text_fingerprint)
