import pytest
from torch import nn

from analysis.subjects.build import SubjectConfig, build_subject
from analysis.training import seeded
from unlearn.room import always_free


@pytest.mark.parametrize(
    ("model", "incoming", "slot", "free"),
    [
        ("mlp", None, "own", {}),
        ("mlp", "3", "own", {"head.weight": {3}, "head.bias": {3}}),
        ("mlp", "3", "old", {"head.weight": {6}, "head.bias": {6}}),
        ("cnn", None, "own", "norms"),
        ("cnn", "3", "own", "norms and the output of 3"),
    ],
)
def test_the_new_class_and_the_normalisations_are_free_and_nothing_else(model, incoming, slot, free) -> None:
    subject = build_subject(SubjectConfig(model=model, forget=("6",), replace_with=incoming, slot=slot), 0)
    network = seeded(subject.network.make, 0)
    mask = always_free(network, subject)
    named = dict(network.named_parameters())
    assert mask.bits.keys() == named.keys()
    if isinstance(free, str):
        norms = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert norms
        whole = {name for name in named if name.rpartition(".")[0] in norms}
        rows = {"head.weight": {3}, "head.bias": {3}} if incoming else {}
    else:
        whole, rows = set(), free
    for name, bits in mask.bits.items():
        if name in whole:
            assert bits.all()
        else:
            assert {int(row) for row in bits.nonzero()[:, 0]} == rows.get(name, set())
            assert all(bits[row].all() for row in rows.get(name, ()))
