"""Which attention runs where, and the memory-lean fallback.

torch's `scaled_dot_product_attention` (SDPA) has fused kernels for most devices; these never hold the T x S matrix of
probabilities. Where it has none (AMD's RDNA 1 and 2, some widths of heads) it does plain mathematics in fp32 and keeps
that matrix for the backward pass: SDXL at 1024 pixels would then keep 20 GB in all. `chunked` takes its place there: it
makes a part of the matrix at a time, in the model's own number format, and makes it again in the backward pass.

Letters: B batch, H heads, T queries, S keys, d width of a head. No masks and no dropout: Stable Diffusion has neither.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from library.messages import say

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention as AttentionModule

aten = torch.ops.aten

AutogradContext = Any  # whatever a function sets on it
KINDS = ("auto", "sdpa", "chunked")
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
MIB = 2**20
CHUNKS = tuple(size * MIB for size in (8, 16, 32, 64, 128))
USUAL_CHUNK = 32 * MIB
USUAL_WIDTH = 64  # of a head: SD 2.x and SDXL
LARGEST_LOGIT = 60000.0  # in fp16, whose largest number is 65504


@dataclass(frozen=True)
class Attention:
    """Attention as it runs on one device: (B, H, T, d), (B, H, S, d), (B, H, S, d) -> (B, H, T, d)."""

    asked: str  # one of KINDS
    device: torch.device
    dtype: torch.dtype  # of the model
    chunk_bytes: int  # see `chunked`

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.runs(q.dtype, q.shape[-1]) == "chunked":
            return chunked(q, k, v, self.chunk_bytes)
        if q.is_meta and is_fused(self.device, q.dtype, q.shape[-1]):  # where torch traces plain mathematics
            return aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return scaled_dot_product_attention(q, k, v)

    def runs(self, dtype: torch.dtype, width: int) -> str:
        """What computes heads of this width: "sdpa" or "chunked"."""
        if self.asked != "auto":
            return self.asked
        return "sdpa" if is_fused(self.device, dtype, width) else "chunked"

    @property
    def kind(self) -> str:
        """What computes most of the model: "sdpa" or "chunked"."""
        return self.runs(self.dtype, USUAL_WIDTH)

    @property
    def description(self) -> str:
        """One line for the person: what runs and why."""
        numbers, size = str(self.dtype).removeprefix("torch."), f"{self.chunk_bytes / MIB:g} MiB"
        if self.kind == "sdpa":
            what = say("attention by torch", "注意力由 torch 计算")
            why = say(f"it has a fused kernel for {numbers} here", f"它在此设备上有 {numbers} 的融合内核")
        else:
            what = say(f"attention in chunks of {size}", f"注意力分块计算，每块 {size}")
            why = say(f"torch has no fused kernel for {numbers} here", f"torch 在此设备上没有 {numbers} 的融合内核")
        if self.asked != "auto":
            why = say("as asked", "按设置")
        return say(f"{what} ({why})", f"{what}（{why}）")


def choose(
    device: torch.device | str, dtype: torch.dtype, kind: str = "auto", chunk_bytes: int | None = None
) -> Attention:
    """Find out how attention runs best on a device; the first time that may take about a second.

    Args:
        dtype: of the model. Other number formats work too, and are tried when they first occur.
        kind: "auto" takes SDPA for every width of heads that it has a fused kernel for, `chunked` for the others;
            "sdpa" and "chunked" are taken in any case.
        chunk_bytes: of `chunked`; None: the fastest, timed on the device if `chunked` computes most of the model.
    """
    assert kind in KINDS, kind
    attention = Attention(kind, torch.device(device), dtype, chunk_bytes or USUAL_CHUNK)
    if chunk_bytes is None and attention.kind == "chunked":
        return Attention(kind, attention.device, dtype, fastest_chunk(attention.device, dtype))
    return attention


@lru_cache
def is_fused(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether SDPA has a fused kernel, gradients included, for heads of this width. Tried once, with a tiny attention.

    On the CPU it has one for all widths in fp16, bf16, fp32 and fp64 (torch 2.13). On Apple's MPS it cannot be asked;
    profiles of torch there show plain mathematics wherever gradients are wanted.
    """
    if device.type == "mps":
        return False
    packed = torch.ones(1, 16, 3, 2, width, device=device, dtype=dtype, requires_grad=True)  # as a model has them
    # The first call may come from within a checkpoint or a memory plan, whose hooks must not see this attention.
    own_hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with warnings.catch_warnings(), torch.enable_grad(), own_hooks, sdpa_kernel(FUSED):
        warnings.simplefilter("ignore")  # torch explains at length why it refuses
        try:
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            scaled_dot_product_attention(q, k, v).sum().backward()
        except RuntimeError:  # "No available kernel"
            return False
    return True


@lru_cache
def fastest_chunk(device: torch.device, dtype: torch.dtype) -> int:
    """The best of CHUNKS for a device, in bytes, within about a second: the one that suits its cache.

    8 heads of 2048 tokens and width 40, forward and backward. A larger chunk must be 5 % faster than a smaller one.
    Where a single run takes so long that comparing would not end in time (a CPU), it is USUAL_CHUNK.
    """
    # not random: the run's random numbers must not depend on whether this was called
    ramp = torch.linspace(-1, 1, 3 * 8 * 2048 * 40, device=device).to(dtype).view(3, 1, 8, 2048, 40)
    q, k, v = (part.clone().requires_grad_() for part in ramp)

    def seconds(chunk_bytes: int) -> float:
        start = time.perf_counter()
        with torch.enable_grad():
            chunked(q, k, v, chunk_bytes).sum().backward()
        assert q.grad is not None
        q.grad[0, 0, 0, 0].item()  # wait for the device
        return time.perf_counter() - start

    start = time.perf_counter()
    seconds(USUAL_CHUNK)  # the device loads its kernels
    if seconds(USUAL_CHUNK) > 0.1:
        return USUAL_CHUNK
    start = time.perf_counter()
    best = dict.fromkeys(CHUNKS, math.inf)
    for round_ in range(4):
        for chunk_bytes in CHUNKS:
            taken = seconds(chunk_bytes)
            if round_ > 0:  # the first of each loads the kernels of its own shapes
                best[chunk_bytes] = min(best[chunk_bytes], taken)
        if round_ > 0 and time.perf_counter() - start > 0.7:
            break
    fastest = CHUNKS[0]
    for chunk_bytes in CHUNKS:
        if best[chunk_bytes] < 0.95 * best[fastest]:
            fastest = chunk_bytes
    return fastest


def chunked(q: Tensor, k: Tensor, v: Tensor, chunk_bytes: int) -> Tensor:
    """softmax(q kᵀ / √d) v without ever holding the T x S matrix; the backward pass works parts of it out again.

    Args:
        q: (B, H, T, d), of any strides.
        k, v: (B, H, S, d), in the same dtype and on the same device.
        chunk_bytes: size of the largest part of the T x S matrices of one sample, at least one row of it. Forward two
            such parts live at a time, backward three.

    Returns:
        (B, H, T, d), laid out so that `.transpose(1, 2).reshape(B, T, H * d)` copies nothing; so are the gradients.

    Only q, k and v are kept for the backward pass. In fp16 and bf16 logits and probabilities are rounded to the dtype,
    which a fused kernel does not do with logits; `_center` keeps that error, and fp16's overflow, away.
    """
    return Chunked.apply(q, k, v, chunk_bytes)


class Chunked(torch.autograd.Function):
    """See `chunked`. Kernels per chunk: 3 forward, 7 backward (8 where gradients are summed in fp32)."""

    @staticmethod
    def forward(ctx: AutogradContext, q: Tensor, k: Tensor, v: Tensor, chunk_bytes: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.chunk_bytes = chunk_bytes
        output = _empty_like(q)
        q, k, _ = _center(q, k)
        for sample, heads, parts in _chunks(q, k, chunk_bytes):
            for rows in parts:
                queries, keys, values = q[sample, heads, rows], k[sample, heads], v[sample, heads]
                torch.bmm(_probabilities(queries, keys), values, out=output[sample, heads, rows])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        q, k, v = ctx.saved_tensors
        wants_q, wants_k, wants_v, _ = ctx.needs_input_grad
        scale = q.shape[-1] ** -0.5
        dq = _empty_like(q) if wants_q else None
        dk = _empty_like(k) if wants_k else None
        dv = _empty_like(v) if wants_v else None
        q, k, damping = _center(q, k)
        for sample, heads, parts in _chunks(q, k, ctx.chunk_bytes):
            keys, values = k[sample, heads], v[sample, heads]
            # Each chunk of queries adds to the gradients of all keys. In half precision a running sum would be rounded
            # once per chunk, so it is kept in fp32; where a head is not split there is no sum.
            is_summed = len(parts) > 1 and q.dtype in (torch.float16, torch.bfloat16)
            part = total = None
            to_k, to_v = (None if x is None else x[sample, heads] for x in (dk, dv))
            if is_summed:
                part = torch.zeros(2, *keys.shape[1:], dtype=k.dtype, device=k.device)
                total = torch.zeros_like(part, dtype=torch.float32)
                to_k, to_v = (part[:1] if wants_k else None), (part[1:] if wants_v else None)
            for index, rows in enumerate(parts):
                queries, outer = q[sample, heads, rows], gradient[sample, heads, rows]
                beta = int(index > 0 and not is_summed)  # 0: what is there is ignored
                share = _probabilities(queries, keys)
                if to_v is not None:
                    to_v.baddbmm_(share.mT, outer, beta=beta)
                d_logits = None
                if dq is not None or to_k is not None:
                    d_logits = aten._softmax_backward_data(torch.bmm(outer, values.mT), share, -1, share.dtype)
                    if dq is not None:
                        dq[sample, heads, rows].baddbmm_(d_logits, keys, beta=0, alpha=scale)
                    if to_k is not None:
                        to_k.baddbmm_(d_logits.mT, queries, beta=beta, alpha=scale)
                if part is not None and total is not None:
                    total += part
                del share, d_logits  # or they would live on while the next ones are made
            if total is not None and dk is not None:
                dk[sample, heads] = total[:1]
            if total is not None and dv is not None:
                dv[sample, heads] = total[1:]
        if dq is not None and damping is not None:
            dq /= damping
        return dq, dk, dv, None


def _empty_like(x: Tensor) -> Tensor:
    """(B, H, T, d) that lies in memory as (B, T, H, d)."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _probabilities(queries: Tensor, keys: Tensor) -> Tensor:
    """(h, t, d), (h, S, d) -> (h, t, S)."""
    nothing = queries.new_empty(1, 1, 1)
    logits = torch.baddbmm(nothing, queries, keys.mT, beta=0, alpha=queries.shape[-1] ** -0.5)
    return logits.softmax(-1)  # fp32 inside


def _center(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """In half precision: q and k with the same probabilities from smaller logits, and what q was divided by.

    The mean of the keys adds one number to all logits of a query, which softmax ignores; without it less is lost when
    they are rounded, and the gradients of q and k stay the same (Zhang et al. 2024, SageAttention, arXiv:2410.02367).
    fp16 would still overflow at 65504: where |q| |k| / √d, which no logit exceeds, is too much, q is made shorter. fp16
    numbers of that size are 32 apart, so one key has all the attention anyway.
    """
    if q.dtype not in (torch.float16, torch.bfloat16):
        return q, k, None
    k = k - k.mean(-2, keepdim=True)
    if q.dtype == torch.bfloat16:
        return q, k, None
    longest = torch.linalg.vector_norm(k, dim=-1, keepdim=True, dtype=torch.float32).amax(-2, keepdim=True)
    longest *= q.shape[-1] ** -0.5 / LARGEST_LOGIT
    damping = torch.linalg.vector_norm(q, dim=-1, keepdim=True, dtype=torch.float32).mul_(longest).clamp_(min=1)
    damping = damping.to(q.dtype)
    return q / damping, k, damping


def _chunks(q: Tensor, k: Tensor, chunk_bytes: int) -> Iterator[tuple[int, slice, list[slice]]]:
    """Sample, heads, and parts of the queries, so that one part's logits fit into a chunk; of about equal size."""
    batch, heads, tokens, _ = q.shape
    rows = chunk_bytes // (k.shape[2] * k.element_size())  # of logits, in one chunk
    heads_at_once, parts = (rows // tokens, [slice(0, tokens)]) if rows >= tokens else (1, _slices(tokens, rows))
    for sample in range(batch):
        for some in _slices(heads, heads_at_once):
            yield sample, some, parts


def _slices(count: int, most: int) -> list[slice]:
    """0..count in as few parts of at most `most` as possible, none much smaller than the others."""
    number = math.ceil(count / max(1, most))
    return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


# ---------------------------------------------------------------------------------------------------------------------


class Processor:
    """Computes an attention module of diffusers with an Attention: what its AttnProcessor2_0 does, without masks."""

    def __init__(self, attention: Attention):
        self.attention = attention

    def __call__(
        self,
        module: AttentionModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) or (B, C, h, w), and (B, S, D) or None: attention to itself -> the shape of the first."""
        assert attention_mask is None
        tokens = hidden_states.flatten(2).transpose(1, 2) if hidden_states.dim() == 4 else hidden_states
        if module.group_norm is not None:
            tokens = module.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        assert module.to_k is not None
        assert module.to_v is not None
        assert module.to_out is not None
        projected = module.to_q(tokens), module.to_k(context), module.to_v(context)
        q, k, v = (x.unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in projected)
        tokens = self.attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in module.to_out:
            tokens = layer(tokens)
        if hidden_states.dim() == 4:
            tokens = tokens.transpose(1, 2).reshape(hidden_states.shape)
        if module.residual_connection:
            tokens = tokens + hidden_states
        return tokens / module.rescale_output_factor


def install(model: nn.Module, attention: Attention) -> None:
    """Compute all attentions of a diffusers model, such as a VAE, with an Attention."""
    for module in model.modules():
        if hasattr(module, "rescale_output_factor") and hasattr(module, "to_q"):
            unknown = (module.spatial_norm, module.norm_q, module.norm_k, module.norm_cross, module.added_kv_proj_dim)
            assert not any(unknown), "an attention that Stable Diffusion does not have"
    model.set_attn_processor(Processor(attention))  # pyrefly: ignore[not-callable]  # each model has its own
