import pytest
import torch
from torch import nn

from analysis.attribution.recording import plan
from analysis.attribution.running import undisturbed


class Leaking(nn.Module):
    """What it puts out is that of each sample alone, but a gradient goes from one sample to another."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(3, 4), nn.Linear(4, 2)
        self.source, self.target = source, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.below(x).tanh()
        if len(x) > 1 and self.source != self.target:
            leak = hidden[self.source] - hidden[self.source].detach()
            hidden = torch.stack([row + leak if i == self.target else row for i, row in enumerate(hidden)])
        return self.above(hidden)


@pytest.mark.parametrize(("source", "target", "good"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_samples_that_depend_on_each_other_are_noticed_in_both_directions(source: int, target: int, good: bool) -> None:
    torch.manual_seed(0)
    model, x = Leaking(source, target).double(), torch.randn(5, 3, dtype=torch.float64)
    with undisturbed(model, parameters=True):
        found = plan(model, x, model(x[:1])).good
    assert {"above.weight", "above.bias"} <= found
    assert {"below.weight", "below.bias"} & found == ({"below.weight", "below.bias"} if good else set())
