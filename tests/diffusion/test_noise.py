"""Noise, noisy latents and targets against closed forms, and what must hold for every objective."""

import pytest
import torch

from library.contracts import NoiseSpec
from library.diffusion.noise import Process, draw_noise
from library.diffusion.objectives import OBJECTIVES

T = torch.tensor([0, 10, 100, 200, 500, 800, 999])
ALPHA_BAR = torch.tensor([0.99915, 0.99043131, 0.89422348, 0.75369205, 0.27633268, 0.036869617, 0.0046600985])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(batch=7):
    return torch.randn(batch, 4, 6, 10, generator=generator(1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_perfect_prediction_denoises_exactly(objective):
    """From noisy and target alone the latents must come back: that is what the objective means."""
    process = Process(NoiseSpec(objective=objective))
    noisy, target = process.corrupt(latents(), draw_noise(latents(), generator()), T)
    torch.testing.assert_close(process.recover(noisy, target, T), latents(), rtol=1e-4, atol=1e-4)


def test_v_denoises_from_pure_noise():
    process = Process(NoiseSpec(objective="v", zero_terminal_snr=True))
    t = torch.full((7,), 999)
    noise = draw_noise(latents(), generator())
    noisy, target = process.corrupt(latents(), noise, t)
    torch.testing.assert_close(noisy, noise)
    torch.testing.assert_close(process.recover(noisy, target, t), latents())


def test_targets_are_those_of_the_papers():
    x, noise = latents(), draw_noise(latents(), generator())
    a, s = ALPHA_BAR.sqrt()[:, None, None, None], (1 - ALPHA_BAR).sqrt()[:, None, None, None]
    noisy, target = Process(NoiseSpec()).corrupt(x, noise, T)
    torch.testing.assert_close(target, noise)
    torch.testing.assert_close(noisy, a * x + s * noise)
    torch.testing.assert_close(Process(NoiseSpec(objective="v")).corrupt(x, noise, T)[1], a * noise - s * x)
    noisy, target = Process(NoiseSpec(objective="flow")).corrupt(x, noise, torch.full((7,), 250.0))
    torch.testing.assert_close(target, noise - x)
    torch.testing.assert_close(noisy, 0.75 * x + 0.25 * noise)


def test_half_precision_latents_are_corrupted_in_float32():
    noisy, target = Process(NoiseSpec()).corrupt(latents().half(), draw_noise(latents(), generator()), T)
    assert noisy.dtype == target.dtype == torch.float32


def test_same_seed_same_bits_and_no_other_stream_is_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    process = Process(NoiseSpec())
    settings = dict(
        noise_offset=0.1, noise_offset_random_strength=True, multires_noise_iterations=6, multires_noise_discount=0.9
    )
    assert torch.equal(draw_noise(latents(), generator(3), **settings), draw_noise(latents(), generator(3), **settings))
    assert not torch.equal(draw_noise(latents(), generator(3)), draw_noise(latents(), generator(4)))
    assert torch.equal(
        process.draw_timesteps(latents().shape, generator(3)), process.draw_timesteps(latents().shape, generator(3))
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_offset_shifts_whole_channels():
    x = torch.zeros(64, 4, 8, 8)
    shift = draw_noise(x, generator(), 0.5) - draw_noise(x, generator())
    torch.testing.assert_close(shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift), atol=1e-5, rtol=0)
    assert shift[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.15)


def test_random_strength_is_between_zero_and_the_offset():
    x = torch.zeros(64, 4, 8, 8)
    strengths = [
        (draw_noise(x, generator(seed), 0.5, noise_offset_random_strength=True) - draw_noise(x, generator(seed)))
        .mean(dim=(2, 3))
        .std()
        for seed in range(8)
    ]
    assert max(strengths) < 0.6
    assert min(strengths) < 0.25


def test_adaptive_offset_grows_with_brightness():
    dark, bright = torch.zeros(64, 4, 8, 8), torch.full((64, 4, 8, 8), 2.0)
    plain = draw_noise(dark, generator())
    assert torch.equal(draw_noise(dark, generator(), adaptive_noise_scale=0.5), plain)
    shift = (draw_noise(bright, generator(), adaptive_noise_scale=0.5) - plain).mean(dim=(2, 3))
    assert shift.std() == pytest.approx(1.0, rel=0.15)
    clamped = draw_noise(bright, generator(), 0.1, adaptive_noise_scale=-0.5)  # 0.1 - 1 < 0: no offset
    torch.testing.assert_close(clamped, plain)


def test_multires_noise_is_smoother_and_of_unit_deviation():
    x = torch.zeros(16, 4, 32, 32)
    plain, multires = (
        draw_noise(x, generator()),
        draw_noise(x, generator(), multires_noise_iterations=6, multires_noise_discount=0.9),
    )
    assert multires.std() == pytest.approx(1, abs=1e-5)

    def neighbours(noise):
        return torch.stack([(noise[..., 1:] * noise[..., :-1]).mean(), (noise[..., 1:, :] * noise[..., :-1, :]).mean()])

    assert (neighbours(multires) > neighbours(plain) + 0.05).all()  # in both directions


def test_more_noise_is_seen_but_not_asked_for():
    process, t = Process(NoiseSpec()), torch.tensor([10, 900])
    latents, noise, more = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(n)) for n in range(3))
    noisy, target = process.corrupt(latents, noise, t, 0.1 * more)
    plain, same = process.corrupt(latents, noise + 0.1 * more, t)
    torch.testing.assert_close(noisy, plain)
    assert torch.equal(target, noise)
    assert not torch.equal(same, target)


def test_of_several_noises_the_nearest_is_taken():
    latents = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(9)) * 2
    drawn = draw_noise(latents, torch.Generator().manual_seed(1), candidates=6)
    generator = torch.Generator().manual_seed(1)
    candidates = torch.stack([torch.randn(3, 4, 5, 5, generator=generator) for _ in range(6)])
    nearest = (candidates - latents).square().sum((2, 3, 4)).argmin(0)  # (3,)
    assert torch.equal(drawn, candidates[nearest, torch.arange(3)])
    assert len(set(nearest.tolist())) > 1
