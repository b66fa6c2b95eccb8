"""What a run lets an edit change."""

from pathlib import Path

import pytest
import torch

from analysis.errors import UserError
from analysis.subjects.build import SubjectConfig
from unlearn.documents import RunConfig
from unlearn.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    subject = SubjectConfig(forget=("6",), replace_with="3", model="cnn", epochs=1)
    config = RunConfig(subject=subject, measure="contrast", fraction=0.2)
    made = Run(config, tmp_path_factory.mktemp("run"), lambda *_: None)
    made.original()
    made.locate(("gradient",), check_causes=False)
    return made


@pytest.mark.parametrize("place", ["contrast", "gradient", "random"])
def test_a_mask_has_room_for_statistics_and_the_new_class_within_its_share(run: Run, place: str) -> None:
    mask = run.cut(place)
    if place != "random":
        assert mask.bits["norm3.weight"].all()
        assert mask.bits["norm3.bias"].all()
        assert mask.bits["head.weight"][3].all()
        assert mask.bits["head.bias"][3]
    assert 0.18 < mask.fraction <= 0.2001
    assert not mask.bits["head.weight"].all()


def test_every_place_is_cut_by_what_it_is_named_after(run: Run) -> None:
    assert run.cut("none").fraction == 1.0
    own, other, random = (run.cut(place) for place in ("contrast", "gradient", "random"))
    assert own.iou(other) < 0.9
    assert all(int(random.bits[name].sum()) == int(bits.sum()) for name, bits in own.bits.items())
    assert random.iou(own) < 0.6
    assert all(torch.equal(run.cut("random").bits[name], bits) for name, bits in random.bits.items())


def test_only_what_was_asked_for_is_scored(run: Run) -> None:
    assert {path.stem for path in (run.folder / "scores").glob("*.safetensors")} == {"contrast", "gradient"}


def test_a_measure_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    config = RunConfig(subject=SubjectConfig(forget=("6",)), measure="nowhere")
    with pytest.raises(UserError, match="no measure 'nowhere'"):
        _ = Run(config, tmp_path, lambda *_: None).measure
