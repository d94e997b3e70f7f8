"""Attention: the memory-lean fallback against torch's mathematics, what it keeps, and which one is chosen."""

import weakref

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from library.families.sd import TINY_UNET
from library.hardware import attention
from library.hardware.attention import MIB, choose, chunked, install
from library.messages import set_language

CPU = torch.device("cpu")


def packed(batch=2, heads=3, queries=33, keys=None, width=8, dtype=torch.float32, seed=0, size=1.0):
    """q, k, v as a model has them: strided views of its projections, as leaves; keys=None: of one projection."""
    generator = torch.Generator().manual_seed(seed)

    def project(tokens, count):
        values = size * torch.randn(batch, tokens, count * heads * width, generator=generator)
        views = values.to(dtype).unflatten(-1, (count, heads, width)).permute(2, 0, 3, 1, 4)
        return [view.detach().requires_grad_() for view in views]

    return project(queries, 3) if keys is None else project(queries, 1) + project(keys, 2)


def mathematics(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v)


def results(function, tensors, seed=1):
    """Output and gradients, in fp32."""
    output = function(*tensors)
    outer = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.dtype)
    return [x.float() for x in (output, *torch.autograd.grad(output, tensors, outer))]


def error(found, expected):
    """The largest of the four errors, each relative to the largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


ROW = 33 * 4  # bytes of a row of logits of `packed`'s 33 keys


@pytest.mark.parametrize("chunk_bytes", [1, ROW, 10 * ROW, 32 * ROW, 33 * ROW, 2 * 33 * ROW, 64 * MIB])
def test_chunks_of_any_size_give_what_torch_gives(chunk_bytes):
    """One row (also where not even that fits), parts of a head that do not divide it, one head, two of three, all."""
    tensors = packed()
    assert error(results(lambda *x: chunked(*x, chunk_bytes), tensors), results(mathematics, tensors)) < 1e-5


@pytest.mark.parametrize("width", [40, 64, 160])
@pytest.mark.parametrize("chunk_bytes", [4096, 64 * MIB])
def test_keys_of_a_caption(width, chunk_bytes):
    tensors = packed(queries=65, keys=77, width=width)
    assert error(results(lambda *x: chunked(*x, chunk_bytes), tensors), results(mathematics, tensors)) < 1e-5


@pytest.mark.parametrize("chunk_bytes", [3 * 5 * 8, 64 * MIB])
def test_gradients_are_the_derivatives(chunk_bytes):
    tensors = packed(heads=2, queries=7, keys=5, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: chunked(*x, chunk_bytes), tensors)


def half_error(dtype, chunk_bytes, change=lambda q, k, v: (q, k, v), **shape):
    """Error of the half-precision way against fp64 on the same (rounded) numbers."""
    halves = [x.detach().requires_grad_() for x in change(*packed(dtype=dtype, **shape))]
    doubles = [x.detach().double().requires_grad_() for x in halves]
    return error(results(lambda *x: chunked(*x, chunk_bytes), halves), results(mathematics, doubles))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("chunk_bytes", [2 * 129 * 4, 64 * MIB])
def test_half_precision_is_near_the_exact_result(dtype, bound, chunk_bytes):
    assert half_error(dtype, chunk_bytes, queries=129, width=40) < bound


def test_many_chunks_round_the_gradients_of_the_keys_only_once():
    """bf16 has 8 bits: a running sum of 512 chunks in bf16 would stop growing."""
    tensors = packed(batch=1, heads=1, queries=512, keys=4, dtype=torch.bfloat16)
    outer = torch.ones(1, 1, 512, 8, dtype=torch.bfloat16)
    one_row, whole = (torch.autograd.grad(chunked(*tensors, size), tensors[2], outer)[0] for size in (8, MIB))
    torch.testing.assert_close(one_row, whole, rtol=8e-3, atol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_what_all_keys_have_in_common_does_not_spoil_half_precision(dtype, bound):
    """It adds up to about a hundred to all logits of a query; softmax ignores that, rounding does not."""

    def shift(q, k, v):
        return q, k + 40, v

    assert half_error(dtype, 64 * MIB, shift, queries=65, width=40) < bound


@pytest.mark.parametrize("chunk_bytes", [2 * 33 * 4, 64 * MIB])
def test_logits_beyond_fp16_do_not_overflow(chunk_bytes):
    """300 * 300 * sqrt(40) times a normal number: far above 65504."""
    q, k, v = packed(dtype=torch.float16, width=40, size=300.0)
    v = (v / 300).detach().requires_grad_()
    found = results(lambda *x: chunked(*x, chunk_bytes), (q, k, v))
    exact = results(mathematics, [x.detach().double().requires_grad_() for x in (q, k, v)])
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found[0], exact[0], rtol=1e-3, atol=1e-3)  # one key has all the attention


@pytest.mark.parametrize("chunk_bytes", [2 * 33 * 4, 64 * MIB])
def test_queries_that_were_made_shorter_get_their_own_gradients(monkeypatch, chunk_bytes):
    """With a limit that ordinary logits exceed, so that the gradients are not zero."""
    monkeypatch.setattr(attention, "LARGEST_LOGIT", 1.0)
    halves = packed(dtype=torch.float16)
    doubles = [x.detach().double().requires_grad_() for x in halves]

    def shortened(q, k, v):
        longest = (k - k.mean(-2, keepdim=True)).norm(dim=-1).amax(-1)[..., None, None]
        return mathematics(q / (q.norm(dim=-1, keepdim=True) * longest / 8**0.5).clamp(min=1).detach(), k, v)

    assert error(results(lambda *x: chunked(*x, chunk_bytes), halves), results(shortened, doubles)) < 5e-3


def test_only_the_gradients_that_are_wanted_are_worked_out():
    for wanted in range(1, 8):
        tensors = [x.detach().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(packed())]
        leaves = [x for x in tensors if x.requires_grad]
        with Trace() as trace:
            found = torch.autograd.grad(chunked(*tensors, 10 * ROW).sin().sum(), leaves)
        assert error(found, torch.autograd.grad(mathematics(*tensors).sin().sum(), leaves)) < 1e-5
        needs_logits = bool(wanted & 0b011)  # those of q and k go through the logits' gradient
        assert ("_softmax_backward_data" in trace.names) == needs_logits


@pytest.mark.parametrize("chunk_bytes", [10 * ROW, MIB])
def test_output_and_gradients_merge_their_heads_without_a_copy(chunk_bytes):
    tensors = packed()
    output = chunked(*tensors, chunk_bytes)
    for x in (output, *torch.autograd.grad(output.sum(), tensors)):
        assert x.transpose(1, 2).reshape(2, 33, 24).data_ptr() == x.data_ptr()


def test_nothing_but_q_k_v_is_kept():
    tensors = packed(queries=65, keys=77)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        chunked(*tensors, 4096)
    assert sum(kept) == sum(x.nbytes for x in tensors)


def test_it_can_be_checkpointed():
    tensors = packed()

    def layer(q, k, v):
        return chunked(q.sin(), k, v, 10 * ROW).cos()

    again = results(lambda *x: checkpoint(layer, *x, use_reentrant=False), tensors)
    assert error(again, results(layer, tensors)) == 0


@pytest.mark.parametrize("is_tried_within", [False, True])
def test_the_first_attention_may_be_a_checkpointed_one(is_tried_within):
    """Trying for a fused kernel needs a backward pass of its own, and is not repeated when the layer is."""
    tensors, attend = packed(width=56), choose("cpu", torch.float32)
    attention.is_fused.cache_clear()
    if not is_tried_within:
        attend.runs(torch.float32, 56)
    again = results(lambda *x: checkpoint(attend, *x, use_reentrant=False), tensors)
    assert error(again, results(attend, tensors)) == 0


class Trace(TorchDispatchMode):
    """Names of the operators; bytes of the largest tensor that they made, and of all such tensors at once."""

    def __init__(self):
        super().__init__()
        self.names, self.alive, self.largest, self.most = [], {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        if function.is_view:
            return found
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
                self.largest = max(self.largest, storage.nbytes())
                self.most = max(self.most, sum(self.alive.values()))
        return found


WORK = {"baddbmm", "baddbmm_", "bmm", "_softmax", "_softmax_backward_data", "add_"}


@pytest.mark.parametrize(("dtype", "backward"), [(torch.float32, 7), (torch.float16, 8)])
def test_kernels_per_chunk(dtype, backward):
    """4 chunks: one head, whose queries are split in four."""
    tensors = packed(batch=1, heads=1, queries=64, dtype=dtype)
    chunk_bytes = 16 * 64 * dtype.itemsize
    with Trace() as forward_trace:
        output = chunked(*tensors, chunk_bytes)
    with Trace() as backward_trace:
        torch.autograd.grad(output, tensors, torch.ones_like(output))
    assert sum(name in WORK for name in forward_trace.names) == 4 * 3
    assert sum(name in WORK for name in backward_trace.names) == 4 * backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_vae_at_1024_pixels_never_holds_the_whole_matrix(dtype):
    """16384 tokens, whose matrix of 2**28 numbers is 1 GiB in fp32; one tensor of the layer is 32 MiB."""
    tensors = [torch.empty(1, 1, 16384, 512, dtype=dtype, device="meta", requires_grad=True) for _ in range(3)]
    layer, chunk_bytes = tensors[0].nbytes, 16 * MIB
    with Trace() as trace:
        output = chunked(*tensors, chunk_bytes)
    assert trace.largest == layer
    others = 1 if dtype == torch.float32 else 3  # the output; in half precision q and k in another form
    assert trace.most < 2 * chunk_bytes + others * layer + MIB
    with Trace() as trace:
        torch.autograd.grad(output, tensors, torch.empty_like(output))
    others = 4 if dtype == torch.float32 else 4 + 2 + 2 + 4  # 4 gradients; q and k; two parts and their sums in fp32
    assert trace.largest <= 4 * layer
    assert trace.most < 3 * chunk_bytes + others * layer + MIB


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses(monkeypatch):
    """refuses(lambda width: ...): this torch has no fused kernel for heads of such a width. Returns those it tried."""
    fused, tried = attention.scaled_dot_product_attention, []

    def refuse(rule):
        def pretended(q, k, v):
            tried.append(q.shape[-1])
            if rule(q.shape[-1]):
                raise RuntimeError("No available kernel. Aborting execution.")
            return fused(q, k, v)

        monkeypatch.setattr(attention, "scaled_dot_product_attention", pretended)
        return tried

    attention.is_fused.cache_clear()
    yield refuse
    attention.is_fused.cache_clear()


def kernel(attend, width, **options):
    """Name of what computed the output."""
    return type(attend(*packed(width=width, **options)).grad_fn).__name__


def test_the_cpu_has_a_fused_kernel_for_all_widths_and_number_formats():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        attend = choose("cpu", dtype)
        assert attend.kind == "sdpa"
        for width in (40, 64, 80, 160, 512):
            assert "Flash" in kernel(attend, width, dtype=dtype)


def test_widths_that_the_fused_kernels_refuse_go_to_chunks_and_are_tried_once(refuses):
    tried = refuses(lambda width: width > 256)
    attend = choose("cpu", torch.float32)
    assert attend.kind == "sdpa"
    assert "Flash" in kernel(attend, 160)
    assert "Chunked" in kernel(attend, 512)
    before = len(tried)
    assert "Chunked" in kernel(attend, 512)
    assert len(tried) == before


def test_another_number_format_is_tried_of_its_own(monkeypatch):
    """SDXL's VAE computes in fp32 beside a U-Net in fp16."""
    monkeypatch.setattr(attention, "is_fused", lambda device, dtype, width: dtype == torch.float16)
    attend = choose("cpu", torch.float16)
    assert "Flash" in kernel(attend, 64, dtype=torch.float16)
    assert "Chunked" in kernel(attend, 64, dtype=torch.float32)


def test_without_a_fused_kernel_it_is_chunks_of_the_size_that_was_timed(refuses, monkeypatch):
    refuses(lambda width: True)
    monkeypatch.setattr(attention, "fastest_chunk", lambda device, dtype: 8 * MIB)
    attend = choose("cpu", torch.float16)
    assert (attend.kind, attend.chunk_bytes) == ("chunked", 8 * MIB)
    assert "chunks of 8 MiB" in attend.description
    assert "no fused kernel for float16" in attend.description
    assert choose("cpu", torch.float16, chunk_bytes=5 * MIB).chunk_bytes == 5 * MIB


def test_the_user_is_obeyed(refuses):
    assert "Chunked" in kernel(choose("cpu", torch.float32, "chunked", 4 * MIB), 40)
    refuses(lambda width: True)
    asked = choose("cpu", torch.float32, "sdpa")
    assert (asked.kind, asked.runs(torch.float32, 40)) == ("sdpa", "sdpa")
    assert "as asked" in asked.description


def test_the_description_is_in_the_language_of_the_user():
    attend = choose("cpu", torch.float32, "chunked", 4 * MIB)
    assert attend.description == "attention in chunks of 4 MiB (as asked)"
    set_language("zh")
    assert attend.description == "注意力分块计算，每块 4 MiB（按设置）"


@pytest.mark.parametrize(
    ("millions", "expected"),
    [
        ({8: 5, 16: 4, 32: 3, 64: 3.5, 128: 4}, 32),
        ({8: 5, 16: 5, 32: 4.9, 64: 4.9, 128: 4.9}, 8),  # a larger one must be clearly faster
        ({8: 500, 16: 400, 32: 300, 64: 200, 128: 100}, 32),  # too slow to compare
    ],
)
def test_the_chunk_that_is_clearly_fastest_is_taken(monkeypatch, millions, expected):
    clock = [0.0]

    def pretended(q, k, v, chunk_bytes):
        clock[0] += millions[chunk_bytes // MIB] / 1000
        return (q + k + v).sum()

    monkeypatch.setattr(attention, "chunked", pretended)
    monkeypatch.setattr(attention.time, "perf_counter", lambda: clock[0])
    state = torch.get_rng_state()
    assert attention.fastest_chunk.__wrapped__(CPU, torch.float32) == expected * MIB
    assert clock[0] < 1.5
    assert torch.equal(state, torch.get_rng_state())


def test_a_plan_on_the_meta_device_keeps_what_the_device_would_keep():
    """torch itself traces plain mathematics there, with all of the matrix."""
    q, k, v = (x.detach().to("meta").requires_grad_() for x in packed(queries=65))
    matrix = 2 * 3 * 65 * 65 * 4
    attention.is_fused.cache_clear()  # trying it now must not be counted
    for attend, extra in ((choose("cpu", torch.float32), q.nbytes), (choose("cpu", torch.float32, "chunked", MIB), 0)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):  # noqa: B023
            output = attend(q, k, v)
        assert output.shape == q.shape
        assert 0 <= sum(kept) - 3 * q.nbytes - extra < matrix / 30


# ---------------------------------------------------------------------------------------------------------------------

TINY_VAE = dict(
    block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip


def gradients(model, *inputs):
    output = model(*inputs).sample
    return [output, *torch.autograd.grad(output.square().mean(), [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("kind", ["sdpa", "chunked"])
def test_a_vae_computes_what_it_did(kind):
    torch.manual_seed(0)
    vae, pixels = AutoencoderKL(**TINY_VAE).double(), torch.randn(2, 3, 18, 22, dtype=torch.float64)
    before = gradients(vae, pixels)
    install(vae, choose("cpu", torch.float64, kind, 1000))
    assert {type(processor).__name__ for processor in vae.attn_processors.values()} == {"Processor"}
    torch.testing.assert_close(gradients(vae, pixels), before, rtol=1e-9, atol=1e-12)


def test_a_unet_computes_what_it_did():
    """Attention to captions, on tokens instead of images, with several heads."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(TINY_UNET)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 77, 16)
    before = gradients(unet, *inputs)
    install(unet, choose("cpu", torch.float32, "chunked", 5000))
    torch.testing.assert_close(gradients(unet, *inputs), before, rtol=1e-3, atol=1e-6)


def test_an_attention_of_another_kind_is_refused():
    vae = AutoencoderKL(**TINY_VAE)
    vae.encoder.mid_block.attentions[0].norm_q = torch.nn.LayerNorm(64)
    with pytest.raises(AssertionError, match="does not have"):
        install(vae, choose("cpu", torch.float32))


@pytest.mark.parametrize(("rescale", "residual"), [(1.0, True), (2.0, False)])
def test_the_result_is_scaled_and_added_as_the_module_says(rescale, residual):
    torch.manual_seed(0)
    vae, pixels = AutoencoderKL(**TINY_VAE), torch.randn(1, 3, 16, 16)
    module = vae.encoder.mid_block.attentions[0]
    module.rescale_output_factor, module.residual_connection = rescale, residual
    before = gradients(vae, pixels)
    install(vae, choose("cpu", torch.float32, "chunked", MIB))
    torch.testing.assert_close(gradients(vae, pixels), before, rtol=1e-3, atol=1e-5)
