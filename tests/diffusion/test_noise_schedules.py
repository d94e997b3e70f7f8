"""Noise schedules against golden values, and the limits of the timesteps that are drawn."""

import pytest
import torch

from library.contracts import NoiseSpec
from library.diffusion.noise_schedules import DiscreteSchedule, FlowSchedule

T = torch.tensor([0, 10, 100, 200, 500, 800, 999])
ALPHA_BAR = torch.tensor([0.99915, 0.99043131, 0.89422348, 0.75369205, 0.27633268, 0.036869617, 0.0046600985])
SNR = torch.tensor([1175.47, 103.508, 8.45389, 3.05996, 0.38185, 0.038281, 0.00468192])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shape(count, rows=8, columns=8):
    return torch.Size((count, 4, rows, columns))


def test_the_tables_are_those_of_stable_diffusion():
    schedule = DiscreteSchedule(NoiseSpec())
    torch.testing.assert_close(schedule.signal(T) ** 2, ALPHA_BAR, rtol=2e-6, atol=0)
    torch.testing.assert_close(schedule.snr(T), SNR, rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.signal(T) ** 2 + schedule.sigma(T) ** 2, torch.ones(7))


def test_zero_terminal_snr_leaves_nothing_of_the_image_and_keeps_the_first_step():
    schedule = DiscreteSchedule(NoiseSpec(objective="v", zero_terminal_snr=True))
    t = torch.tensor([0, 500, 998, 999])
    golden = torch.tensor([0.99915, 0.24101878, 1.9678881e-07, 0.0])
    torch.testing.assert_close(schedule.signal(t) ** 2, golden, rtol=5e-4, atol=1e-12)
    assert schedule.signal(t)[-1] == 0
    assert schedule.sigma(t)[-1] == 1
    torch.testing.assert_close(schedule.snr(T), SNR, rtol=1e-5, atol=0)  # weights of the loss stay finite


def test_timesteps_stay_within_their_limits_and_reach_them():
    schedule = DiscreteSchedule(NoiseSpec())
    t = schedule.draw_timesteps(shape(4000), generator(), 990, 1000)
    assert sorted(set(t.tolist())) == list(range(990, 1000))
    assert schedule.draw_timesteps(shape(20000), generator()).unique().numel() == 1000
    flow = FlowSchedule(NoiseSpec(objective="flow")).draw_timesteps(shape(20000), generator(), 200, 800)
    assert flow.min() > 200
    assert flow.max() <= 800
    assert flow.unique().numel() > 10000


def test_a_line_is_crossed_at_even_speed():
    schedule, t = FlowSchedule(NoiseSpec(objective="flow")), torch.tensor([250.0, 1000.0])
    assert schedule.signal(t).tolist() == [0.75, 0.0]
    assert schedule.sigma(t).tolist() == [0.25, 1.0]
    assert schedule.snr(t).tolist() == [9.0, 0.0]


def test_of_a_line_whole_batches_are_drawn_as_before_there_were_laws():
    drawn = FlowSchedule(NoiseSpec(objective="flow")).draw_timesteps(shape(5), generator(2), 100, 900)
    assert torch.equal(drawn, 100 + 800 * (1 - torch.rand(5, generator=generator(2))))


@pytest.mark.parametrize(("patch_size", "rows"), [(2, 128), (1, 64)])
def test_larger_images_are_trained_nearer_to_noise_counted_in_tokens(patch_size, rows):
    """1024 pixels are 4096 tokens, whether the VAE makes squares of 8 or of 16 pixels."""
    schedule = FlowSchedule(NoiseSpec(objective="flow", timestep_law="flux_shift", patch_size=patch_size))
    large = schedule.draw_timesteps(shape(3, rows, rows), generator()) / 1000
    plain = torch.randn(3, generator=generator()).sigmoid()
    torch.testing.assert_close(large, 3.158193 * plain / (1 + 2.158193 * plain))
