"""Buckets are sd-scripts' own: its lists, its choices, its record for SDXL."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.data.buckets import BucketRule, bucket_sizes, crop_at_random, fit, resolve_resolution, size_record
from library.messages import UserError
from library.options.training import Config


def names(sizes):
    return " ".join(f"{width}x{height}" for width, height in sizes)


def test_list_of_the_usual_512_rule():
    sizes = bucket_sizes(BucketRule(512, 512, 256, 1024, 64))
    tall = "256x832 256x896 256x960 256x1024 320x704 320x768 384x640 448x576"
    assert names(size for size in sizes if size[0] < size[1]) == tall
    assert set(sizes) == {(height, width) for width, height in sizes}
    assert (512, 512) in sizes
    assert len(sizes) == 17


@pytest.mark.parametrize(
    ("rule", "count", "contained"),
    [
        ((512, 512, 320, 960, 64), 9, "320x704 320x768 384x640 448x576 512x512"),
        ((768, 768, 256, 1024, 64), 19, "768x768"),
        ((512, 768, 256, 1024, 64), 19, "576x576"),
        ((1024, 1024, 256, 1024, 64), 25, "256x1024 960x1024"),
        ((1024, 1024, 256, 2048, 64), 41, "704x1408 768x1344 832x1216 896x1152 960x1088 1024x1024"),
        ((1024, 1024, 256, 2048, 32), 81, "1024x1024"),
        ((512, 512, 256, 1024, 8), 129, "512x512"),
    ],
)
def test_lists_of_sd_scripts(rule, count, contained):
    sizes = bucket_sizes(BucketRule(*rule))
    assert len(sizes) == count
    assert set(contained.split()) <= set(names(sizes).split())


AT_512 = BucketRule(512, 512, 256, 1024, 64)
AT_1024 = BucketRule(1024, 1024, 256, 2048, 64)


@pytest.mark.parametrize(
    ("size", "rule", "usual", "no_upscale"),
    [
        ((1000, 1500), AT_512, ((384, 640), (427, 640)), ((384, 576), (384, 576))),
        ((1920, 1080), AT_512, ((640, 384), (683, 384)), ((640, 384), (683, 384))),
        ((300, 400), AT_512, ((448, 576), (448, 597)), ((256, 384), (300, 400))),
        ((4000, 1000), AT_512, ((1024, 256), (1024, 256)), ((1024, 256), (1024, 256))),
        ((800, 600), AT_512, ((576, 448), (597, 448)), ((512, 384), (512, 384))),
        ((511, 513), AT_512, ((512, 512), (512, 514)), ((448, 512), (511, 513))),
        ((1000, 1500), AT_1024, ((832, 1216), (832, 1248)), ((832, 1216), (832, 1248))),
        ((1920, 1080), AT_1024, ((1344, 768), (1365, 768)), ((1344, 768), (1365, 768))),
        ((3000, 2000), AT_1024, ((1216, 832), (1248, 832)), ((1216, 832), (1248, 832))),
    ],
)
def test_the_nine_images_of_sd_scripts(size, rule, usual, no_upscale):
    assert fit(size, rule)[:2] == usual
    without_enlarging = BucketRule(rule.width, rule.height, rule.minimum, rule.maximum, rule.step, True, True)
    assert fit(size, without_enlarging)[:2] == no_upscale


def test_crop_is_centred_and_floors_the_half():
    assert fit((1000, 1500), AT_512).crop == (21, 0)  # (427 - 384) // 2


SIDES = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@given(
    st.tuples(SIDES, SIDES),
    st.sampled_from([(64, 64, 32, 128, 16), (512, 512, 256, 1024, 64), (512, 768, 256, 1536, 32)]),
    st.booleans(),
    st.booleans(),
    st.integers(),
)
def test_every_image_lands_in_a_legal_bucket_that_it_covers(size, numbers, enable_bucket, no_upscale, seed):
    rule = BucketRule(*numbers, enable_bucket, no_upscale)
    one = fit(size, rule)
    assert all(side > 0 and side % rule.step == 0 for side in one.bucket)
    if not enable_bucket:
        assert one.bucket == (rule.width, rule.height)
    elif not no_upscale:
        assert one.bucket in bucket_sizes(rule)
    else:
        area = one.resized[0] * one.resized[1]
        assert min(size) < rule.step or area <= max(rule.area * 1.5, size[0] * rule.step * 2, size[1] * rule.step * 2)
    for crop in (one.crop, crop_at_random(one, random.Random(seed)).crop):
        for offset, side, resized in zip(crop, one.bucket, one.resized, strict=True):
            assert 0 <= offset <= resized - side


@given(st.tuples(SIDES, SIDES))
def test_without_enlarging_only_slivers_grow(size):
    one = fit(size, BucketRule(512, 512, 256, 1024, 64, True, True))
    if min(size) >= 64 and size[0] / size[1] < 8 > size[1] / size[0]:
        assert one.resized[0] <= size[0] + 0.5
        assert one.resized[1] <= size[1] + 0.5


def test_record_for_sdxl_keeps_left_and_top_of_sd_scripts():
    assert size_record((1000, 1500), fit((1000, 1500), AT_1024)) == (1500, 1000, 0, 10, 1216, 832)
    assert size_record((1920, 1080), fit((1920, 1080), AT_1024)) == (1080, 1920, 6, 0, 768, 1344)


@pytest.mark.parametrize(
    ("options", "model_resolution", "size_step", "expected"),
    [
        ({}, 512, 64, (512, 512, 256, 1024, 64)),
        ({}, 768, 64, (768, 768, 384, 1536, 64)),
        ({}, 1024, 32, (1024, 1024, 512, 2048, 64)),
        ({}, 64, 16, (64, 64, 32, 128, 16)),
        ({"resolution": 512}, 1024, 32, (512, 512, 256, 1024, 64)),
        ({"resolution": "512,768"}, 512, 64, (512, 768, 256, 1536, 64)),
        ({"resolution": "512"}, 1024, 32, (512, 512, 256, 1024, 64)),
        ({"min_bucket_reso": 330, "max_bucket_reso": 900}, 512, 64, (512, 512, 320, 960, 64)),
        ({"bucket_reso_steps": 32}, 1024, 32, (1024, 1024, 512, 2048, 32)),
    ],
)
def test_options_become_numbers(options, model_resolution, size_step, expected):
    rule = resolve_resolution(Config(**options), model_resolution, size_step)
    assert (rule.width, rule.height, rule.minimum, rule.maximum, rule.step) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resolution": "large"}, "resolution = 'large' cannot be understood"),
        ({"resolution": "0,512"}, "cannot be understood"),
        ({"bucket_reso_steps": 16}, "in multiples of 64. Use 64"),
        ({"min_bucket_reso": 640}, "min_bucket_reso = 640 is above the resolution's side of 512"),
        ({"max_bucket_reso": 256}, "max_bucket_reso = 256 is below"),
        ({"resolution": 500, "enable_bucket": False}, '"512,512", or enable_bucket = True'),
    ],
)
def test_contradictions_are_told_with_their_cure(options, told):
    with pytest.raises(UserError) as error:
        resolve_resolution(Config(**options), 512, 64)
    assert told in str(error.value)
