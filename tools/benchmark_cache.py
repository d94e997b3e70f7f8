"""How long a large cache of latents takes to build, to open and to read, beside one safetensors file per latent.

The pictures are tiny files and the VAE gives random latents at once, so what is measured is the cache alone. Each way
runs in a process of its own, first to build and then to open and read, as two runs of a training would. Files lie in a
temporary folder and have just been written, so they are read from memory: a slow disk adds its own time.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

# ---- What to measure | 测什么 ----
picture_count = 100_000  # latents in the cache | 缓存的图片数
latent_shape = (4, 64, 64)  # of SD 1.x at 512 pixels | 每张 latent 的形状
file_count = 5_000  # of the single files, which take long to make; times are scaled | 单文件的数量，耗时按比例换算
train_batch_size = 4  # pictures read at once | 每次读取的图片数
batch_count = 5_000  # batches read | 读取的批数
folder = None  # for the files, about 4 GB; None: a temporary one | 存放位置，约 4 GB；None 表示临时目录

# ---- Do not edit below | 请勿修改下方内容 ----
WAYS = {"shards": picture_count, "one file each": file_count}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        results = {}
        for way, count in WAYS.items():
            pictures = Path(place, way, "pictures")
            pictures.mkdir(parents=True)
            for number in range(count):
                (pictures / f"{number}.png").write_bytes(number.to_bytes(4, "little"))
            time.sleep(4)  # pictures that were written just now would be read again: see SETTLED_SECONDS
            for stage in ("build", "read"):
                command = [sys.executable, __file__, json.dumps([way, stage, str(pictures)])]
                answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                results[way, stage] = json.loads(answer.splitlines()[-1])
    shape = "x".join(map(str, latent_shape))
    print(f"latents {shape} in fp16, batches of {train_batch_size}; MiB of resident memory of the second run")
    print(f"{'':15}{'entries':>9}{'build s':>9}{'start s':>9}{'us/picture':>12}{'imports MiB':>13}", end="")
    print(f"{'pictures MiB':>14}{'cache MiB':>11}{'peak MiB':>10}")
    for way, count in WAYS.items():
        built, seen, scale = results[way, "build"], results[way, "read"], picture_count / count
        print(f"{way:15}{count:9}{scale * built['seconds']:9.1f}{scale * seen['seconds']:9.2f}", end="")
        print(f"{seen['microseconds']:12.1f}{seen['imports']:13.0f}{seen['pictures']:14.0f}", end="")
        print(f"{seen['cache']:11.0f}{seen['peak']:10.0f}")
    if file_count != picture_count:
        print(f"build and start of single files are scaled from {file_count} to {picture_count} entries")


def measure(way: str, stage: str, pictures: Path) -> dict[str, float]:
    """Seconds to fill the cache (with nothing to do where it is the second run), then microseconds per picture read."""
    import random

    import numpy as np
    import torch

    from library.contracts import Fit, Sample
    from library.data import cache, images

    def encode_images(pixels: torch.Tensor) -> torch.Tensor:
        assert stage == "build", "the second run must find everything"
        return torch.randn(len(pixels), *latent_shape)

    torch.set_num_threads(1)
    images.load = lambda *_, **__: np.zeros((8, 8, 3), np.uint8)
    imports = resident()
    side = 8 * latent_shape[2], 8 * latent_shape[1]
    fit = Fit(side, side, (0, 0))
    fits = {path: fit for path in sorted(pictures.iterdir()) if path.is_file()}  # a plan has looked at each too
    uses = [(Sample(path, "", *side, "1_a", 1, False), fits[path], False) for path in fits]
    with_pictures = resident()
    start = time.perf_counter()
    if way == "shards":
        latents = cache.LatentCache(pictures.parent / "cache", "vae")
        latents.fill(uses, encode_images, batch_size=train_batch_size)
        read = latents.get_batch
    else:
        read = single_files(pictures.parent / "cache", uses, encode_images)
    seconds = time.perf_counter() - start
    with_cache = resident()
    rng = random.Random(0)
    batches = [rng.choices(uses, k=train_batch_size) for _ in range(batch_count if stage == "read" else 1)]
    times = []
    for batch in batches:
        start = time.perf_counter()
        read(batch)
        times.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "microseconds": statistics.median(times) / train_batch_size * 1e6,  # other programs disturb it least
        "imports": imports,
        "pictures": with_pictures - imports,  # what the run knows of them anyway
        "cache": with_cache - with_pictures,
        "peak": resident("VmHWM"),
    }


def single_files(place: Path, uses: list, encode_images: Callable) -> Callable:
    """The plain way: a file per latent, named by the picture's content, so that it cannot be stale either."""
    import hashlib

    import torch
    from safetensors.torch import load_file, save_file

    place.mkdir(exist_ok=True)
    files = {}
    for sample, _, _ in uses:
        path = place / f"{hashlib.sha256(sample.image_path.read_bytes()).hexdigest()}.safetensors"
        files[sample.image_path] = path
        if not path.exists():
            save_file({"latents": encode_images(torch.zeros(1, 3, 8, 8))[0].half()}, path)

    def read(batch: list) -> torch.Tensor:
        return torch.stack([load_file(files[sample.image_path])["latents"] for sample, _, _ in batch]).float()

    return read


def resident(kind: str = "VmRSS") -> float:
    """MiB of this process in memory, now or (VmHWM) at most; 0 where the system is not Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:")), 0.0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        way, stage, pictures = json.loads(sys.argv[1])
        print(json.dumps(measure(way, stage, Path(pictures))))
    else:
        main()
