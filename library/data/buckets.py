"""Buckets: every image trains near its own shape, in the bucket of the closest aspect ratio and about the same area.

The lists and choices are sd-scripts' own, so a set gives the same buckets in both. To add a way of choosing: add a
function beside `_nearest_bucket` and `_without_enlarging`, and a field of `BucketRule` that selects it.
"""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt, sqrt
from pathlib import Path
from typing import NamedTuple

from library.contracts import Fit
from library.messages import UserError, say
from library.options.training import Config


@dataclass(frozen=True)
class BucketRule:
    """Everything that decides the bucket of an image. All in pixels."""

    width: int
    height: int
    minimum: int  # shortest and longest side of a bucket
    maximum: int
    step: int  # sides of buckets are multiples of it
    enable_bucket: bool = True  # False: all images are width x height
    bucket_no_upscale: bool = False

    @property
    def area(self) -> int:
        return self.width * self.height


def resolve_resolution(config: Config, model_resolution: int, size_step: int) -> BucketRule:
    """The options about sizes as numbers.

    Args:
        model_resolution: what the base model was trained at; what "auto" means.
        size_step: the base model's sizes are multiples of it (`Family.size_step`).

    Raises:
        UserError: the options contradict one another or the base model; all problems at once.
    """
    width, height = _parse_resolution(config.resolution, model_resolution)
    shorter, longer = min(width, height), max(width, height)
    step = config.bucket_reso_steps
    if step is None:  # 64, or finer where the resolution itself is small: the miniature's 64 pixels give 16
        step = max(size_step, min(64, shorter // 4 // size_step * size_step))
    problems = []
    if step % size_step:
        cure = max(size_step, round(step / size_step) * size_step)
        problems.append(
            say(
                f"bucket_reso_steps = {step}: this base model takes sizes in multiples of {size_step}. Use {cure}.",
                f"bucket_reso_steps = {step}：此底模的尺寸必须是 {size_step} 的倍数。请改为 {cure}。",
            )
        )
    if not config.enable_bucket and (width % size_step or height % size_step):
        cure = ",".join(str(max(size_step, round(side / size_step) * size_step)) for side in (width, height))
        problems.append(
            say(
                f'resolution = {width},{height}: without buckets it must be a multiple of {size_step}. Use "{cure}", '
                "or enable_bucket = True.",
                f'resolution = {width},{height}：不分桶时必须是 {size_step} 的倍数。请改为 "{cure}"，'
                "或设 enable_bucket = True。",
            )
        )
    minimum = shorter // 2 if config.min_bucket_reso is None else config.min_bucket_reso
    maximum = longer * 2 if config.max_bucket_reso is None else config.max_bucket_reso
    minimum = max(step, minimum // step * step)  # down
    maximum = -(-maximum // step) * step  # up
    if config.enable_bucket and not config.bucket_no_upscale:
        if minimum > shorter:
            problems.append(
                say(
                    f"min_bucket_reso = {minimum} is above the resolution's side of {shorter}. Lower it, or use None.",
                    f"min_bucket_reso = {minimum} 大于分辨率的短边 {shorter}。请调低，或设为 None。",
                )
            )
        if maximum < longer:
            problems.append(
                say(
                    f"max_bucket_reso = {maximum} is below the resolution's side of {longer}. Raise it, or use None.",
                    f"max_bucket_reso = {maximum} 小于分辨率的长边 {longer}。请调高，或设为 None。",
                )
            )
    if problems:
        raise UserError(problems)
    return BucketRule(width, height, minimum, maximum, step, config.enable_bucket, config.bucket_no_upscale)


def _parse_resolution(resolution: int | str, model_resolution: int) -> tuple[int, int]:
    if resolution == "auto":
        return model_resolution, model_resolution
    numbers = re.fullmatch(r"\s*(\d+)\s*(?:[,，x×]\s*(\d+)\s*)?", str(resolution))
    if not numbers or 0 in (sides := [int(side) for side in numbers.groups() if side]):
        raise UserError(
            say(
                f'resolution = {resolution!r} cannot be understood. Write 512, "512,768" (width,height) or "auto".',
                f'resolution = {resolution!r} 无法识别。请写 512、"512,768"（宽,高）或 "auto"。',
            )
        )
    return sides[0], sides[-1]


@lru_cache(maxsize=8)
def bucket_sizes(rule: BucketRule) -> tuple[tuple[int, int], ...]:
    """Every (width, height) of about the resolution's area between the limits, sorted."""
    step = rule.step
    square = max(step, isqrt(rule.area) // step * step)
    sizes = {(square, square)}
    for width in range(rule.minimum, rule.maximum + 1, step):
        height = min(rule.maximum, rule.area // width // step * step)
        if height >= rule.minimum:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def fit(size: tuple[int, int], rule: BucketRule) -> Fit:
    """How an image of this (width, height) is brought to its bucket: resized to cover it, then cropped evenly."""
    if not rule.enable_bucket:
        bucket, resized = (rule.width, rule.height), _cover(size, (rule.width, rule.height))
    elif rule.bucket_no_upscale:
        bucket, resized = _without_enlarging(size, rule)
    else:
        bucket = _nearest_bucket(size, rule)
        resized = _cover(size, bucket)
    return Fit(bucket, resized, ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))


def fewer_buckets(sizes: Collection[tuple[int, int]], rule: BucketRule, limit: int) -> BucketRule:
    """The rule with its step doubled until images of these sizes use at most `limit` buckets, or it is too coarse."""
    while len({fit(size, rule).bucket for size in sizes}) > limit and rule.step <= rule.width // 8:
        rule = replace(rule, step=rule.step * 2)
    return rule


def crop_at_random(fit: Fit, rng: random.Random) -> Fit:
    """The same resizing with another part of the image cut off."""
    left, top = (rng.randint(0, resized - side) for resized, side in zip(fit.resized, fit.bucket, strict=True))
    return fit._replace(crop=(left, top))


class Face(NamedTuple):
    """Where a face is in its image, in pixels."""

    x: int  # of its centre
    y: int
    width: int
    height: int


def face_in_name(path: Path) -> Face | None:
    """The face that the name of an image tells of, `name_x_y_width_height.png`, as face detectors write; else None."""
    fields = path.stem.split("_")[-4:]
    if len(path.stem.split("_")) < 5 or not all(field.isdecimal() for field in fields):
        return None
    face = Face(*map(int, fields))
    return face if face.width and face.height else None


def face_range(text: str) -> tuple[float, float]:
    """`face_crop_aug_range` as numbers: how many times as long as the face the bucket's shorter side may be."""
    fewest, most = map(float, text.split(","))
    return fewest, most


def crop_around(
    face: Face, size: tuple[int, int], fit: Fit, faces: tuple[float, float], rng: random.Random, anywhere: bool = False
) -> Fit:
    """The image at a random scale, cut to its bucket around a face.

    Args:
        size: of the image.
        faces: see `face_range`. The image is never enlarged for it, nor made smaller than its bucket.
        anywhere: away from the face, too, the farther the rarer (`random_crop`); else close to it.

    Source: sd-scripts' face_crop_aug_range, which has no effect with buckets; here the bucket takes the place of the
    resolution.
    """
    length, side = max(face.width, face.height), min(fit.bucket)
    covering = max(bucket / whole for bucket, whole in zip(fit.bucket, size, strict=True))
    lowest, highest = (max(covering, min(1.0, side / (length * times))) for times in reversed(faces))
    scale = rng.uniform(lowest, highest)
    width, height = (max(bucket, int(whole * scale + 0.5)) for bucket, whole in zip(fit.bucket, size, strict=True))
    resized = (width, height)
    crop = []
    for bucket, whole, at in zip(fit.bucket, resized, (face.x, face.y), strict=True):
        at = int(at * scale + 0.5)
        begin = at - bucket // 2
        if anywhere:
            reach = max(whole - at, at)
            begin += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif faces[0] != faces[1] and length >= 40 and length > side // 10:
            begin += rng.randint(-length // 20, length // 20)
        crop.append(max(0, min(begin, whole - bucket)))
    return fit._replace(resized=resized, crop=(crop[0], crop[1]))


def pixels_of(resolution: int | str) -> int:
    """The area that a resolution stands for, 512 or "512,768"."""
    width, height = _parse_resolution(resolution, 0)
    return width * height


def _nearest_bucket(size: tuple[int, int], rule: BucketRule) -> tuple[int, int]:
    sizes = bucket_sizes(rule)
    if size in sizes:
        return size
    aspect = size[0] / size[1]
    return min(sizes, key=lambda bucket: abs(bucket[0] / bucket[1] - aspect))  # the first of equals


def _cover(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    (width, height), (bucket_width, bucket_height) = size, bucket
    wider = width / height > bucket_width / bucket_height
    scale = bucket_height / height if wider else bucket_width / width
    return int(width * scale + 0.5), int(height * scale + 0.5)


def _without_enlarging(size: tuple[int, int], rule: BucketRule) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bucket and resized size with `bucket_no_upscale`: the list and its limits do not count, only area and step."""
    (width, height), step = size, rule.step

    def to_step(side: float) -> int:
        return max(step, int(side + 0.5) // step * step)

    resized = size
    if width * height > rule.area:  # shrink to the area, so that one side is a multiple of the step
        aspect = width / height
        wide = to_step(sqrt(rule.area * aspect))
        high = to_step(sqrt(rule.area / aspect))
        error_by_width = abs(wide / to_step(wide / aspect) - aspect)
        error_by_height = abs(to_step(high * aspect) / high - aspect)
        by_width = error_by_width < error_by_height
        resized = (wide, int(wide / aspect + 0.5)) if by_width else (int(high * aspect + 0.5), high)
    bucket = (to_step(resized[0] - 0.5), to_step(resized[1] - 0.5))
    if resized[0] < bucket[0] or resized[1] < bucket[1]:  # below one step; sd-scripts makes an empty bucket and fails
        resized = _cover(size, bucket)
    return bucket, resized


def size_record(size: tuple[int, int], fit: Fit) -> tuple[float, float, float, float, float, float]:
    """SDXL's micro-conditioning: original height, width, crop top, left, target height, width.

    Top and left are sd-scripts' own, which describe a letterboxed image rather than the cut one. LoRAs of its users
    were trained with them, so they are kept.
    """
    (width, height), (bucket_width, bucket_height) = size, fit.bucket
    aspect = width / height
    if bucket_width / bucket_height > aspect:
        shown_width, shown_height = bucket_height * aspect, bucket_height
    else:
        shown_width, shown_height = bucket_width, bucket_width / aspect
    left, top = (bucket_width - shown_width) // 2, (bucket_height - shown_height) // 2
    return height, width, top, left, bucket_height, bucket_width
