import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.errors import UserError
from analysis.files import save_tensors
from analysis.scores import Mask, Scores, check_fraction, highest

SHAPES = st.lists(st.sampled_from([(), (1,), (7,), (3, 4), (2, 3, 2), (5, 1, 2, 2)]), min_size=1, max_size=4)
FRACTIONS = st.floats(0, 1, exclude_min=True)


def drawn(shapes, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    # Few levels give many ties, which is where ranking goes wrong.
    return {f"t{i}": torch.randint(levels, shape, generator=generator).double() for i, shape in enumerate(shapes)}


@st.composite
def parameter_scores(draw):
    values = drawn(draw(SHAPES), draw(st.integers(0, 99)), draw(st.sampled_from([2, 5, 1000])))
    return Scores(values, "parameter", "test")


@st.composite
def masks(draw):
    shapes = draw(SHAPES)
    seeds = draw(st.tuples(st.integers(0, 99), st.integers(0, 99)))
    return tuple(Mask({name: value > 0 for name, value in drawn(shapes, seed, 2).items()}) for seed in seeds)


def equal(a, b):
    return a.bits.keys() == b.bits.keys() and all(torch.equal(a.bits[name], b.bits[name]) for name in a.bits)


def contains(big, small):
    return equal(big & small, small)


def taken(fraction, total):
    """ceil(fraction * total), exact but for the rounding of decimal fractions such as 0.1."""
    return min(max(1, math.ceil(Fraction(fraction) * total - Fraction(1, 10**9))), total)


# --- highest


@given(
    st.lists(st.integers(-3, 3), max_size=40),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64]),
    st.data(),
)
def test_highest_takes_the_first_of_a_sorted_list(values, kind, data):
    take = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    bits = highest(torch.tensor(values, dtype=kind), take)
    assert bits.tolist() == [i in order[:take] for i in range(len(values))]


# --- top


@given(parameter_scores(), FRACTIONS)
def test_top_takes_the_promised_number(scores, fraction):
    total = sum(value.numel() for value in scores.values.values())
    assert scores.top(fraction).count == taken(fraction, total)
    for name, bits in scores.top(fraction, "layer").bits.items():
        assert int(bits.sum()) == taken(fraction, scores.values[name].numel())


@given(parameter_scores(), FRACTIONS, FRACTIONS, st.sampled_from(["global", "layer"]))
def test_a_larger_fraction_contains_a_smaller_one(scores, one, two, scope):
    assert contains(scores.top(max(one, two), scope), scores.top(min(one, two), scope))


@given(parameter_scores(), FRACTIONS)
def test_nothing_outside_scores_higher_than_anything_inside(scores, fraction):
    mask = scores.top(fraction)
    inside = torch.cat([value[mask.bits[name]].flatten() for name, value in scores.values.items()])
    outside = torch.cat([value[~mask.bits[name]].flatten() for name, value in scores.values.items()])
    assert not len(outside) or inside.min() >= outside.max()


def test_ties_are_broken_by_position():
    scores = Scores({"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.ones(3)}, "parameter", "test")
    assert scores.top(0.5).bits["a"].tolist() == [True, True, True]
    assert scores.top(0.5).bits["b"].tolist() == [False, False, False]


def test_many_ties_are_broken_by_position_too():
    mask = Scores({"a": torch.arange(20_000.0) % 3}, "parameter", "test").top(0.5)
    assert mask.bits["a"].nonzero().flatten().tolist() == sorted(
        sorted(range(20_000), key=lambda i: (-(i % 3), i))[:10_000]
    )


def test_a_tenth_of_thirty_is_three():
    assert Scores({"a": torch.arange(30.0)}, "parameter", "test").top(0.1).count == 3


def test_the_smallest_fraction_takes_one():
    assert Scores({"a": torch.arange(5.0)}, "parameter", "test").top(1e-12).bits["a"].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, 2, float("nan"), float("inf")])
def test_senseless_fractions(fraction):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        check_fraction(fraction)
    with pytest.raises(UserError, match="above 0 and at most 1"):
        Scores({"a": torch.ones(3)}, "parameter", "test").top(fraction)


def test_scores_of_an_input_are_no_mask():
    with pytest.raises(ValueError, match="input"):
        Scores({"input": torch.ones(2, 1, 3, 3)}, "input", "test").top(0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_must_be_finite(value):
    with pytest.raises(UserError, match=r"The fisher scores of bad are not finite"):
        Scores({"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, "parameter", "fisher")


# --- units


def model_shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_units_stand_for_their_incoming_weights_and_bias():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5, bias=False))
    units = {"0": torch.tensor([0.0, 9.0, 0.0]), "3": torch.tensor([8.0, 0, 0, 0, 7.0])}
    mask = Scores(units, "unit", "test", shapes=model_shapes(model)).top(3 / 8)
    assert {name: tuple(bits.shape) for name, bits in mask.bits.items()} == model_shapes(model)
    assert mask.bits["0.weight"].flatten(1).all(1).tolist() == [False, True, False]
    assert mask.bits["0.bias"].tolist() == [False, True, False]
    assert mask.bits["3.weight"].all(1).tolist() == [True, False, False, False, True]
    assert mask.count == 2 * 9 + 1 + 2 * 12


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_per_unit_sums_rows_and_bias_and_keeps_the_total(seed):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5, bias=False))
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(p.shape, generator=generator).double() for name, p in model.named_parameters()}
    units = Scores(values, "parameter", "test", "u", 0.5).per_unit()
    assert (units.kind, units.units, units.residual) == ("unit", "u", 0.5)
    assert units.shapes == model_shapes(model)
    for row in range(3):
        assert float(units.values["0"][row]) == pytest.approx(
            float(values["0.weight"][row].sum() + values["0.bias"][row])
        )
    total = sum(value.sum() for value in values.values())
    assert float(sum(value.sum() for value in units.values.values())) == pytest.approx(float(total))


class Scaled(nn.Module):
    """A module with a parameter that is neither weight nor bias, beside a weight of another length."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2))
        self.scale = nn.Parameter(torch.ones(3))
        self.shift = nn.Parameter(torch.ones(4))
        self.temperature = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize(
    "model",
    [nn.Linear(4, 3), Scaled(), nn.Sequential(Scaled(), nn.PReLU()), nn.Sequential(nn.ConvTranspose2d(2, 3, 1))],
)
def test_per_unit_loses_nothing_whatever_the_names(model):
    values = {name: torch.rand(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    units = Scores(values, "parameter", "test").per_unit()
    total = float(sum(value.sum() for value in values.values()))
    assert float(sum(value.sum() for value in units.values.values())) == pytest.approx(total)
    assert all(value.dim() == 1 for value in units.values.values())
    assert equal(units.top(1.0), Mask.everything(model))


def test_only_parameter_scores_are_summed_per_unit():
    with pytest.raises(ValueError, match="only scores of parameters"):
        Scores({"a": torch.ones(2)}, "unit", "test").per_unit()


# --- masks


@given(masks())
def test_set_algebra(pair):
    a, b = pair
    assert equal(a & b, b & a)
    assert equal(a | b, b | a)
    assert equal(~(a & b), ~a | ~b)
    assert equal(~~a, a)
    assert (a & b).count + (a | b).count == a.count + b.count
    assert a.count + (~a).count == a.total


@given(masks())
def test_iou_is_symmetric_bounded_and_one_only_for_equals(pair):
    a, b = pair
    assert a.iou(b) == b.iou(a)
    assert 0 <= a.iou(b) <= 1
    assert a.iou(a) == 1
    assert (a.iou(b) == 1) == equal(a, b)
    assert a.iou(~a) == (0 if a.total else 1)
    inside_a = {(n, i) for n, bits in a.bits.items() for i, bit in enumerate(bits.flatten().tolist()) if bit}
    inside_b = {(n, i) for n, bits in b.bits.items() for i, bit in enumerate(bits.flatten().tolist()) if bit}
    if inside_a | inside_b:
        assert a.iou(b) == len(inside_a & inside_b) / len(inside_a | inside_b)


def test_absent_parameters_are_outside():
    a, b = Mask({"x": torch.tensor([True, False])}), Mask({"y": torch.tensor([True])})
    assert (a & b).count == 0
    assert (a | b).count == 2
    assert a.iou(b) == 0
    assert (a & b).total == 3


@given(masks(), st.integers(0, 1000))
def test_random_like_keeps_every_count(pair, seed):
    mask = pair[0]
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    random = mask.random_like(seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.shares() == mask.shares()
    assert {n: b.shape for n, b in random.bits.items()} == {n: b.shape for n, b in mask.bits.items()}
    assert equal(mask.random_like(seed), random)


def test_random_like_is_uniform():
    mask = Mask({"x": torch.arange(10) < 3})
    hits = sum(mask.random_like(seed).bits["x"].double() for seed in range(2000))
    assert (hits / 2000 - 0.3).abs().max() < 0.05  # five standard errors


def test_shares_and_fraction():
    mask = Mask({"x": torch.tensor([[True, False], [False, False]]), "y": torch.zeros(0, dtype=torch.bool)})
    assert mask.shares() == {"x": 0.25, "y": 0}
    assert mask.fraction == 0.25
    assert Mask({}).fraction == 0
    assert Mask.everything(nn.Linear(2, 3)).count == 9


# --- files


@given(pair=masks(), scores=parameter_scores(), residual=st.none() | st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=25, deadline=None)
def test_saving_and_loading_gives_the_same(tmp_path_factory, pair, scores, residual):
    folder = tmp_path_factory.mktemp("s")
    pair[0].save(folder / "mask.safetensors")
    assert equal(Mask.load(folder / "mask.safetensors"), pair[0])
    saved = Scores(scores.values, "unit", "my-measure", "nats", residual, {"a.weight": (2, 3), "b": ()})
    saved.save(folder / "scores.safetensors")
    loaded = Scores.load(folder / "scores.safetensors")
    assert (loaded.kind, loaded.measure, loaded.units) == (saved.kind, saved.measure, saved.units)
    assert loaded.residual == residual
    assert loaded.shapes == saved.shapes
    assert loaded.values.keys() == saved.values.keys()
    assert all(torch.equal(loaded.values[name], value) for name, value in saved.values.items())


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    Mask({"a": torch.ones(2, dtype=torch.bool)}).save(path)
    with pytest.raises(UserError, match="holds no scores"):
        Scores.load(path)
    Scores({"a": torch.ones(2)}, "parameter", "test").save(path)
    with pytest.raises(UserError, match="is not a mask"):
        Mask.load(path)
    save_tensors(path, {"a": torch.ones(2)})
    for load in (Mask.load, Scores.load):
        with pytest.raises(UserError, match=r"x\.safetensors"):
            load(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    Scores({"a": torch.ones(20)}, "parameter", "test").save(path)
    path.write_bytes(path.read_bytes()[:-8])
    for load in (Mask.load, Scores.load):
        with pytest.raises(UserError, match="not a readable safetensors file"):
            load(path)


@pytest.mark.parametrize("header", [{"kind": "parameter"}, {"kind": "unit", "shapes": "{", "residual": "x"}])
def test_a_header_that_is_not_whole_is_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, header)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        Scores.load(path)


def test_a_mask_file_that_holds_numbers_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"kind": "mask"})
    with pytest.raises(UserError, match=r"x\.safetensors"):
        Mask.load(path)
