"""Seconds per step, peak memory and operator counts of a true-size U-Net with random weights.

Three programs do the same work, each in a process of its own, turn by turn:
    floor             the frozen U-Net alone: forward, and backward to its input; nothing can be faster than that
    diffusers + peft  what a plain script does: `unet.add_adapter(LoraConfig(...))`, AdamW, clipping
    ours              this project's adapters, optimizer table and clipping

Latents and text are random and ready: no VAE and no text encoder is measured. On a CPU the seconds are CPU seconds of
all threads, which other programs on the machine disturb less than the clock.
"""

import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

# ---- What to measure | 测什么 ----
family = "sd1"  # "sd1", "sd2" or "sdxl" | 模型
resolution = 256  # picture side in pixels | 图片边长
train_batch_size = 1  # pictures per step | 每步图片数
network_dim = 32  # rank | 秩
mixed_precision = "auto"  # "no", "fp16", "bf16"; "auto": by the device | 精度
step_count = 3  # measured steps of each turn, after one to warm up | 每轮计时的步数（另有一步预热）
turn_count = 2  # how often the programs take turns; the fastest turn counts | 轮换次数，取最快的一次
thread_count = None  # CPU threads; None: as torch chooses | CPU 线程数

# ---- Do not edit below | 请勿修改下方内容 ----
PROGRAMS = ("floor", "diffusers + peft", "ours")
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


def main() -> None:
    names = ("family", "resolution", "train_batch_size", "network_dim", "mixed_precision", "step_count", "thread_count")
    settings = {name: globals()[name] for name in names}
    results: dict[str, dict] = {}
    for _ in range(turn_count):
        for program in PROGRAMS:
            command = [sys.executable, __file__, json.dumps(settings | {"program": program})]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            result = json.loads(answer.splitlines()[-1])
            best = results.setdefault(program, result)
            best["seconds"] = min(best["seconds"], result["seconds"])
    floor = results["floor"]
    print(f"{family} U-Net, {resolution} px, batch {train_batch_size}, rank {network_dim}; {floor['machine']}")
    print(f"{'':18}{'s/step':>9}{'x floor':>9}{'peak MiB':>10}{'x floor':>9}{'operators':>11}")
    for program, result in results.items():
        print(
            f"{program:18}{result['seconds']:9.3f}{result['seconds'] / floor['seconds']:9.3f}"
            f"{result['peak_mib']:10.0f}{result['peak_mib'] / floor['peak_mib']:9.3f}{result['operators']:11}"
        )


def measure(settings: dict) -> dict:
    """Run one program; seconds per step, peak MiB, dispatched operators of a step (views excluded)."""
    import torch

    from library import device as devices

    if settings["thread_count"]:
        torch.set_num_threads(settings["thread_count"])
    torch.manual_seed(0)
    machine = devices.choose("auto", settings["mixed_precision"])
    step = build_step(settings, machine)

    step()  # warm up; optimizer state is made
    on_gpu = machine.device.type == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu else time.process_time
    synchronize()
    start = clock()
    for _ in range(settings["step_count"]):
        step()
    synchronize()
    seconds = (clock() - start) / settings["step_count"]
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB
    return {
        "seconds": seconds,
        "peak_mib": peak,
        "operators": count_operators(step),
        "machine": f"{machine.description}, torch {torch.__version__}",
    }


def build_step(settings: dict, machine):
    """A function that does one training step of the chosen program."""
    import torch

    from library import adapters, families, optimizers
    from library.contracts import Conditioning

    program, batch, rank = settings["program"], settings["train_batch_size"], settings["network_dim"]
    model = families.architecture(settings["family"])  # without memory; only the U-Net gets some
    unet = model.unet.to(machine.dtype).to_empty(device=machine.device)
    for module in unet.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=machine.device, dtype=machine.dtype)

    side = settings["resolution"] // 8
    noisy, noise, t = random(batch, 4, side, side), random(batch, 4, side, side), torch.randint(0, 1000, (batch,))
    t = t.to(machine.device)
    sizes = torch.full((batch, 6), float(settings["resolution"]), device=machine.device)
    conditioning = Conditioning(random(batch, 77, unet.config.cross_attention_dim), random(batch, 1280), sizes)

    context = contextlib.nullcontext()
    if program == "floor":
        noisy.requires_grad_(True)
        parameters, optimizer = [noisy], None
    elif program == "ours":
        targets = [target for target in model.targets() if target.part == "unet" and not target.needs_conv_dim]
        parameters = adapters.attach(targets, rank=rank, alpha=rank).parameters()
        groups = [{"name": "unet", "params": parameters, "lr": 1e-4}]
        optimizer = optimizers.build("AdamW", groups, learning_rate=1e-4).optimizer
    else:
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_TARGETS))
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        context = torch.autocast(machine.device.type, machine.dtype, enabled=machine.dtype != torch.float32)

    def step() -> None:
        with context:
            prediction = model.predict(noisy, t, conditioning)
        torch.nn.functional.mse_loss(prediction.float(), noise.float()).backward()
        if optimizer:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def count_operators(step) -> int:
    """Operators that one step dispatches, forward and backward; views, which move nothing, are not counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
            self.count += not is_view
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        step()
    return counter.count


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
