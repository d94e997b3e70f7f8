"""How long a run with a large training set takes to start, and its cache of latents to build, to open and to read,
beside one safetensors file per latent.

A start is what comes before the model is loaded: finding the images and reading their captions (`samples.find_samples`),
working out the buckets (`plan.make_plan`), and looking every image up in the cache. The images are tiny files and
the VAE gives random latents at once, so what is measured is our own doing alone; only the first start of all, which
decodes every image, is timed with images of 1024 pixels. Each way runs in a process of its own, first to build and
then to open and read, as two runs of a training would. Files lie in a temporary folder and have just been written, so
they are read from memory: a slow disk adds its own time.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

# ---- What to measure | 测什么 ----
image_count = 100_000  # latents in the cache | 缓存的图片数
latent_shape = (4, 64, 64)  # of SD 1.x at 512 pixels | 每张 latent 的形状
cold_count = 200  # pictures of 1024 pixels, decoded at the first start; times are scaled | 首次检查的图片数，按比例换算
file_count = 5_000  # of the single files, which take long to make; times are scaled | 单文件的数量，耗时按比例换算
train_batch_size = 4  # pictures read at once | 每次读取的图片数
batch_count = 5_000  # batches read | 读取的批数
folder = None  # for the files, about 4 GB; None: a temporary one | 存放位置，约 4 GB；None 表示临时目录

# ---- Do not edit below | 请勿修改下方内容 ----
WAYS = {"shards": image_count, "one file each": file_count}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        results = {}
        for way, count in WAYS.items():
            train = Path(place, way, "train")
            make_images(train / "1_a", count)
            time.sleep(4)  # images that were written just now would be read again: see SETTLED_SECONDS
            for stage in ("build", "read"):
                results[way, stage] = answer_of(measure, way, stage, str(train))
        make_large_images(Path(place, "large", "1_a"), cold_count)
        cold = answer_of(measure_cold, str(Path(place, "large")))
    shape = "x".join(map(str, latent_shape))
    print(f"latents {shape} in fp16, batches of {train_batch_size}; MiB of resident memory of the second run")
    print(f"{'':15}{'entries':>9}{'build s':>9}{'find s':>9}{'plan s':>9}{'look up s':>11}{'start s':>9}", end="")
    print(f"{'us/picture':>12}{'imports MiB':>13}{'samples MiB':>13}{'plan MiB':>10}{'cache MiB':>11}{'peak MiB':>10}")
    for way, count in WAYS.items():
        built, seen, scale = results[way, "build"], results[way, "read"], image_count / count
        start = [scale * seen[name] for name in ("find", "plan", "look up")]
        print(f"{way:15}{count:9}{scale * built['look up']:9.1f}{start[0]:9.2f}{start[1]:9.2f}{start[2]:11.2f}", end="")
        print(f"{sum(start):9.2f}{seen['microseconds']:12.1f}{seen['imports MiB']:13.0f}", end="")
        print(f"{seen['samples MiB']:13.0f}{seen['plan MiB']:10.0f}{seen['cache MiB']:11.0f}{seen['peak MiB']:10.0f}")
    if file_count != image_count:
        print(f"times of single files are scaled from {file_count} to {image_count} entries")
    print(
        f"the first find, which decodes: {cold * image_count:.0f} s for {image_count} pictures of 1024 pixels "
        f"({cold * 1e3:.1f} ms each, of {cold_count})"
    )


def answer_of(function: Callable, *arguments: str) -> Any:
    """What a function says in a process of its own."""
    command = [sys.executable, __file__, json.dumps([function.__name__, *arguments])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def make_images(place: Path, count: int) -> None:
    """Tiny images, no two of them equal, each with a caption."""
    place.mkdir(parents=True)
    for number in range(count):
        (place / f"{number}.png").write_bytes(number.to_bytes(4, "little"))
        (place / f"{number}.txt").write_text(f"mytag, 1girl, number {number}, short sleeves, smile, outdoors, blue sky")


def make_large_images(place: Path, count: int) -> None:
    """One image with the detail of a photo under so many names."""
    import numpy as np
    from PIL import Image

    place.mkdir(parents=True)
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((1024, 1024))
    fine = np.asarray(coarse).astype(int) + noise.integers(-8, 9, (1024, 1024, 3))
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(place / "0.png")
    for number in range(1, count):
        os.link(place / "0.png", place / f"{number}.png")


def measure_cold(train: str) -> float:
    """Seconds per image to find a set of which nothing is known."""
    from library.data import samples

    start = time.perf_counter()
    found = samples.find_samples(train)
    return (time.perf_counter() - start) / len(found.train)


def measure(way: str, stage: str, train: str) -> dict[str, float]:
    """Seconds of each part of a start (the second run finds everything done), then microseconds per image read."""
    import random

    from library.data import buckets, decoding, plan, samples
    from library.options.training import Config

    def inspect(path: Path) -> decoding.Inspection:
        assert stage == "build", "the second run must know every picture"
        return decoding.Inspection(side[0], side[1], False)

    side = 8 * latent_shape[2], 8 * latent_shape[1]
    decoding.inspect = inspect
    config = Config(train_data_dir=train, resolution=f"{side[0]},{side[1]}", max_train_epochs=1)
    place = Path(train).parent / "cache"
    seen, held = {}, resident()
    seen["imports MiB"] = held

    def lap(name: str, function: Callable, *arguments: Any, **options: Any) -> Any:
        nonlocal held
        start = time.perf_counter()
        result = function(*arguments, **options)
        seen[name] = time.perf_counter() - start
        seen[f"{name} MiB"], held = resident() - held, resident()
        return result

    found = lap("find", samples.find_samples, train, memory=place)
    planned = lap("plan", plan.make_plan, found, config, buckets.resolve_resolution(config, side[0], 64))
    seen["samples MiB"] = seen.pop("find MiB")

    import numpy as np
    import torch

    from library.data import cache, dataset

    def encode_images(pixels: torch.Tensor) -> torch.Tensor:
        assert stage == "build", "the second run must find everything"
        return torch.randn(len(pixels), *latent_shape)

    torch.set_num_threads(1)
    decoding.load = lambda *_, **__: np.zeros((8, 8, 3), np.uint8)
    seen["imports MiB"] += resident() - held
    held = resident()
    uses = dataset.latents_wanted(planned, config)

    def look_up() -> Callable:
        if way == "one file each":
            return single_files(place / "single", uses, encode_images)
        latents = cache.LatentCache(place, "vae")
        latents.fill(uses, encode_images, batch_size=train_batch_size)
        return latents.get_batch

    read = lap("look up", look_up)
    seen["cache MiB"], seen["peak MiB"] = seen.pop("look up MiB"), resident("VmHWM")
    rng = random.Random(0)
    batches = [rng.choices(uses, k=train_batch_size) for _ in range(batch_count if stage == "read" else 1)]
    times = []
    for batch in batches:
        start = time.perf_counter()
        read(batch)
        times.append(time.perf_counter() - start)
    seen["microseconds"] = statistics.median(times) / train_batch_size * 1e6  # other programs disturb it least
    return seen


def single_files(place: Path, uses: list, encode_images: Callable) -> Callable:
    """The plain way: a file per latent, named by the image's content, so that it cannot be stale either."""
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
        function, *arguments = json.loads(sys.argv[1])
        print(json.dumps({"measure": measure, "measure_cold": measure_cold}[function](*arguments)))
    else:
        main()
