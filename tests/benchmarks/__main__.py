"""`make bench`: every benchmark, or those named; prints the rows and writes results/ and the tables of two pages."""

import argparse
import importlib
import os
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROOT = HERE.parent.parent
FRONT, PAGE = ROOT / "README.md", ROOT / "docs" / "speed.md"
BENCHMARKS = ("fisher", "patching", "neurons", "steps", "audit", "forgetting", "startup")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=BENCHMARKS, help=f"any of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)

    import torch

    from analysis.memory import keep_freed_memory
    from tests.benchmarks.report import brief, cells, paste, table, write

    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    RESULTS.mkdir(exist_ok=True)
    for name in chosen.names:
        begun = time.perf_counter()
        rows = []
        print(f"{name} ...", flush=True)
        for row in importlib.import_module(f"tests.benchmarks.{name}").rows():
            rows.append(row)
            told = cells({**asdict(row), "ratio": row.ratio, "reached": row.reached})
            print("  " + " | ".join(told), flush=True)
            if row.note:
                print("    " + row.note, flush=True)
        write(RESULTS, name, rows)
        print(f"  {time.perf_counter() - begun:.0f} s", flush=True)
    paste(FRONT, brief(RESULTS))
    paste(PAGE, table(RESULTS))


if __name__ == "__main__":
    main()
