"""Scripts in processes of their own that have torch already.

`python FILE` imports torch, diffusers and transformers for 4 to 6 CPU seconds, longer than most scripts then work. Here
one clean process imports them once and is forked for each script; our own code is imported anew by each.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
THIRD_PARTY = [
    "accelerate", "cv2", "PIL.Image", "pytest", "safetensors.torch", "scipy.stats", "torch", "torch.distributed",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion", "transformers.models.clip.modeling_clip",
]  # fmt: skip
CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
if CAN_FORK:
    CONTEXT.set_forkserver_preload(THIRD_PARTY)


class Script:
    """A script that has been started.

    Args:
        file: the script.
        words: its command line.
        folder: where it is started.
        environment: what differs from ours.
    """

    def __init__(self, file: Path, *words: str, folder: Path = PROJECT, environment: dict[str, str] | None = None):
        with tempfile.NamedTemporaryFile(prefix="said", suffix=".txt", delete=False) as log:
            self._log = Path(log.name)
        variables = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | (environment or {})
        self.process = CONTEXT.Process(target=_run, args=(str(file), words, str(folder), variables, str(self._log)))
        self.process.start()

    def ended(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for it: the exit code and all that it said. Raises TimeoutError."""
        self.process.join(seconds)
        if is_late := self.process.is_alive():
            self.process.kill()
            self.process.join()
        said = self._log.read_text(encoding="utf-8", errors="replace")
        self._log.unlink()
        if is_late:
            raise TimeoutError(f"took longer than {seconds} s:\n{said}")
        return self.process.exitcode, said


def _run(file: str, words: tuple[str, ...], folder: str, variables: dict[str, str], log: str) -> None:
    """In the child: what `python FILE WORDS` does. Its modules are its own: ours are not on its path."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    sys.argv = [file, *words]
    elsewhere = [place for place in sys.path if place and not Path(place).is_relative_to(PROJECT)]
    sys.path[:] = [str(Path(file).resolve().parent), *elsewhere]
    runpy.run_path(file, run_name="__main__")
