"""What is encoded once before training: images by the VAE, and captions where they can be known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from library.contracts import Family
from library.messages import log, say
from library.options.derived import trains_text_encoder
from library.training.run import Run

if TYPE_CHECKING:
    from library.data.cache import Filled, LatentCache, TextCache

Cache = TypeVar("Cache")


def fill_caches(run: Run, family: Family) -> tuple[LatentCache | None, TextCache | None]:
    """Encode what is wanted and not there yet; None for what is not cached. The first process works for all."""
    is_shared = run.cache_folder is not None
    if is_shared and not run.processes.is_first:
        run.processes.wait()  # the first fills them
    latents = fill_latents(run, family) if run.settings.cache_latents else None
    texts = fill_texts(run, family)
    if is_shared and run.processes.is_first:
        run.processes.wait()
    return latents, texts


def fill_latents(run: Run, family: Family) -> LatentCache:
    """The images' latents; in float32 where half precision overflows, one by one where memory is short."""
    import torch

    from library.data import cache, dataset

    settings, plan = run.settings, run.plan
    vae = family.modules()["vae"].to(run.device.torch_device)

    def fill(batch_size: int) -> LatentCache:
        latents = cache.LatentCache(run.cache_folder, cache.fingerprint(vae))
        filled = latents.fill(
            dataset.latents_wanted(plan, settings),
            family.encode_images,
            apart=dataset.latents_measured(plan),
            batch_size=batch_size,
            thread_count=settings.max_data_loader_n_workers,
        )
        log.info(_latents_filled(filled))
        return latents

    def fill_with_room() -> LatentCache:
        reason = say("not enough memory: encoding images one by one", "显存不足，改为逐张编码")
        return _with_room(run, fill, settings.vae_batch_size or plan.batch_size, reason)

    try:
        return fill_with_room()
    except cache.BadLatents as error:
        if next(vae.parameters()).dtype == torch.float32:
            raise
        run.note(say(f"{error}: trying in float32", f"{error}；改用 float32 再试"))
    vae.float()
    return fill_with_room()


def fill_texts(run: Run, family: Family) -> TextCache | None:
    """The captions' conditioning; None where it is trained, not wanted, or chance makes too many captions."""
    from library.data import cache, dataset

    settings, plan, modules = run.settings, run.plan, family.modules()
    captions = dataset.captions_wanted(plan, settings)
    if captions is None or not settings.cache_text_encoder_outputs or trains_text_encoder(settings):
        return None
    encoders = [modules[name].to(run.device.torch_device) for name in modules if name.startswith("text_encoder")]
    decides = [
        cache.CAPTION_FORMAT,
        settings.clip_skip,
        settings.max_token_length,
        *["weighted"] * settings.weighted_captions,
    ]
    fingerprint = cache.fingerprint(*encoders, settings=decides)

    def fill(batch_size: int) -> TextCache:
        texts = cache.TextCache(run.cache_folder, fingerprint, family.facts.text_embeddings)
        apart = dataset.captions_measured(plan)
        filled = texts.fill(captions, family.encode_captions, apart=apart, batch_size=batch_size)
        log.info(_captions_filled(filled))
        return texts

    reason = say("not enough memory: encoding captions one by one", "显存不足，改为逐条编码标注")
    return _with_room(run, fill, plan.batch_size, reason)


def _with_room(run: Run, fill: Callable[[int], Cache], batch_size: int, reason: str) -> Cache:
    """What `fill` gives for batches of this size, or for single ones where memory is short; then that is said."""
    from library.hardware import memory

    try:
        return fill(batch_size)
    except RuntimeError as error:
        if batch_size == 1 or not memory.is_full(error):
            raise
    run.note(reason)
    return fill(1)


# ---- What is said ----


def _latents_filled(filled: Filled) -> str:
    return say(
        f"latents: {filled.made} images encoded, {filled.reused} from the cache",
        f"图片编码：新编码 {filled.made} 张，取自缓存 {filled.reused} 张",
    )


def _captions_filled(filled: Filled) -> str:
    return say(
        f"captions: {filled.made} encoded, {filled.reused} from the cache",
        f"标注编码：新编码 {filled.made} 条，取自缓存 {filled.reused} 条",
    )
