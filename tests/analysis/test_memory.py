import subprocess
import sys

import pytest

from analysis import memory

FAULTS = """
import resource, sys
import torch
from analysis.memory import keep_freed_memory
assert sys.argv[1] == "off" or keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step(i):
    # Larger than whatever was freed before: glibc's own threshold rises with what is freed, and never helps.
    torch.ones(2**21 + i * 2**12)
for i in range(8):
    step(i)
before = faults()
for i in range(8, 32):
    step(i)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_handed_out_again_without_new_pages() -> None:
    fresh, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("off", "on")
    )
    assert kept < fresh / 2


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
