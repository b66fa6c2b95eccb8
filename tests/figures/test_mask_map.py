import pytest
from matplotlib.figure import Figure

from figures.mask_map import draw_shares


@pytest.mark.parametrize(
    ("inside", "end", "tracks"),
    [((0, 65), 1.0, True), ((1, 6), 0.1, False), ((0, 3), 0.05, False), ((0, 0), 0.2, False)],
)
def test_only_an_axis_of_whole_layers_has_tracks(inside: tuple[int, ...], end: float, tracks: bool) -> None:
    axes = Figure().subplots()
    draw_shares(axes, {f"layer {i}": (k, 100) for i, k in enumerate(inside)})
    assert axes.get_xticks().tolist() == [0, end / 2, end]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [1.0] * (2 * tracks) + [k / 100 for k in inside]
