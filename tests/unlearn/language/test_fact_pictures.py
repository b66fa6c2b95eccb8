import torch

from analysis.scores import Mask
from unlearn.edit import Edit
from unlearn.language.pictures import Touched, touched


def test_every_matrix_in_the_mask_or_changed_is_counted() -> None:
    before = {name: torch.zeros(2, 3) for name in ("c", "b", "a", "d")}
    after = before | {"b": torch.tensor([[0.0, 1, 0], [2, 0, 0]]), "a": torch.ones(2, 3)}
    mask = Mask({"c": torch.ones(2, 3).bool(), "b": torch.tensor([[0, 1, 1], [1, 0, 0]]).bool()})
    found = touched({name: weight.numel() for name, weight in before.items()}, mask, Edit.between(before, after))
    assert list(found.items()) == [
        ("c", Touched(size=6, inside=6, changed=0)),
        ("b", Touched(size=6, inside=3, changed=2)),
        ("a", Touched(size=6, inside=0, changed=6)),
    ]
