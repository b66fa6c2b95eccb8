import functools
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from figure_runs import MEASURES, make_run
from matplotlib.container import BarContainer
from matplotlib.image import AxesImage
from PIL import Image

from analysis.subjects.networks import builtin
from figures import mask_map, weight_change
from figures.artefacts import in_order, open_run
from figures.bands import reach
from figures.misclassified import spread_out
from figures.relearning import steps_text
from figures.render import NAMES, render
from figures.save import png_bytes, save, svg_text
from figures.style import DIVERGING, FORGOTTEN, GOLD, Drawing

SVG = "{http://www.w3.org/2000/svg}"
LETTERS = tuple(f"Class {chr(65 + i)} long" for i in range(26))
MAKERS: dict[str, Callable[[Path], Path]] = {
    "digits": make_run,
    "letters": lambda folder: make_run(
        folder, "cnn", LETTERS, (3, 7), 9, "old", channels=3, side=12, golds=3, epochs=6
    ),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = MAKERS["digits"](tmp_path_factory.mktemp("digits"))
    for name in NAMES:
        save(draw(name, folder), folder / "figures", name)
    return folder


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = MAKERS["letters"](tmp_path_factory.mktemp("letters"))
    told: list[tuple[str, float]] = []
    paths = render(folder, progress=lambda name, share: told.append((name, share)))
    assert paths == [folder / "figures" / f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")]
    assert [name for name, _ in told] == [*NAMES, ""]
    assert told[-1][1] == 1.0
    return folder


@pytest.fixture(params=list(MAKERS))
def drawn(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@functools.cache
def draw(name: str, folder: Path) -> Drawing:
    drawing = importlib.import_module(f"figures.{name}").draw(open_run(folder))
    assert isinstance(drawing, Drawing)
    return drawing


@pytest.mark.parametrize("name", NAMES)
def test_files_are_whole_and_speak(drawn: Path, name: str) -> None:
    svg, png = (drawn / "figures" / f"{name}.{kind}" for kind in ("svg", "png"))
    root = ElementTree.parse(svg).getroot()
    title, words = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
    assert title
    assert title == importlib.import_module(f"figures.{name}").TITLE
    assert words
    assert len(words) > 60
    assert root.get("role") == "img"
    assert {root.get("aria-labelledby")} == {"figure-title figure-description"}
    text = svg.read_text()
    assert "<text" not in text, "letters are outlines, no font is needed"
    assert "dc:date" not in text

    with Image.open(png) as image:
        assert image.info["Description"] == words
        assert image.info["Title"] == title
        wide, high = (float(root.get(side, "").removesuffix("pt")) / 72 * 96 for side in ("width", "height"))
        assert abs(image.width - 2 * wide) <= 1
        assert abs(image.height - 2 * high) <= 1
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.std() > 10
    border = np.concatenate([pixels[:6].ravel(), pixels[-6:].ravel(), pixels[:, :6].ravel(), pixels[:, -6:].ravel()])
    assert border.min() > 250, "something is cut off at the figure's edge"


@pytest.mark.parametrize("name", NAMES)
def test_captions_carry_n_and_seed_and_stand_in_the_figure(digits: Path, name: str) -> None:
    drawing = draw(name, digits)
    assert re.search(r"\bn = \d", drawing.caption)
    assert re.search(r"\bseeds? \d", drawing.caption)
    texts = [text.get_text().replace("\n", " ") for text in drawing.figure.texts]
    assert drawing.caption.replace("\n", " ") in texts
    assert drawing.title in texts
    head, foot = drawing.figure.texts[-2:]
    top, bottom = (text.get_window_extent() for text in (head, foot))
    for legend in drawing.figure.legends:
        box = legend.get_window_extent()
        assert box.y1 <= top.y0
        assert box.x1 <= drawing.figure.bbox.x1
    for axes in drawing.figure.axes:
        if axes.get_visible():
            assert axes.get_window_extent().y0 > bottom.y1
            assert axes.get_window_extent().y1 < top.y0


def test_maps_share_one_symmetric_scale(drawn: Path) -> None:
    figure = draw("attribution", drawn).figure
    maps = [image for axes in figure.axes for image in axes.images if image.get_cmap().name == DIVERGING]
    run = open_run(drawn)
    assert len(maps) == 3 * len(run.picture("six.images"))
    limits = {image.get_clim() for image in maps}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    every = np.concatenate([run.picture(f"six.ig.{m}").sum(1).ravel() for m in ("original", "edited", "gold")])
    assert high == pytest.approx(np.quantile(np.abs(every), 0.995))
    assert f"n = {len(run.picture('six.images'))}" in draw("attribution", drawn).caption


def test_confusions_share_one_scale_and_show_the_counts(drawn: Path) -> None:
    run = open_run(drawn)
    figure = draw("confusion", drawn).figure
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) >= 3
    for image, name in zip(shown, ("original", "edited", "gold"), strict=False):
        assert image.get_clim() == (0, 1)
        counts = run.picture(f"confusion.{name}")
        assert np.allclose(image.get_array(), counts / counts.sum(1, keepdims=True))
        if len(run.classes) <= 12:
            texts = {(t.get_position(), t.get_text()) for t in image.axes.texts}
            row = run.forget[0]
            assert texts == {((c, row), str(k)) for c, k in enumerate(counts[row]) if k}


def test_projections_share_their_axes(drawn: Path) -> None:
    run = open_run(drawn)
    drawing = draw("umap", drawn)
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in drawing.figure.axes}) == 1
    titles = " ".join(axes.get_title(loc="right") for axes in drawing.figure.axes)
    assert "CKA 0.93, shift 1.25 (rest 0.20)" in titles
    for axes in drawing.figure.axes:
        points = sum(len(c.get_offsets()) for c in axes.collections)
        assert points == len(run.picture("umap.labels"))


def test_accuracies_while_forgetting_share_a_scale_and_are_the_recorded_ones(digits: Path) -> None:
    run = open_run(digits)
    drawing = draw("forgetting", digits)
    assert len({axes.get_ylim() for axes in drawing.figure.axes}) == 1
    for axes, values in zip(
        drawing.figure.axes, (run.history.overall, run.history.retain, run.history.forget), strict=True
    ):
        line = max(axes.lines, key=lambda one: len(one.get_xdata()))
        assert np.allclose(line.get_ydata(), values)
    gold = [run.measurements("retain accuracy")[0].values[name] for name in run.audit.golds]
    boxes = [
        patch.get_extents().transformed(drawing.figure.axes[1].transData.inverted())
        for patch in drawing.figure.axes[1].patches
    ]
    assert any(np.allclose((box.y0, box.y1), (min(gold), max(gold))) for box in boxes)


def test_the_overview_says_the_verdict(drawn: Path) -> None:
    run = open_run(drawn)
    drawing = draw("overview", drawn)
    texts = [text.get_text() for text in drawing.figure.findobj(matplotlib.text.Text)]
    assert "HIDDEN" in texts
    assert run.audit.audits["edited"].sentence in [" ".join(text.split("\n")) for text in texts]
    assert f"{run.edit.count:,} of {run.total:,} weights" in drawing.alt


def test_layers_are_counted_in_the_order_of_the_network(drawn: Path) -> None:
    run = open_run(drawn)
    network = "cnn" if "block1.0.weight" in run.weights else "mlp"
    model = builtin(network, run.picture("six.images").shape[1:], len(run.classes)).make()
    names = [name for name, _ in model.named_parameters()]
    assert list(run.weights) == names
    assert (
        in_order({name: p.detach() for name, p in reversed(list(model.named_parameters()))}, None, len(run.classes))
        == names
    )
    assert run.total == sum(p.numel() for p in model.parameters())
    masked, changed = mask_map.layer_counts(run), weight_change.changed_counts(run)
    assert sum(k for k, _ in masked.values()) == run.mask.count
    assert masked["head.weight"] == (int(run.mask.bits["head.weight"].sum()), model.head.weight.numel())
    assert sum(k for k, _ in changed.values()) == run.edit.count
    assert list(masked) == names


def test_the_first_layer_is_drawn_as_images_with_masked_weights_marked(digits: Path) -> None:
    run = open_run(digits)
    name, tiles = mask_map.first_layer(run)
    assert name == "hidden1.weight"
    per_unit = run.mask.bits[name].sum(1)
    assert [int(tile.inside.sum()) for tile in tiles] == sorted(per_unit.tolist(), reverse=True)[: len(tiles)]
    tile = tiles[0]
    assert np.allclose(tile.weights, run.weights[name][tile.unit].view(28, 28).numpy())
    painted = mask_map.tile_pixels(tile, matplotlib.colors.Normalize(-1, 1))
    size = painted.shape[0] // 28
    above = np.zeros_like(tile.inside)
    above[1:] = tile.inside[:-1]
    tops = painted[::size, size // 2 :: size]
    assert (tops[tile.inside & ~above] == mask_map.RIM).all(), "the mask is outlined"
    assert (tops[~tile.inside] > 0.7).all(), "the other weights are faded"
    centres = painted[size // 2 :: size, size // 2 :: size]
    wanted = matplotlib.colormaps[DIVERGING]((tile.weights + 1) / 2)[..., :3]
    assert np.allclose(centres[tile.inside], wanted[tile.inside])


def test_a_mask_outside_the_first_layer_is_said_to_be(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    mask = open_run(digits).mask
    type(mask)({"head.weight": mask.bits["head.weight"]}).save(folder / "mask.safetensors")
    run = open_run(folder)
    assert mask_map.layer_counts(run)["hidden1.weight"] == (0, 100352)
    titles = [text.get_text() for text in draw("mask_map", folder).figure.findobj(matplotlib.text.Text)]
    assert any("no weight is in the mask" in title for title in titles)


def test_the_histogram_holds_every_change(digits: Path) -> None:
    run = open_run(digits)
    drawing = draw("weight_change", digits)
    bars = next(c for c in drawing.figure.axes[0].containers if isinstance(c, BarContainer))
    drawn_count = sum(bar.get_height() for bar in bars)
    outside = (
        int(found[1].replace(",", "")) if (found := re.search(r"([\d,]+) changes? beyond", drawing.caption)) else 0
    )
    assert drawn_count + outside == run.edit.count
    low, high = drawing.figure.axes[0].get_xlim()
    assert low == -high
    assert drawing.figure.axes[0].get_yscale() == "log"


def test_the_band_reaches_as_far_as_the_audit_says(digits: Path) -> None:
    for measurement in open_run(digits).audit.measurements:
        if measurement.scale == "identity" and measurement.band is not None:
            band = measurement.band
            assert reach(band) == pytest.approx(abs(band.edge - band.mean) / band.sd)


def test_every_auditor_has_its_row_and_far_values_stay_on_the_axis(drawn: Path) -> None:
    run = open_run(drawn)
    axes = draw("bands", drawn).figure.axes[0]
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert {m.auditor for m in run.audit.measurements} <= labels
    low, high = axes.get_xlim()
    marks = [line for line in axes.lines if line.get_marker() not in {"None", "", None}]
    assert all(low <= x <= high for line in marks for x in line.get_xdata())
    assert any(line.get_marker() == ">" for line in marks), "a distance of 1e300 is drawn at the edge, as an arrow"
    reasons = [text.get_text() for text in axes.texts]
    uncounted = [m for m in run.audit.measurements if not m.counted]
    assert uncounted
    assert reasons.count("not counted: no power") == len(uncounted)


def test_probes_show_golds_as_dots_and_all_models(digits: Path) -> None:
    run = open_run(digits)
    figure = draw("probes", digits).figure
    found = [m for m in run.measurements("probe") if m.shots == 5]
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "5 forgotten examples")
    dots = [tuple(line.get_ydata()) for line in axes.lines if line.get_marker() == "." and line.get_color() == GOLD]
    assert [d for d in dots if d] == [tuple(m.values[g] for g in run.audit.golds) for m in found]
    for name in ("original", "edited", "untrained", "logit mask"):
        values = {m.values[name] for m in found}
        assert values <= {float(y) for line in axes.lines for y in line.get_ydata()}


def test_relearning_draws_the_recorded_curves(digits: Path) -> None:
    run = open_run(digits)
    drawing = draw("relearning", digits)
    first = run.measurements("relearn")[0]
    axes = drawing.figure.axes[0]
    for curve in first.curves.values():
        assert any(
            np.allclose(line.get_ydata(), curve[: len(line.get_ydata())])
            for line in axes.lines
            if len(line.get_ydata()) > 2
        )
    assert "logit mask never" in drawing.alt
    assert drawing.figure.axes[0].get_ylim() == drawing.figure.axes[1].get_ylim()


def test_steps_are_capped() -> None:
    assert steps_text(float("inf"), 40) == "never"
    assert steps_text(40, 40) == "never"
    assert steps_text(3.25, 40) == "3.2"


def test_ablation_draws_the_means_of_every_measure(digits: Path) -> None:
    run = open_run(digits)
    figure = draw("ablation", digits).figure
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(MEASURES) <= set(panels)
    assert "layer sweep: head" in panels
    for curve in run.localization.curves:
        if curve.control is None:
            axes = panels[curve.measure]
            means = [np.mean(curve.forget, axis=1), np.mean(curve.retain, axis=1)]
            assert all(
                any(np.allclose(line.get_ydata(), mean) for line in axes.lines if len(line.get_ydata()))
                for mean in means
            )
            assert axes.get_xscale() == "log"
    assert len({axes.get_xlim() for axes in figure.axes if axes.get_visible()}) == 1


def test_overlap_shows_every_pair_once_on_a_fixed_scale(digits: Path) -> None:
    run = open_run(digits)
    axes = draw("overlap", digits).figure.axes[0]
    image = axes.images[0]
    assert isinstance(image, AxesImage)
    assert image.get_clim() == (0, 1)
    n = len(run.localization.measures)
    assert len(axes.texts) == n * (n + 1) // 2


def test_misses_are_spread_over_the_answers() -> None:
    predicted = np.array([3] * 50 + [5] * 10 + [7])
    chosen = spread_out(predicted, 12)
    assert len(chosen) == 12
    assert set(predicted[chosen]) == {3, 5, 7}
    assert predicted[chosen].tolist() == sorted(predicted[chosen].tolist(), key=[3, 5, 7].index)
    assert spread_out(np.zeros(0, int), 5).tolist() == []
    assert sorted(spread_out(predicted, 100)) == list(range(61))


def test_images_stand_in_the_order_of_the_bars(digits: Path) -> None:
    grid, bars = draw("misclassified", digits).figure.axes
    above = [text.get_text() for text in grid.texts]
    counted = [text.get_text() for text in bars.get_yticklabels()]
    assert above == sorted(above, key=counted.index)


def test_the_last_step_of_the_edit_stands_on_the_axis(digits: Path) -> None:
    run = open_run(digits)
    ticks = [label.get_text() for label in draw("forgetting", digits).figure.axes[0].get_xticklabels()]
    assert ticks == ["0", "10", f"{run.history.steps[-1]:,.0f}"]


def test_of_many_classes_the_forgotten_is_among_the_names(tmp_path: Path) -> None:
    names = tuple(f"a class with a long name, number {i}" for i in range(40))
    axes = draw("confusion", make_run(tmp_path, classes=names, forget=(7,), side=6, golds=3, epochs=1)).figure.axes[0]
    marked = [label.get_text() for label in axes.get_yticklabels() if label.get_color() == FORGOTTEN]
    assert marked == ["a cla…er 7"]
    assert len(axes.get_yticks()) <= 21


def test_a_slot_taken_over_is_called_by_its_new_class(tmp_path: Path, digits: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    text = (folder / "run.json").read_text()
    text = text.replace('"slot": "own"', '"slot": "old"').replace('"incoming_label": null', '"incoming_label": 3')
    (folder / "run.json").write_text(text)
    run = open_run(folder)
    assert run.answers[6] == "3*"
    assert run.old_answers == ()
    labels = [label.get_text() for label in draw("confusion", folder).figure.axes[1].get_xticklabels()]
    assert labels[6] == "3*"
    assert draw("confusion", folder).caption.endswith('"3*": the new class, at the old output.')
    assert open_run(digits).old_answers == (6,)


def test_as_a_command_it_gives_the_same_bytes_in_another_process(digits: Path) -> None:
    files = {path: path.read_bytes() for path in (digits / "figures").glob("overview.*")}
    assert len(files) == 2
    for path in files:
        path.unlink()
    command = [sys.executable, "-m", "figures.overview", str(digits)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(digits / "figures" / name) for name in ("overview.svg", "overview.png")]
    assert {path: path.read_bytes() for path in files} == files


def test_the_same_drawing_saves_the_same_bytes_twice(digits: Path) -> None:
    drawing = draw("forgetting", digits)
    assert svg_text(drawing) == svg_text(drawing)
    assert png_bytes(drawing) == png_bytes(drawing)
    assert svg_text(draw("forgetting", digits)) == svg_text(drawing)
