"""The laboratory's command: runs claims, seed by seed, prints what was found and writes docs/laboratory.md."""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.laboratory import CLAIMS

DOCS = Path(__file__).parents[2] / "docs"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.laboratory", description=__doc__)
    parser.add_argument("--claims", type=lambda text: text.split(","), default=list(CLAIMS), help=", ".join(CLAIMS))
    parser.add_argument("--seeds", type=int, choices=range(2, 11), metavar="2..10", help="only the first of a claim's")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--keep", type=Path, help="folder for results, to go on after an interruption")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where laboratory.md and its pictures are written")
    options = parser.parse_args(argv)
    if unknown := set(options.claims) - set(CLAIMS):
        parser.error(f"there is no claim {', '.join(sorted(unknown))}; there are: {', '.join(CLAIMS)}")
    with tempfile.TemporaryDirectory() as scratch:
        run(options, options.keep or Path(scratch))
    return 0


def run(options: argparse.Namespace, folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported, here and in the processes to come
    from tests.laboratory import experiment, written

    begin = time.monotonic()
    claims = {name: experiment.claim_of(name) for name in options.claims}
    seeds = {name: claim.seeds[: options.seeds] for name, claim in claims.items()}
    found: dict[str, dict[int, dict]] = {name: {} for name in options.claims}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as workers:
        jobs = {
            workers.submit(experiment.run_seed, name, seed, folder): (name, seed)
            for name in options.claims
            for seed in seeds[name]
        }
        for done, job in enumerate(as_completed(jobs), 1):
            name, seed = jobs[job]
            found[name][seed] = job.result()
            print(f"{done}/{len(jobs)}  {name}, seed {seed}  ({time.monotonic() - begin:.0f} s)", flush=True)
    studies = [written.Study(name, claims[name], [found[name][seed] for seed in seeds[name]]) for name in claims]
    print(written.table(studies))
    written.write(studies, options.docs, folder)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
