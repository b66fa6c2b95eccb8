"""How tests run: one thread a process, since more threads than cores slow all down; a file's tests stay together."""

from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)

APART = "test_notebooks.py"


class ByFile(LoadScopeScheduling):
    """The tests of a file stay in one process, which makes what they share once; but each notebook may go anywhere."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.endswith(APART) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Say how tests are dealt out, whatever `--dist` says: its own "loadgroup" has no effect under pytest 9."""
    return ByFile(config, log)
