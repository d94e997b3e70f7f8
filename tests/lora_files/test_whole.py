"""LoHa, LoKr and DoRA files: the update that LyCORIS' and OneTrainer's formulas give, of every form they write."""

import pytest
import torch

from library.contracts import Target
from library.lora_files import merging
from library.lora_files.factors import read_factors
from library.messages import UserError

M, N, R = 6, 8, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def read(parts, layer="lora_unet_x"):
    (update,) = read_factors("my.safetensors", {f"{layer}.{name}": tensor for name, tensor in parts.items()}).values()
    return update


def tucker(t, a, b):
    return torch.einsum("ijkl,jn,im->mnkl", t, b, a)


LOHA = {
    "hada_w1_a": draw(M, R),
    "hada_w1_b": draw(R, N),
    "hada_w2_a": draw(M, R, seed=1),
    "hada_w2_b": draw(R, N, seed=1),
}
LOHA_CONV = LOHA | {"hada_w1_b": draw(R, N * 9), "hada_w2_b": draw(R, N * 9, seed=1)}
LOHA_TUCKER = {
    "hada_w1_a": draw(R, M), "hada_w1_b": draw(R, N), "hada_w2_a": draw(R, M, seed=1), "hada_w2_b": draw(R, N, seed=1),
    "hada_t1": draw(R, R, 3, 3), "hada_t2": draw(R, R, 3, 3, seed=1),
}  # fmt: skip
W1, W2 = draw(2, 2), draw(3, 4)
FORMS = {
    "loha": (LOHA, lambda: (LOHA["hada_w1_a"] @ LOHA["hada_w1_b"]) * (LOHA["hada_w2_a"] @ LOHA["hada_w2_b"]) / 2),
    "loha conv": (
        LOHA_CONV,
        lambda: ((LOHA_CONV["hada_w1_a"] @ LOHA_CONV["hada_w1_b"])
                 * (LOHA_CONV["hada_w2_a"] @ LOHA_CONV["hada_w2_b"]) / 2).view(M, N, 3, 3),
    ),
    "loha tucker": (
        LOHA_TUCKER,
        lambda: tucker(*(LOHA_TUCKER[f"hada_{x}"] for x in ("t1", "w1_a", "w1_b")))
        * tucker(*(LOHA_TUCKER[f"hada_{x}"] for x in ("t2", "w2_a", "w2_b"))) / 2,
    ),
    "lokr": ({"lokr_w1": W1, "lokr_w2": W2}, lambda: torch.kron(W1, W2)),  # whole: alpha says nothing
    "lokr product": (
        {"lokr_w1": W1, "lokr_w2_a": draw(3, R), "lokr_w2_b": draw(R, 4)},
        lambda: torch.kron(W1, draw(3, R) @ draw(R, 4)) / 2,
    ),
    "lokr both": (
        {"lokr_w1_a": draw(2, R), "lokr_w1_b": draw(R, 2), "lokr_w2_a": draw(3, R), "lokr_w2_b": draw(R, 4)},
        lambda: torch.kron(draw(2, R) @ draw(R, 2), draw(3, R) @ draw(R, 4)) / 2,
    ),
    "lokr conv": (
        {"lokr_w1": W1, "lokr_w2": draw(3, 4, 3, 3)},
        lambda: torch.kron(W1[:, :, None, None], draw(3, 4, 3, 3)),
    ),
    "lokr tucker": (
        {"lokr_w1": W1, "lokr_t2": draw(R, R, 3, 3), "lokr_w2_a": draw(R, 3), "lokr_w2_b": draw(R, 4)},
        lambda: torch.kron(W1[:, :, None, None], tucker(draw(R, R, 3, 3), draw(R, 3), draw(R, 4)).contiguous()) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_is_added_is_what_the_formula_gives(form):
    """In a weight of either shape, and as the exact product of thin matrices."""
    parts, formula = FORMS[form]
    expected = formula()
    update = read(parts | {"alpha": torch.tensor(1.0)})
    kernel = (3, 3) if expected.dim() == 4 else ()
    for shape in [(M, N, *kernel)] + ([(M, N, 1, 1)] if not kernel else []):
        fitting = update.shaped(shape)
        torch.testing.assert_close(fitting.update("cpu"), expected)
        assert fitting.whole_shape() == shape
    down, up = fitting.thin()
    torch.testing.assert_close(up @ down * fitting.scale, expected.flatten(1), rtol=1e-4, atol=1e-5)
    assert len(down) <= M
    torch.testing.assert_close(fitting.rows(1, 3).update("cpu"), expected[1:4])
    assert update.shaped((M + 1, N, *kernel)) is None
    assert update.shaped((M, N + 1, *kernel)) is None


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
@pytest.mark.parametrize("side", ["inputs", "outputs", "peft"])
def test_a_dora_turns_and_scales_the_weight(kernel, side):
    """(W + D) * magnitude / norm(W + D) for each input, or for each output as in peft and LyCORIS' wd_on_output."""
    weight, down, up = draw(M, N, *kernel), draw(R, N, *kernel), draw(M, R, *[1] * len(kernel))
    changed = weight + (up.flatten(1) @ down.flatten(1)).view(weight.shape) / 2
    over = [n for n in range(weight.dim()) if n != (1 if side == "inputs" else 0)]
    norm = changed.square().sum(over, keepdim=True).sqrt()
    magnitude = 1 + draw(*norm.shape).abs()
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    parts |= {"lora_magnitude_vector": magnitude.flatten()} if side == "peft" else {"dora_scale": magnitude}
    update = read(parts)
    assert update.needs_weight
    expected = changed * magnitude / norm - weight
    torch.testing.assert_close(update.update("cpu", weight), expected.reshape(update.shape()))
    down, up = update.thin(weight=weight)
    torch.testing.assert_close(up @ down, expected.flatten(1), rtol=1e-4, atol=1e-5)
    layer = torch.nn.Conv2d(N, M, kernel) if kernel else torch.nn.Linear(N, M)
    layer.weight.data.copy_(weight)
    fitting = merging.fit("x", {"x": update}, [Target(layer, "x", "denoiser")])
    with merging.Merging([Target(layer, "x", "denoiser")]) as model:
        model.apply([merging.Strength(fitting, 0, 0.5), merging.Strength(fitting, 0, 0.5)])
        torch.testing.assert_close(layer.weight.data, weight + expected)  # by the base model's weight, both times


@pytest.mark.parametrize(("kind", "shape"), [("loha", (M, N)), ("loha conv", (M, N, 3, 3)), ("lokr product", (M, N))])
def test_a_dora_may_be_of_any_kind_and_its_norms_are_of_the_whole(kind, shape):
    parts, formula = FORMS[kind]
    weight = draw(*shape)
    changed = weight + formula().view(shape)
    norm = changed.square().sum([n for n in range(weight.dim()) if n != 1], keepdim=True).sqrt()
    update = read(parts | {"alpha": torch.tensor(1.0), "dora_scale": 2 * norm}).shaped(shape)
    torch.testing.assert_close(update.update("cpu", weight), 2 * changed - weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "broken",
    [
        {"hada_w1_a": draw(M, R)},
        LOHA | {"hada_w2_a": draw(M, R + 1)},
        LOHA | {"hada_w2_b": draw(R, N) * torch.nan},
        {"lokr_w1": W1},
        {"lokr_w1": W1, "lokr_w2_a": draw(3, R), "lokr_w2_b": draw(R + 1, 4)},
        {"dora_scale": draw(1, N)},
        {"lora_down.weight": draw(R, N), "lora_up.weight": draw(M, R), "dora_scale": draw(1, N - 1)},
        LOHA | {"alpha": torch.ones(2)},
    ],
)
def test_a_damaged_file_is_told(broken):
    with pytest.raises(UserError, match="lora_unet_x lack a part, have an impossible shape or contain NaN"):
        read(broken)


def test_embeddings_beside_the_layers_are_no_layers():
    tensors = {f"lora_unet_x.{name}": tensor for name, tensor in LOHA.items()}
    bundled = {"bundle_emb.sks.string_to_param.*": draw(2, 5), "bundle_emb.sks.clip_g": draw(2, 5)}
    assert list(read_factors("x", tensors | bundled)) == ["lora_unet_x"]
    with pytest.raises(UserError, match="is empty"):
        read_factors("x", bundled)
