"""How long one waits before anything happens: the command line's help and the import of the library."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tests.benchmarks.timing import Row, row_of

ROUNDS = 9
BARE = ("-c", "pass")


def waited(arguments: Sequence[str]) -> float:
    """Run Python once in a process of its own and give the seconds it took."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def printed(arguments: Sequence[str]) -> str:
    """Run Python once and give what it prints."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def timed(what: str, arguments: Sequence[str], most: float, equal: str) -> Row:
    """Time one call beside Python itself; the aim is in seconds, so that the note says whether it is reached."""
    waited(arguments)
    mine: list[float] = []
    bare: list[float] = []
    for turn in range(ROUNDS):
        for found, called in ((mine, arguments), (bare, BARE))[:: 1 if turn % 2 == 0 else -1]:
            found.append(waited(called))
    taken = statistics.median(mine)
    note = f"The aim is at most {most:g} s: {'yes' if taken <= most else 'no'}, {taken:.2f} s."
    return row_of(what, "`python -c pass`", mine, bare, equal, "cost", None, note)


def rows() -> Iterator[Row]:
    """Time both, each in fresh processes."""
    helped = ("-m", "yesterday", "--help")
    for word in ("forget", "run", "audit", "locate"):
        assert word in printed(helped), f"the help says nothing of {word}"
    yield timed("`yesterday --help`", helped, 0.4, "the help names the commands")
    loaded = printed(("-c", "import sys, analysis; print(*sys.modules)")).split()
    assert "analysis" in loaded
    heavy = sorted({"torch", "transformers", "transformer_lens", "captum", "umap", "sklearn"} & set(loaded))
    yield timed("`import analysis`", ("-c", "import analysis"), 0.3, f"loads {', '.join(heavy) or 'no heavy library'}")
