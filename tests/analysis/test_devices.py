"""Which devices can be used."""

import pytest
import torch

from analysis.devices import check_device
from analysis.errors import UserError


def test_the_cpu_can_be_used():
    assert check_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["meta", "nonsense", "cpu:x", "cuda:97"])
def test_what_cannot_compute_is_refused_in_one_sentence(name):
    with pytest.raises(UserError, match=f"can't use {name} here.*leave out --device"):
        check_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="can't use cuda here"):
        check_device("cuda")
