"""Kills, full memory, NaN, full disks and stops, on the miniature: what a run survives, counted.

    python tests/torture.py [--short] [--seed N] [--series kill,oom,nan,disk,stop]

A run is a child of this process, killed, starved or poisoned, then started again as its user would do it, and compared
with an unbroken run: every tensor of every file bit for bit, every step in run.jsonl once and with the same loss. To
add a case: write a function below with `@case(series)`; it raises AssertionError where the run did not survive.
"""

import argparse
import contextlib
import errno
import math
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked child must find no threads
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file

import train_network
from library import adapters, families, files
from library.data import cache
from library.diffusion import losses, sampling
from library.options import command_line as arguments
from library.options.training import Config
from library.reporting import run_log
from library.storage import disk, training_state
from library.training import recovery, saver

MINIATURE = Path(train_network.__file__).parent / "library" / "miniature"
CONTEXT = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
SECONDS = 120  # a child that takes longer has hung
NAME = "it"
PROMPTS = "prompts.txt"
PREVIEWS = dict(sample_every_n_steps=7, sample_every_n_epochs=3)  # of 2 sampling steps each: see `draw_data`

# ---- A run and its children ----


def draw_data(root: Path) -> None:
    """A few images of the miniature's own set: 11 steps to an epoch, three buckets."""
    for source, folder, count in (("train/10_mytag", "train/2_mytag", 5), ("reg", "reg/1_person", 3)):
        (root / folder).mkdir(parents=True)
        for path in sorted((MINIATURE / source).rglob("*.png"))[:count]:
            for file in (path, path.with_suffix(".txt")):
                shutil.copy(file, root / folder)
    (root / PROMPTS).write_text("mytag, standing --s 2", encoding="utf-8")


class Run:
    """A folder in which a run is started, again and again until it is done.

    Args:
        data: with the folders train and reg.
        folder: of this run alone.
        options: of the configuration, beside those that all runs have.
    """

    def __init__(self, data: Path, folder: Path, **options):
        self.folder, self.out, self.log = folder, options.pop("out", folder / "out"), folder / "log.txt"
        folder.mkdir(parents=True)
        self.options = dict(
            train_data_dir=str(data / "train"), reg_data_dir=str(data / "reg"), output_dir=str(self.out),
            cache_dir=str(folder / "cache"), output_name=NAME, network_dim=4, network_alpha=4.0, train_batch_size=2,
            max_train_epochs=3, save_every_n_epochs=1, sample_every_n_epochs=0, device="cpu", language="en",
            text_encoder_lr=0.0, save_precision="float", sample_prompts=str(data / PROMPTS),
        ) | options  # fmt: skip

    def start(self, *sabotage: Callable[["Run"], None], **changed) -> multiprocessing.Process:
        """Start a child; what it says goes to `log`, anew."""
        return self.start_words(arguments.to_arguments(Config(**self.options | changed)), *sabotage)

    def start_words(self, words: list[str], *sabotage: Callable[["Run"], None]) -> multiprocessing.Process:
        """The same with a command line."""
        process = CONTEXT.Process(target=_child, args=(self, words, sabotage))
        process.start()
        return process

    def go(self, *sabotage: Callable[["Run"], None], **changed) -> int:
        """Start a child and wait for its exit code."""
        return ended(self.start(*sabotage, **changed))

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def events(self, kind: str, name: str = NAME) -> list[dict]:
        path = self.out / f"{name}.run.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        whole = [event for event in map(run_log._parsed, map(str.encode, lines)) if event]
        return [event for event in whole if event["event"] == kind]

    def wait_for_step(self, process: multiprocessing.Process, step: int = 1) -> None:
        """Until run.jsonl tells of that step."""
        while process.is_alive() and not any(event["step"] >= step for event in self.events("step")):
            time.sleep(0.005)

    def is_done(self) -> bool:
        """Whether a user who starts it again would begin anew: the result is there."""
        return bool(self.events("end")) and training_state.newest_state(self.out, NAME) is None


def _child(run: Run, words: list[str], sabotage: tuple[Callable[[Run], None], ...]) -> None:
    handle = os.open(run.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as we may be, ignores it
    saver.Saver.state_is_due = _every_third_step
    disk.writing.__kwdefaults__["wait_seconds"] = 0.2
    for act in sabotage:
        act(run)
    code = train_network.main(words)
    sys.stdout.flush()
    os._exit(code)


def _every_third_step(self: saver.Saver) -> bool:
    """Instead of by the clock, which would save one or two states in so short a run."""
    return self.run_log.step % 3 == 0


def ended(process: multiprocessing.Process) -> int:
    """The exit code; negative: the signal that killed it."""
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"hung for {SECONDS} s")
    return process.exitcode


def differences(run: Run, reference: Run, name: str = NAME, bound: float = 0.0) -> list[str]:
    """What is not as after the unbroken run.

    Args:
        name: of the run's files.
        bound: largest difference of a value, as a share of the largest value of its tensor. 0: bit for bit.
    """
    found = []
    ours, theirs = _tensors(run.out, name), _tensors(reference.out, NAME)
    if ours.keys() != theirs.keys():
        found.append(f"files {sorted(ours)} instead of {sorted(theirs)}")
    for file in ours.keys() & theirs.keys():
        worst = _distance(ours[file], theirs[file])
        if not worst <= bound:
            found.append(f"{name}{file} differs by {worst:.1e}")
    steps = [event["step"] for event in run.events("step", name)]
    wanted = [event["step"] for event in reference.events("step")]
    if steps != wanted:
        found.append(f"run.jsonl has the steps {steps} instead of 1 to {len(wanted)}")
    else:
        for event, other in zip(run.events("step", name), reference.events("step"), strict=True):
            a, b = event["loss"], other["loss"]
            if a != b and not abs(a - b) <= bound * abs(b):
                found.append(f"the loss of step {event['step']} is {a} instead of {b}")
                break
    left = [path.name for path in run.out.rglob("*.part")]
    found += [f"left behind: {left}"] if left else []
    return found


def _tensors(out: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    """By what stands behind the run's name; files that a stop or SAVE asked for do not count."""
    ours = [out / f"{name}.safetensors", *out.glob(f"{name}-??????.safetensors")]
    return {path.name.removeprefix(name): load_file(path) for path in ours if path.exists()}


def _distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    if ours.keys() != theirs.keys():
        return math.inf
    worst = 0.0
    for name, tensor in theirs.items():
        if not torch.equal(ours[name], tensor):
            worst = max(worst, float((ours[name] - tensor).abs().max() / tensor.abs().max()))
    return worst


def must_be_same(run: Run, reference: Run, **options) -> None:
    found = differences(run, reference, **options)
    assert not found, "; ".join(found)


def no_file_holds_nan(run: Run) -> None:
    for path in run.out.rglob("*.safetensors"):
        bad = [name for name, tensor in load_file(path).items() if not tensor.isfinite().all()]
        assert not bad, f"{path.name} holds NaN in {bad[0]}"


# ---- What is done to a run: called in the child, before it begins ----


class _Now:
    """Where the child is."""

    step = 0  # the one being worked out, from 1


def _know_the_step(run: Run) -> None:
    """Every pass over a step begins with `seed_step`."""
    plain = train_network.seed_step

    def seed_step(generator, seed, step, *place):
        _Now.step = step + 1
        plain(generator, seed, step, *place)

    train_network.seed_step = recovery.seed_step = seed_step


def _wrap(place: object, name: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """Have something done before or with the result of each call of a function."""
    plain = getattr(place, name)

    def wrapped(*arguments, **options):
        if before:
            before()
        result = plain(*arguments, **options)
        return after(result) if after else result

    setattr(place, name, wrapped)


class Fault:
    """What goes wrong at certain steps.

    Args:
        steps: at which; None: whenever it is reached.
        times: how often in all.
        passes: how often it goes well before.
    """

    def __init__(self, steps: tuple[int, ...] | None, times: float = math.inf, passes: int = 0):
        self.steps, self.left, self.passes = steps, times, passes

    def is_due(self) -> bool:
        if self.left <= 0 or (self.steps is not None and _Now.step not in self.steps):
            return False
        if self.passes:
            self.passes -= 1
            return False
        self.left -= 1
        return True

    def raise_oom(self, *_: object) -> None:
        if self.is_due():
            raise torch.OutOfMemoryError("injected: out of memory")

    def raise_full(self, *_: object) -> None:
        if self.is_due():
            raise OSError(errno.ENOSPC, "injected: no space left on device")

    def give_nan(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * float("nan") if self.is_due() else tensor


class _Backward(torch.autograd.Function):
    """Leaves the values alone; the gradient passes through a function."""

    @staticmethod
    def forward(ctx, tensor, act):
        ctx.act = act
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.act(gradient), None


def _in_family(name: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """As `_wrap`, for a method of the model that the run will open."""

    def opened(family):
        _wrap(family, name, before, after)
        return family

    _wrap(families, "open_model", after=opened)


def _through_backward(act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    _in_family("predict", after=lambda prediction: _Backward.apply(prediction, act))


def out_of_memory(place: str, times: int, run: Run) -> None:
    """Memory runs out at a place of step 5, or of what is not a step."""
    _know_the_step(run)
    is_in_step = place not in ("encode", "captions", "preview")
    fault = Fault((5,) if is_in_step else None, times, passes=place == "second batch")

    def in_backward(gradient):
        fault.raise_oom()
        return gradient

    def after_step(result):  # the worst moment: the weights have changed
        fault.raise_oom()
        return result

    {
        "encode": lambda: _wrap(cache, "_encode", fault.raise_oom),
        "captions": lambda: _wrap(cache, "_embeddings", fault.raise_oom),
        "draw": lambda: _wrap(train_network, "draw", fault.raise_oom),
        "fresh pictures": lambda: _in_family("encode_images", fault.raise_oom),
        "fresh captions": lambda: _in_family("encode_captions", fault.raise_oom),
        "forward": lambda: _in_family("predict", fault.raise_oom),
        "second batch": lambda: _wrap(losses, "per_sample", fault.raise_oom),  # the first is gathered
        "backward": lambda: _through_backward(in_backward),
        "end of backward": lambda: _in_family(  # the U-Net has its gradients
            "encode_captions", after=lambda c: {name: _Backward.apply(x, in_backward) for name, x in c.items()}
        ),
        "gather": lambda: _wrap(adapters.Adapters, "gather", fault.raise_oom),
        "clip": lambda: _wrap(torch.nn.utils, "clip_grad_norm_", fault.raise_oom),
        "optimizer step": lambda: _wrap(torch.amp.GradScaler, "step", after=after_step),
        "preview": lambda: _wrap(sampling, "generate_weighted", fault.raise_oom),
    }[place]()


def poison(place: str, steps: tuple[int, ...] | None, times: float, run: Run) -> None:
    """A NaN at a place of some steps."""
    _know_the_step(run)
    fault = Fault(steps, times)

    def spoil_weights(training):
        if fault.is_due():
            training.adapters.parameters()[0].data[7] = float("nan")

    def spoil_one(gradient):
        if fault.is_due():
            gradient = gradient.clone()
            gradient.view(-1)[7] = float("nan")
        return gradient

    if place == "weights":
        plain = train_network.forward_backward

        def forward_backward(run, training, *rest):
            loss = plain(run, training, *rest)
            spoil_weights(training)
            return loss

        train_network.forward_backward = forward_backward
    else:
        {
            "loss": lambda: _wrap(losses, "per_sample", after=fault.give_nan),
            "gradient": lambda: _through_backward(spoil_one),
            "captions": lambda: _in_family(
                "encode_captions", after=lambda c: {name: fault.give_nan(x) for name, x in c.items()}
            ),
        }[place]()


def overflow(steps: tuple[int, ...], run: Run) -> None:
    """Gradients too large for fp16, as they are at times."""
    _know_the_step(run)
    fault = Fault(steps)
    _through_backward(lambda gradient: gradient * 1e30 if fault.is_due() else gradient)


def broken_vae(is_broken: Callable[[torch.dtype], bool], run: Run) -> None:
    """The VAE gives NaN for one image in the precisions named."""

    def opened(family):
        plain = family.encode_images
        seen = []

        def encode_images(pixels):
            latents = plain(pixels)
            seen.append(len(pixels))
            if is_broken(next(family.modules()["vae"].parameters()).dtype) and len(seen) % 2:
                latents[0] *= float("nan")
            return latents

        family.encode_images = encode_images
        return family

    _wrap(families, "open_model", after=opened)


def _only_half(dtype: torch.dtype) -> bool:
    return dtype != torch.float32


def _always(dtype: torch.dtype) -> bool:
    return True


def full_disk(what: str, times: float, run: Run) -> None:
    """Writing a kind of file fails so many times from step 4 on, as on a full disk."""
    _know_the_step(run)
    fault = Fault(None, times)
    plain = files.write_verified
    endings = {"LoRA": f"{NAME}-000001.safetensors.part", "state": "training-2.pt", "description": "state-2.json.part"}

    def write_verified(path, data):
        if path.name == endings.get(what):
            if fault.left > 0:
                path.write_bytes(bytes(data)[: len(data) // 2])  # it takes a part
            fault.raise_full()
        return plain(path, data)

    files.write_verified = write_verified
    if what == "run.jsonl":
        plain_write = run_log.RunLog._write

        def write(self):
            if _Now.step >= 4:
                fault.raise_full()
            plain_write(self)

        run_log.RunLog._write = write
    if what == "previews":
        from PIL import Image

        _wrap(Image.Image, "save", fault.raise_full)


def kill_at_operation(number: int, run: Run, ending: str = "") -> None:
    """SIGKILL before the child makes, writes, renames or removes its `number`-th file or folder.

    Args:
        number: 0: none; what there would be goes to the file `count`.
        ending: of the files and folders that count.
    """
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            is_ours = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, is_ours = arguments[0] if arguments else "", event in CHANGES
        place = "" if isinstance(path, int) or not is_ours else os.fsdecode(path)
        if place.startswith((str(run.out), str(run.folder))) and place.endswith(ending):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if number == 0:

        def note(code):
            (run.folder / "count").write_text(str(count))
            return code

        _wrap(train_network, "main", after=note)


def slowly(run: Run) -> None:
    """0.1 s more for each step, so that there is time to do something to the run."""
    _wrap(train_network, "seed_step", lambda: time.sleep(0.1))


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

# ---- Cases ----


class Series:
    """What all cases share: the data, unbroken runs, chance."""

    def __init__(self, root: Path, seed: int, is_short: bool):
        self.root, self.rng, self.is_short = root, random.Random(seed), is_short
        self.count = 0
        self._references: dict[str, Run] = {}
        draw_data(root / "data")
        model = families.inspect(str(MINIATURE / "model"))  # imports what each child would have to
        families.blueprint(model, 75)
        families.token_counts(model, ["a"])

    def run(self, **options) -> Run:
        self.count += 1
        return Run(self.root / "data", self.root / f"run {self.count}", **options)

    def reference(self, **options) -> Run:
        """The unbroken run of these options."""
        key = repr(sorted(options.items()))
        if key not in self._references:
            run = self.run(**options)
            began = time.monotonic()
            assert run.go(partial(kill_at_operation, 0)) == 0, run.said
            run.seconds = time.monotonic() - began
            self._references[key] = run
        return self._references[key]

    def survives(self, *sabotage: Callable[[Run], None], code: int = 0, **options) -> Run:
        """A run with something done to it ends with this code, and no file holds NaN."""
        run = self.run(**options)
        ended_with = run.go(*sabotage)
        assert ended_with == code, f"ended with {ended_with}: {run.said[-600:]}"
        no_file_holds_nan(run)
        return run


CASES: list[tuple[str, str, Callable[[Series], None], bool]] = []  # series, name, function, whether in --short


def case(series: str, name: str, *, is_short: bool = False) -> Callable:
    def note(function: Callable[[Series], None]) -> Callable[[Series], None]:
        CASES.append((series, name, function, is_short))
        return function

    return note


VARIANTS = (
    dict(save_state=True),
    dict(
        text_encoder_lr=1e-4, shuffle_caption=True, network_dropout=0.2, flip_aug=True, gradient_accumulation_steps=2,
        **PREVIEWS,
    ),
)  # fmt: skip


def kills(series: Series, wanted: int) -> Iterator[tuple[str, int, str]]:
    """Kill until `wanted` kills are done; for each run what it was, its number of kills and what went wrong.

    Half of them by the clock, half at a file operation, spread over the whole run.
    """
    done = 0
    while done < wanted:
        options = VARIANTS[done % 2]
        reference, run = series.reference(**options), series.run(**options)
        operations = int((reference.folder / "count").read_text())
        own, moments, wrong = 0, [], ""
        for _ in range(30):
            place = (done + own + series.rng.random()) / wanted  # of the whole run
            is_last = done + own >= wanted
            if is_last:
                code = run.go()
            elif (done + own) // 2 % 2:
                code = run.go(partial(kill_at_operation, 1 + int(place * operations)))
            else:
                process = run.start()
                process.join(place * reference.seconds)
                process.kill()
                code = ended(process)
            if code not in (0, -signal.SIGKILL):
                wrong = f"ended with {code}: {run.said[-600:]}"
                break
            if code:
                own += 1
                moments.append(_moment(run))
            if code == 0 or run.is_done():
                break
        else:
            wrong = "never came to an end"
        wrong = wrong or "; ".join(differences(run, reference))
        done += own
        yield ", ".join(moments), own, wrong


def _kill_case(ending: str, number: int, series: Series) -> None:
    reference, run = series.reference(), series.run()
    assert run.go(partial(kill_at_operation, number, ending=ending)) == -signal.SIGKILL, "it came to no such place"
    if not run.is_done():
        assert run.go() == 0, run.said
    must_be_same(run, reference)


for ending, number, what in (
    ("it-state", 1, "the first state's folder is made"),
    ("adapter.safetensors", 1, "the first state is written"),
    ("state.json.part", 2, "the first state begins to count"),
    ("it.run.jsonl", 1, "run.jsonl is made"),
    ("it.tags.txt", 1, "the tags are written"),
    (".index", 1, "the cache begins"),
    (".rows", 1, "the cache gets its first rows"),
    ("it-000001.safetensors.part", 2, "the LoRA of an epoch gets its name"),
    ("it.safetensors.part", 1, "the result is written"),
    ("it-state", 2, "the last state's folder goes"),
    ("it.lock", 2, "all is done but the lock"),
):
    case("kill", f"when {what}", is_short=ending == "it.run.jsonl")(partial(_kill_case, ending, number))


def _moment(run: Run) -> str:
    """Where a run was killed, as its files tell."""
    steps = [event["step"] for event in run.events("step")]
    if not list(run.out.glob("*-state")):
        return "before the first state"
    half = [folder for folder in run.out.glob("*-state") for slot in training_state.SLOTS if _is_half(folder, slot)]
    half += list(run.out.rglob("*.part"))
    return f"step {max(steps, default=0)}" + (" while saving" if half else "")


def _is_half(folder: Path, slot: str) -> bool:
    there = [(folder / name).exists() for name in training_state.state_files(slot)]
    return any(there) and not all(there)


# Out of memory. Blocks that are computed twice give the same bits; a batch in parts is summed in another order, which
# measured a largest difference of 7e-6 of a tensor's largest value. Images one by one gave the same bits here.
ROUNDING = 1e-4


def _memory_case(place: str, times: int, bound: float, options: dict, series: Series) -> None:
    reference = series.reference(**options)
    run = series.survives(partial(out_of_memory, place, times), **options)
    assert "out of memory" in run.said or "not enough memory" in run.said, "nothing was said"
    must_be_same(run, reference, bound=bound)


for place, options in (
    ("encode", {}),
    ("captions", {}),
    ("draw", {}),
    ("fresh pictures", dict(cache_latents=False)),
    ("fresh captions", dict(text_encoder_lr=1e-4)),
    ("forward", {}),
    ("second batch", dict(gradient_accumulation_steps=2)),
    ("backward", {}),
    ("end of backward", dict(text_encoder_lr=1e-4)),
    ("gather", {}),
    ("clip", {}),
    ("optimizer step", {}),
    ("preview", PREVIEWS),
):
    is_rounded = place in ("encode", "captions")  # one by one instead of in batches
    case("oom", place, is_short=place in ("second batch", "optimizer step"))(
        partial(_memory_case, place, 1, ROUNDING if is_rounded else 0.0, options)
    )
case("oom", "backward, until a batch goes in parts")(partial(_memory_case, "backward", 5, ROUNDING, {}))


@case("oom", "optimizer step in fp16")
def _(series: Series) -> None:
    options = dict(mixed_precision="fp16")
    for place in ("clip", "optimizer step"):
        run = series.survives(partial(out_of_memory, place, 1), **options)
        must_be_same(run, series.reference(**options))


@case("oom", "nothing left to reduce: said, with a cure")
def _(series: Series) -> None:
    run = series.survives(partial(out_of_memory, "forward", 99), code=2)
    assert "Lower resolution" in run.said
    assert run.go() == 0, run.said  # a larger machine goes on
    must_be_same(run, series.reference())


# NaN


@case("nan", "a VAE that fails in half precision is tried in float32")
def _(series: Series) -> None:
    run = series.survives(partial(broken_vae, _only_half), mixed_precision="bf16")
    assert "trying in float32" in run.said
    assert ".png" in run.said.split("trying in float32")[0].rpartition("NaN")[2], "the image is not named"


@case("nan", "a VAE that fails in float32 is told with the images")
def _(series: Series) -> None:
    run = series.survives(partial(broken_vae, _always), code=2)
    assert "the VAE gives NaN or infinity for" in run.said
    assert ".png" in run.said


@case("nan", "a text encoder that fails is told with the caption")
def _(series: Series) -> None:
    run = series.survives(partial(poison, "captions", None, math.inf), code=2)
    assert "the text encoder gives NaN" in run.said


def _passing(place: str, step: int, series: Series) -> None:
    run = series.survives(partial(poison, place, (step,), 1))
    assert "Returning to the state of step" in run.said
    must_be_same(run, series.reference())


for place, step in (("loss", 5), ("gradient", 8), ("weights", 8), ("gradient", 33)):
    case("nan", f"once, {place} of step {step}: the step is repeated", is_short=place == "weights")(
        partial(_passing, place, step)
    )


def _lasting(place: str, step: int, series: Series) -> None:
    run = series.survives(partial(poison, place, (step,), math.inf))
    assert [event["step"] for event in run.events("skipped")] == [step], run.said
    named = next(line for line in run.said.splitlines() if "Skipping this batch" in line)
    for part in (f"step {step}: NaN or infinity, first in", ".png", "timesteps: "):
        assert part in named, named
    assert "did not happen again" not in named, named
    told = [event["step"] for event in run.events("step")]
    assert told == [number for number in range(1, 34) if number != step], told


for place, step in (("loss", 5), ("gradient", 8), ("gradient", 33)):
    case("nan", f"always, {place} of step {step}: the batch is named and left out", is_short=step == 33)(
        partial(_lasting, place, step)
    )


@case("nan", "a second batch: the run ends, what was saved is whole")
def _(series: Series) -> None:
    run = series.survives(partial(poison, "gradient", (8, 20), math.inf), code=2)
    assert "step 20: NaN or infinity, first in" in run.said
    assert "lower learning_rate" in run.said
    assert (run.out / f"{NAME}-000001.safetensors").exists()


@case("nan", "fp16 overflow lowers the scale and costs a step, no more", is_short=True)
def _(series: Series) -> None:
    run = series.survives(partial(overflow, (5, 9)), mixed_precision="fp16", save_state=True)
    assert "Returning" not in run.said
    assert training_state.load_state(run.out / f"{NAME}-state").scaler["scale"] == 65536 / 4


@case("nan", "NaN gradients in fp16 at every step end the run")
def _(series: Series) -> None:
    run = series.survives(partial(poison, "gradient", None, math.inf), code=2, mixed_precision="fp16")
    assert "first in" in run.said


# Disks


def _full_case(what: str, options: dict, series: Series) -> None:
    run = series.survives(partial(full_disk, what, 3), **options)
    must_be_same(run, series.reference(**options))
    if what != "run.jsonl":
        assert "disk full" in run.said, "nothing was said"


for what, options in (
    ("LoRA", {}),
    ("state", {}),
    ("description", {}),
    ("run.jsonl", {}),
    ("previews", PREVIEWS),
):
    case("disk", f"full at the {what}", is_short=what == "state")(partial(_full_case, what, options))


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB. Raises PermissionError where we may not mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("no small file system can be mounted here (only root can)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _fill(folder: Path) -> Path:
    """Take all the space there is."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@case("disk", "a small disk, full for a while", is_short=True)
def _(series: Series) -> None:
    reference = series.reference()
    with small_disk(series.root / "disk 1", 12) as folder:
        run = series.run(out=folder / "out")
        process = run.start()
        run.wait_for_step(process)
        filler = _fill(folder)
        until = time.monotonic() + 30
        while process.is_alive() and "disk full" not in run.said and time.monotonic() < until:
            time.sleep(0.05)
        filler.unlink()
        code = ended(process)
        assert code == 0, f"ended with {code}: {run.said[-600:]}"
        assert "disk full" in run.said
        must_be_same(run, reference)


@case("disk", "a small disk, and the oldest file may go")
def _(series: Series) -> None:
    reference = series.reference(max_train_epochs=5)
    with small_disk(series.root / "disk 2", 12) as folder:
        run = series.run(out=folder / "out", max_train_epochs=5, save_last_n_epochs=2)
        process = run.start(slowly)
        while process.is_alive() and not (run.out / f"{NAME}-000002.safetensors").exists():
            time.sleep(0.005)
        filler = _fill(folder)
        os.truncate(filler, filler.stat().st_size - 2**18)  # too little for a LoRA
        code = ended(process)
        assert code == 0, f"ended with {code}: {run.said[-600:]}"
        ours, theirs = _tensors(run.out, NAME), _tensors(reference.out, NAME)
        assert "-000001.safetensors" not in ours
        assert _distance(ours[".safetensors"], theirs[".safetensors"]) == 0


# Stops


def _stop_case(how: Callable[[Run, multiprocessing.Process], None], codes: tuple[int, ...], series: Series) -> None:
    reference, run = series.reference(), series.run()
    process = run.start()
    run.wait_for_step(process, 4)
    how(run, process)
    code = ended(process)
    assert code in codes, f"ended with {code}: {run.said[-600:]}"
    if code == 0:
        assert "To continue" in run.said, run.said[-600:]
        assert "train_network.py --" in run.said.splitlines()[-1], "no command to go on with"
        assert list(run.out.glob(f"{NAME}-step*.safetensors")), "no LoRA was saved"
    assert run.events("step")[-1]["step"] < 33, "it did not stop"
    assert run.go() == 0, run.said
    assert "continuing" in run.said
    must_be_same(run, reference)


def _signals(numbers: tuple[signal.Signals, ...], run: Run, process: multiprocessing.Process) -> None:
    for number in numbers:
        os.kill(process.pid, number)
        time.sleep(0.02)


def _file(name: str, run: Run, process: multiprocessing.Process) -> None:
    (run.out / name).touch()


@case("stop", "the command that is printed goes on")
def _(series: Series) -> None:
    reference, run = series.reference(), series.run()
    process = run.start()
    run.wait_for_step(process, 4)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 0, run.said
    words = shlex.split(run.said.splitlines()[-1])
    code = ended(run.start_words(words[2:]))
    assert code == 0, run.said
    assert "continuing" in run.said
    must_be_same(run, reference)


case("stop", "Ctrl-C", is_short=True)(partial(_stop_case, partial(_signals, (signal.SIGINT,)), (0,)))
case("stop", "SIGTERM")(partial(_stop_case, partial(_signals, (signal.SIGTERM,)), (0,)))
case("stop", "Ctrl-C twice")(partial(_stop_case, partial(_signals, (signal.SIGINT, signal.SIGINT)), (0, 130)))


@case("stop", "a file named STOP")
def _(series: Series) -> None:
    reference, run = series.reference(), series.run()
    process = run.start(slowly)
    run.wait_for_step(process, 4)
    (run.out / "STOP").touch()
    assert ended(process) == 0, run.said
    assert not (run.out / "STOP").exists()
    assert run.events("step")[-1]["step"] < 33, "it did not stop"
    assert run.go() == 0, run.said
    must_be_same(run, reference)


@case("stop", "a file named SAVE")
def _(series: Series) -> None:
    reference, run = series.reference(), series.run()
    process = run.start(slowly)
    run.wait_for_step(process, 4)
    (run.out / "SAVE").touch()
    assert ended(process) == 0, run.said
    assert not (run.out / "SAVE").exists()
    assert len(list(run.out.glob(f"{NAME}-step*.safetensors"))) == 1
    must_be_same(run, reference)


@case("stop", "Ctrl-C at any moment")
def _(series: Series) -> None:
    reference = series.reference()
    for part in range(6):
        run = series.run()
        process = run.start()
        process.join((part + series.rng.random()) / 6 * reference.seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        code = ended(process)
        assert code in (0, 130), f"ended with {code}: {run.said[-600:]}"
        if not run.is_done():
            assert run.go() == 0, run.said
        must_be_same(run, reference)


@case("stop", "two runs at once get two names", is_short=True)
def _(series: Series) -> None:
    reference, run = series.reference(), series.run()
    other = series.run(out=run.out)
    processes = [run.start(), other.start()]
    assert [ended(process) for process in processes] == [0, 0], run.said + other.said
    must_be_same(run, reference)
    must_be_same(run, reference, name=f"{NAME}-2")


@case("stop", "of two runs at once, one killed and started again goes on with its own")
def _(series: Series) -> None:
    reference, run = series.reference(), series.run()
    other = series.run(out=run.out)
    first = run.start(slowly)
    run.wait_for_step(first, 4)
    second = other.start()
    while second.is_alive() and not other.events("step", f"{NAME}-2"):
        time.sleep(0.005)
    second.kill()
    assert ended(second) == -signal.SIGKILL
    time.sleep(0.5)  # the first saves a newer state meanwhile
    assert other.go() == 0, other.said
    assert ended(first) == 0, run.said
    assert not (run.out / f"{NAME}-3.safetensors").exists(), "it began anew"
    must_be_same(run, reference)
    must_be_same(run, reference, name=f"{NAME}-2")


@case("stop", "what has changed is told, and asks for a decision")
def _(series: Series) -> None:
    reference = series.reference()
    shutil.copytree(series.root / "data", series.root / "other data", dirs_exist_ok=True)
    run = Run(series.root / "other data", series.root / "changed")
    process = run.start()
    run.wait_for_step(process, 4)
    process.kill()
    ended(process)
    assert run.go(learning_rate=1e-5) == 2, run.said
    assert "learning_rate was 0.0005" in run.said, run.said
    assert 'resume = "new"' in run.said
    image = next(Path(run.options["train_data_dir"]).rglob("*.png"))
    before = image.read_bytes()
    from PIL import Image, ImageOps

    ImageOps.invert(Image.open(image).convert("RGB")).save(image)
    assert run.go() == 2, run.said
    assert "the images, masks or captions have changed" in run.said, run.said
    image.write_bytes(before)
    assert run.go(resume="new", max_train_steps=2, max_train_epochs=None) == 0, run.said
    assert (run.out / f"{NAME}-2.safetensors").exists()
    assert run.go() == 0, run.said
    must_be_same(run, reference)


# ---- The whole ----


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="3 kills, and the most telling cases")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--series", default="kill,oom,nan,disk,stop")
    chosen = parser.parse_args()
    seed = random.randrange(2**32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        series = Series(Path(folder), seed, chosen.short)
        for name in chosen.series.split(","):
            failed += _run_series(series, name)
    return 1 if failed else 0


def _run_series(series: Series, name: str) -> int:
    """Print what was survived; gives the number of what was not."""
    survived = attempted = 0
    skipped, began = 0, time.monotonic()
    if name == "kill":
        for moments, count, wrong in kills(series, 3 if series.is_short else 30):
            attempted += count
            survived += 0 if wrong else count
            print(f"  kill: {moments or 'none'}: {wrong or 'same'}", flush=True)
    for own, title, function, is_short in CASES:
        if own != name or (series.is_short and not is_short):
            continue
        try:
            function(series)
        except PermissionError as error:
            skipped += 1
            print(f"  {name}: {title}: SKIPPED: {error}", flush=True)
            continue
        except AssertionError as error:
            print(f"  {name}: {title}: FAILED: {error}", flush=True)
        else:
            survived += 1
            if not series.is_short:
                print(f"  {name}: {title}: survived", flush=True)
        attempted += 1
    also = f", {skipped} skipped" if skipped else ""
    print(f"{name}: survived {survived} of {attempted}{also} ({time.monotonic() - began:.0f} s)", flush=True)
    return attempted - survived


if __name__ == "__main__":
    raise SystemExit(main())
