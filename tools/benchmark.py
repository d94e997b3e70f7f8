"""The project's yardstick: what a step of LoRA training takes, on true-size U-Nets with random weights.

Three tables:
    counted   operators, bytes and arithmetic of a step, forward and backward, on torch's meta device: nothing is
              computed, so all sizes are done within minutes on any machine, and two machines agree
    measured  seconds per step and peak memory of the cases named below, each program in a process of its own, turn by
              turn; on a CPU in CPU seconds of all threads, which other programs disturb less than the clock
    start     from the command to the first step, SD 1.5 of true size and 12 images, by the lines that are printed

The programs:
    floor             the frozen U-Net alone, as diffusers computes it: forward, and backward to its input. No LoRA step
                      that differentiates the U-Net can be faster, unless the U-Net itself is computed faster
    diffusers + peft  what a plain script does: `unet.add_adapter(LoraConfig(...))`, autocast, AdamW, clipping
    ours              this project's step
    - technique       ours without one of its techniques
    + technique       ours with one that costs time and saves memory

Latents and text are random and ready: no VAE and no text encoder is measured. On a machine with a GPU set `gpu = True`:
then GPU_CASES are measured and nothing else, which ends within 8 minutes, whatever it has come to.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# ---- What to measure | 测什么 ----
counts = True  # the counted table, 3 minutes | 统计表（3 分钟）
measures = True  # the measured table | 实测表
starts = True  # the start | 启动时间
gpu = False  # on an NVIDIA or AMD card: measure GPU_CASES, nothing else, 8 minutes | 有显卡时：只测 GPU_CASES（8 分钟）
cases = [("sd1", 256, 1, 32), ("sd1", 256, 1, 128)]  # model, picture side, batch, rank | 模型、边长、批次、秩
mixed_precision = "no"  # "no", "fp16", "bf16" | 精度
thread_count = 1  # CPU threads; None: as torch chooses | CPU 线程数
step_count = 3  # measured steps of each turn, after one to warm up | 每轮计时的步数（另有一步预热）
turn_count = 2  # how often the programs take turns; the fastest step counts | 轮换次数，取最快的一步

# ---- Do not edit below | 请勿修改下方内容 ----
GPU_CASES = [(name, side, batch, rank) for rank in (32, 128) for name, side in (("sd1", 512), ("sdxl", 1024))
             for batch in (1, 4)]  # fmt: skip
GPU_STEPS = 10
GPU_SECONDS = 360  # of measuring; counting for the table takes a minute more
COUNTED = [("sd1", 256), ("sd1", 512), ("sd1", 768), ("sdxl", 512), ("sdxl", 1024)]
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
FLOOR, PEFT, OURS = "floor", "diffusers + peft", "ours"
TECHNIQUES = {  # name -> what differs
    "- fused functions": dict(is_fused=False),
    "- own forward pass": dict(own_forward=False),
    "- recompute": dict(keeps_all=True),
    "- flat memory": dict(is_flat=False),
    "- fused attention": dict(attention="chunked"),
    "+ all blocks twice": dict(recomputed=True),
    "+ int8 base": dict(int8=True),
}
PROGRAMS = (FLOOR, PEFT, OURS, *TECHNIQUES)
MIB = 2**20


def main() -> None:
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
    if gpu:
        measure_gpu()
        return
    if counts:
        count_all()
    if measures:
        measure_cpu()
    if starts:
        measure_start()


def machine() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {thread_count or 'all'} threads"
    return f"torch {torch.__version__}, {name}"


def row(*cells: object) -> None:
    first, *rest = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {first:28} | " + " | ".join(f"{cell:>9}" for cell in rest) + " |", flush=True)


def head(*cells: str) -> None:
    print()
    row(*cells)
    print(f"|{'-' * 30}|" + "|".join(["-" * 10 + ":"] * (len(cells) - 1)) + "|")


# ---- Counted ----


def count_all() -> None:
    """Every size at three ranks, and each technique at rank 32; fp16."""
    import torch

    head("counted, fp16", "batch", "rank", "operators", "kept MiB", "largest", "GFLOP")
    for name, side in COUNTED:
        wanted = [(1, 32, FLOOR)]
        wanted += [(batch, rank, program) for program in (PEFT, OURS) for batch, rank in ((1, 8), (1, 32), (1, 128))]
        wanted += [(4, 32, program) for program in (PEFT, OURS)]
        wanted += [(1, 32, program) for program in TECHNIQUES if (name, side) in (("sd1", 512), ("sdxl", 1024))]
        for batch, rank, program in wanted:
            cost = count(program, (name, side, batch, rank), torch.float16)
            row(f"{name} {side} {program}", batch, "" if program == FLOOR else rank, *numbers(cost))


@cache
def count(program: str, case: tuple, dtype):
    """`memory.Cost` of forward and backward. peft's weights are in the model's dtype here, without autocast."""
    import torch

    from library.hardware import attention, memory

    for width in (40, 64, 80, 160):  # tried once, on tensors that are not to be counted
        attention.is_fused(torch.device("cpu"), dtype, width)
    loss, _ = build(program, case, "meta", dtype)
    return memory.trace(loss)


def numbers(cost) -> list[str]:
    sizes = [f"{size / MIB:,.0f}" for size in (cost.kept, cost.largest)]
    return [f"{cost.operators:,}", *sizes, f"{cost.flops / 1e9:,.0f}"]


# ---- One program ----


def build(program: str, case: tuple, device: str, dtype):
    """A program's two halves: `loss(counted)`, the forward pass, and `update(scaler)`, what follows the backward pass.

    Args:
        device: "meta": for counting.
    """
    import torch

    from library import adapters, families
    from library.adapters import linear_ops, recompute
    from library.contracts import Execution
    from library.families.unet.forward import block_names
    from library.hardware import attention, memory
    from library.hardware.blocks import Blocks
    from library.optim import optimizers

    name, side, batch, rank = case
    changes = TECHNIQUES.get(program, {})
    model = families.architecture(name)  # without memory; only the U-Net gets some
    unet = model.unet.to(dtype).requires_grad_(False)
    if device == "meta":  # torch would trace plain mathematics in place of a fused attention
        attend = attention.Attention("sdpa", torch.device("cpu"), dtype, attention.USUAL_CHUNK)
        attention.install(unet, attend)
    else:
        give_weights(unet.to_empty(device=device))
        attend = attention.choose(device, dtype)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    noisy, noise = random(batch, 4, side // 8, side // 8), random(batch, 4, side // 8, side // 8)
    t = torch.full((batch,), 500, device=device)
    sizes = torch.full((batch, 6), float(side), device=device)
    conditioning = dict(states=random(batch, 77, unet.config.cross_attention_dim), pooled=random(batch, 1280))
    conditioning |= model.size_conditioning(sizes)

    parameters, optimizer, context = [], None, nullcontext()
    attached, blocks = None, Blocks()
    if program == FLOOR:
        noisy.requires_grad_(True)
    elif program == PEFT:
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_TARGETS))
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype if device == "meta" else torch.float32)
        if device != "meta":
            optimizer = torch.optim.AdamW(parameters, lr=1e-4)
            context = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    else:
        targets = [target for target in model.targets() if target.part == "denoiser" and not target.needs_conv_dim]
        if changes.get("int8"):
            for target in targets:
                memory.to_int8(target.layer)
        attached = adapters.attach(targets, rank=rank, alpha=rank)
        is_fused = changes.get("is_fused", True)
        for layer in attached.layers.values():
            layer.is_fused = is_fused
        if kind := changes.get("attention"):
            attend = attention.Attention(kind, attend.device, dtype, attend.chunk_bytes)
        if changes.get("own_forward", True):
            operations = (
                keeping_all() if changes.get("keeps_all") else linear_ops.FAST if is_fused else linear_ops.PLAIN
            )
            if changes.get("recomputed"):
                blocks.recomputed = frozenset(block_names(unet))
            model.denoiser.compute_with(Execution(operations, recompute, attend, blocks.run))
        parameters = attached.parts(is_flat=changes.get("is_flat", True))["denoiser"]
        if device != "meta":
            groups = [{"name": "unet", "params": parameters, "lr": 1e-4}]
            optimizer = optimizers.build("AdamW", groups, learning_rate=1e-4).optimizer

    def loss(counted=None) -> torch.Tensor:
        with context, blocks.observed(counted.block) if counted else nullcontext():
            prediction = model.predict(noisy, t, conditioning)
        return torch.nn.functional.mse_loss(prediction.float(), noise.float())

    def update(scaler) -> None:
        if attached:
            attached.gather()
        if optimizer:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
        if attached:
            attached.refresh()
        for parameter in (noisy, *parameters):
            parameter.grad = None

    return loss, update


def keeping_all():
    """The fused functions without recomputation: autograd keeps each layer's input."""
    from library.adapters.linear_ops import FAST, Operations

    def made(source, recompute):
        return source if recompute is None else recompute.plain(source)

    return Operations(
        lambda source, layers, recompute=None: FAST.project(made(source, recompute), layers),
        FAST.project_context,
        lambda source, layer, recompute=None, shift=None: FAST.convolve(made(source, recompute), layer, None, shift),
    )


def give_weights(module) -> None:
    """Random numbers, the same ones again and again because that is quick, of a size that keeps the scale of inputs."""
    import torch

    first = next(module.parameters())
    noise = torch.randn(2**22, device=first.device).to(first.dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() == 1:
                weight.fill_("norm" in name and name.endswith("weight"))
                continue
            for part in weight.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
            weight.div_(weight[0].numel() ** 0.5)


# ---- Measured ----


def measure(program: str, case: tuple, precision: str, steps: int) -> dict:
    """Seconds per step and peak bytes, in this process."""
    import torch

    from library.hardware.device import DTYPES

    on_gpu, dtype = torch.cuda.is_available() and gpu, DTYPES[precision]
    if thread_count and not on_gpu:
        torch.set_num_threads(thread_count)
    torch.manual_seed(0)
    device = "cuda" if on_gpu else "cpu"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu else time.process_time
    loss, update = build(program, case, device, dtype)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16 and program != FLOOR)

    def step() -> None:
        scaler.scale(loss()).backward()
        update(scaler)

    step()  # kernels are chosen, optimizer state is made
    if on_gpu:
        step()
        torch.cuda.reset_peak_memory_stats()
    at_once = steps if on_gpu else 1  # a CPU that others use, too, is best told by its fastest step
    times = []
    for _ in range(steps // at_once):
        synchronize()
        start = clock()
        for _ in range(at_once):
            step()
        synchronize()
        times.append((clock() - start) / at_once)
    # Linux counts KiB; all that the process ever held: the programs and libraries, too
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(seconds=min(times), peak=peak)


def child(jobs: list) -> None:
    """Measure one after another; a line of JSON for each."""
    import gc

    import torch

    for program, case, precision, steps in jobs:
        try:
            result = measure(program, tuple(case), precision, steps)
        except torch.OutOfMemoryError:
            result = dict(error="out of memory")
        print(json.dumps([[program, case, precision], result]), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def in_child(jobs: list, seconds: float | None = None) -> list:
    """What a child process has measured, cut off after so many seconds."""
    command = [sys.executable, __file__, json.dumps(dict(gpu=gpu, thread_count=thread_count, jobs=jobs))]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds, check=False).stdout
    except subprocess.TimeoutExpired as late:
        answer = late.stdout or b""
    lines = [json.loads(line) for line in answer.decode().splitlines() if line.startswith("[[")]
    return [((program, tuple(case), precision), result) for (program, case, precision), result in lines]


def measure_cpu() -> None:
    """The techniques in the first case only."""
    best: dict = {}
    for _ in range(turn_count):
        for case in cases:
            for program in PROGRAMS if case == cases[0] else (FLOOR, PEFT, OURS):
                for key, result in in_child([(program, case, mixed_precision, step_count)]):
                    best.setdefault(key, result)
                    best[key]["seconds"] = min(best[key]["seconds"], result["seconds"])
    show(best)


def measure_gpu() -> None:
    """bf16 and fp16, then each technique on SDXL; a child for each program measures all cases."""
    end, best = time.monotonic() + GPU_SECONDS, {}
    planned = [[(program, case, "bf16", GPU_STEPS) for case in GPU_CASES] for program in (FLOOR, OURS, PEFT)]
    planned += [[(program, case, "fp16", GPU_STEPS) for case in GPU_CASES] for program in (FLOOR, OURS)]
    planned += [[(program, ("sdxl", 1024, 1, 32), "bf16", GPU_STEPS) for program in TECHNIQUES]]
    for jobs in planned:
        left = end - time.monotonic()
        found = in_child(jobs, left) if left > 0 else []
        best |= dict(found)
        if len(found) < len(jobs):
            print(f"left out for lack of time: {len(jobs) - len(found)} of {len(jobs)} of {jobs[0][0]} {jobs[0][2]}")
    show(best)


def show(best: dict) -> None:
    from library.hardware.device import DTYPES

    for case, precision in dict.fromkeys((case, precision) for _, case, precision in best):
        name, side, batch, rank = case
        title = f"{name} {side} b{batch} r{rank} {precision}"
        head(title, "s/step", "x floor", "peak MiB", "x floor", "operators", "kept MiB", "largest", "GFLOP")
        floor = best.get((FLOOR, case, precision), {})
        for program in PROGRAMS:
            result = best.get((program, case, precision))
            if result is None:
                continue
            counted = numbers(count(program, case, DTYPES[precision if precision == "no" else "fp16"]))
            if "error" in result:
                row(program, result["error"], "", "", "", *counted)
                continue
            shares = [result[key] / floor[key] if key in floor else "" for key in ("seconds", "peak")]
            row(program, result["seconds"], shares[0], f"{result['peak'] / MIB:,.0f}", shares[1], *counted)
    print(f"load {os.getloadavg()[0]:.1f}")


# ---- The start ----


def measure_start() -> None:
    """Run train_network.py as a person would, until its run.jsonl has a step; then it is ended."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_checkpoint(root / "model.safetensors")
        draw_images(root / "train" / "1_thing", 12)
        options = dict(
            pretrained_model_name_or_path=root / "model.safetensors", train_data_dir=root / "train",
            reg_data_dir="none", output_dir=root / "output", output_name="it", resolution=128, max_train_steps=1,
        )  # fmt: skip
        command = [sys.executable, "-u", str(ROOT / "train_network.py")]
        command += [f"--{name}={value}" for name, value in options.items()]
        log, events = root / "said.txt", root / "output" / "it.run.jsonl"
        start, said, seen = time.perf_counter(), [], 0
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            lines = log.read_text(errors="replace").splitlines()
            said += [(time.perf_counter() - start, line) for line in lines[seen:] if line.strip()]
            seen = len(lines)
            if events.exists() and '"step"' in events.read_text(errors="replace"):
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        is_done = process.poll() is None
        process.kill()
        _, _, used = os.wait4(process.pid, 0) if is_done else (0, 0, None)
        if not is_done:
            print(log.read_text(errors="replace"))
            return
        print(f"\nfrom the command to the first step: {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU")
        for at, line in said:
            print(f"  {at:6.1f} s  {line[:90]}")


def write_checkpoint(path: Path) -> None:
    """SD 1.5 in fp16 as one file of the original layout, with random weights that keep the scale of what they get."""
    from safetensors.torch import save_file

    from library import families
    from library.families.clip_text import clip_sources
    from library.families.unet.names import original_unet_name
    from library.families.vae_kl import original_sources

    model = families.architecture("sd1")
    unet, vae, text = model.unet, model.vae, model.text_encoder
    kinds, blocks = unet.config.up_block_types, len(vae.config.block_out_channels)
    names = {
        unet: lambda name: "model.diffusion_model." + original_unet_name(name, unet.config.layers_per_block, kinds),
        vae: lambda name: next(iter(original_sources(name, "first_stage_model.", blocks))).name,
        text: lambda name: next(iter(clip_sources(name, "cond_stage_model.transformer."))).name,
    }
    tensors = {}
    for module, original in names.items():
        give_weights(module.half().to_empty(device="cpu"))
        tensors |= {original(name): tensor for name, tensor in module.state_dict().items()}
    save_file(tensors, path)


def draw_images(folder: Path, count: int) -> None:
    import numpy
    from PIL import Image

    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (160, 160, 3), dtype=numpy.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("thing, red, round", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        given = json.loads(sys.argv[1])
        gpu, thread_count = given["gpu"], given["thread_count"]
        child(given["jobs"])
    else:
        main()
