import importlib
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from fact_runs import GPT2, RELATIONS, make_fact_run
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from analysis.files import write_text
from figures.artefacts import Missing
from figures.bands import reach
from figures.facts.artefacts import FORGOTTEN_SHARE, KEPT_SHARE, PLANTED, FactRun, open_facts
from figures.facts.lens import MOST_ROWS, chosen_layers
from figures.facts.mask_layers import ELSEWHERE, short_count, weight_counts
from figures.facts.words import changed_token, in_block_order, place, token
from figures.render import FACT_NAMES, render
from figures.save import save, svg_text
from figures.style import DIVERGING, GOLD, Drawing
from unlearn.language.pictures import Touched

SVG = "{http://www.w3.org/2000/svg}"
NOT_QUICK = ("patching", "causal")
MAKERS: dict[str, Callable[[Path], Path]] = {
    "beatles": make_fact_run,
    "quick": lambda folder: make_fact_run(
        folder, 3, True, "Albert Einstein and his relatives", "neuron-ig", GPT2, "transformer.h", 5, 3
    ),
}


@pytest.fixture(scope="module")
def beatles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = MAKERS["beatles"](tmp_path_factory.mktemp("beatles"))
    for name in FACT_NAMES:
        save(draw(name, folder), folder / "figures", name)
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = MAKERS["quick"](tmp_path_factory.mktemp("quick"))
    paths = render(folder)
    names = [name for name in FACT_NAMES if name not in NOT_QUICK]
    assert paths == [folder / "figures" / f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    return folder


@pytest.fixture(params=list(MAKERS))
def drawn(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@cache
def draw(name: str, folder: Path) -> Drawing:
    drawing = importlib.import_module(f"figures.facts.{name}").draw(open_facts(folder))
    assert isinstance(drawing, Drawing)
    return drawing


@pytest.mark.parametrize("name", FACT_NAMES)
def test_files_are_whole_and_speak(drawn: Path, name: str) -> None:
    svg, png = (drawn / "figures" / f"{name}.{kind}" for kind in ("svg", "png"))
    if drawn.name.startswith("quick") and name in NOT_QUICK:
        assert not svg.exists()
        return
    root = ElementTree.parse(svg).getroot()
    title, words = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
    assert title == importlib.import_module(f"figures.facts.{name}").TITLE
    assert words
    assert len(words) > 60
    assert root.get("role") == "img"
    assert "<text" not in svg.read_text(), "letters are outlines, no font is needed"
    with Image.open(png) as image:
        assert image.info["Description"] == words
        assert image.info["Title"] == title
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.std() > 10
    border = np.concatenate([pixels[:6].ravel(), pixels[-6:].ravel(), pixels[:, :6].ravel(), pixels[:, -6:].ravel()])
    assert border.min() > 250, "something is cut off at the figure's edge"


@pytest.mark.parametrize("name", FACT_NAMES)
def test_captions_carry_n_and_seed_and_all_text_stands_in_the_figure(drawn: Path, name: str) -> None:
    if drawn.name.startswith("quick") and name in NOT_QUICK:
        with pytest.raises(Missing):
            draw(name, drawn)
        return
    drawing = draw(name, drawn)
    assert re.search(r"\bn = \d", drawing.caption)
    assert re.search(r"\bseeds? \d", drawing.caption)
    figure = drawing.figure
    texts = [text.get_text().replace("\n", " ") for text in figure.texts]
    assert drawing.caption in texts
    assert drawing.title in texts
    top, bottom = (text.get_window_extent() for text in figure.texts[-2:])
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.y1 <= top.y0
        assert box.x1 <= figure.bbox.x1
    for axes in figure.axes:
        if axes.get_visible():
            box = axes.get_tightbbox()
            assert box.y0 > bottom.y1
            assert box.y1 < top.y0
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("name", FACT_NAMES)
def test_the_same_run_gives_the_same_bytes(beatles: Path, name: str) -> None:
    drawing = importlib.import_module(f"figures.facts.{name}").draw(open_facts(beatles))
    assert svg_text(drawing) == (beatles / "figures" / f"{name}.svg").read_text()


def test_no_letters_lie_on_other_letters(drawn: Path) -> None:
    for name in FACT_NAMES:
        if drawn.name.startswith("quick") and name in NOT_QUICK:
            continue
        for axes in [axes for axes in draw(name, drawn).figure.axes if axes.get_visible()]:
            for labels, (low, high), along in (
                (axes.get_xticklabels(), sorted(axes.get_xlim()), 0),
                (axes.get_yticklabels(), sorted(axes.get_ylim()), 1),
            ):
                seen = [label for label in labels if label.get_text() and low <= label.get_position()[along] <= high]
                for one, two in itertools.pairwise([label.get_window_extent() for label in seen]):
                    assert not one.overlaps(two), (name, [label.get_text() for label in seen])


def test_patching_maps_are_signed_and_name_every_position(beatles: Path) -> None:
    run = open_facts(beatles)
    patching = run.words.patching
    figure = draw("patching", beatles).figure
    maps = [axes for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == DIVERGING]
    maps = [axes for axes in maps if axes.get_title(loc="left")]
    assert len(maps) == 4
    for axes, site in zip(maps, ("resid", "attn", "mlp", "head"), strict=True):
        image = axes.images[0]
        values = run.picture(f"exact.{site}")
        assert np.array_equal(image.get_array(), values)
        assert image.get_clim() == (-np.abs(values).max(), np.abs(values).max())
    labels = [label.get_text() for label in maps[0].get_xticklabels()]
    assert labels == [changed_token(a, b) for a, b in zip(patching.clean, patching.corrupt, strict=True)]
    assert "⏎ / Stones" in labels
    assert [axes.get_title(loc="right") for axes in maps] == ["ρ 0.93", "ρ 0.71", "ρ -0.20", "ρ undefined"]


def test_the_highest_units_are_named(drawn: Path) -> None:
    run = open_facts(drawn)
    right = draw("neurons", drawn).figure.axes[1]
    labels = [label.get_text() for label in right.get_yticklabels()]
    best = max(run.scores.values, key=lambda name: float(run.scores.values[name].max()))
    block, matrix = place(best)
    kind = "neuron" if run.scores.measure == "neuron-ig" else "row"
    assert labels[0] == f"block {block} {matrix}, {kind} {int(run.scores.values[best].argmax())}"
    assert len(labels) == 20
    shares = [bar.get_width() for bar in draw("neurons", drawn).figure.axes[0].patches]
    assert sum(shares) == pytest.approx(1)


def test_masked_and_changed_weights_add_up(drawn: Path) -> None:
    run = open_facts(drawn)
    counts = weight_counts(run)
    assert counts.inside.sum() == run.mask.count
    assert counts.changed.sum() == run.edit.count
    assert counts.size.sum() == run.mask.total
    assert (counts.changed <= counts.inside).all()
    name = next(n for n, bits in run.mask.bits.items() if bits.any())
    block, matrix = place(name)
    assert counts.inside[counts.matrices.index(matrix), block] == int(run.mask.bits[name].sum())
    image = draw("mask_layers", drawn).figure.axes[0].images[0]
    assert isinstance(image, AxesImage)
    assert np.ma.count(image.get_array()) == np.count_nonzero(counts.inside)


def test_a_mask_over_everything_has_a_column_for_what_is_in_no_block(beatles: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beatles, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    told = FactRun(folder).words
    embedded = {"model.embed_tokens.weight": Touched(size=21, inside=21, changed=0)}
    write_text(folder / "pictures.json", told.model_copy(update={"touched": told.touched | embedded}).model_dump_json())
    counts = weight_counts(FactRun(folder))
    assert counts.columns[-1] == ELSEWHERE
    assert counts.inside[counts.matrices.index("model.embed_tokens"), -1] == 21
    assert "model.embed_tokens" in importlib.import_module("figures.facts.mask_layers").draw(FactRun(folder)).alt


def test_the_lens_shows_the_last_layer_and_no_more_rows_than_can_be_read(drawn: Path) -> None:
    run = open_facts(drawn)
    panels = [axes for axes in draw("lens", drawn).figure.axes if axes.texts]
    assert len(panels) == 2
    rows = chosen_layers(len(run.words.lens.original))
    for axes, grid in zip(panels, (run.words.lens.original, run.words.lens.edited), strict=True):
        assert len(axes.texts) == len(rows) * len(run.words.lens.tokens)
        assert axes.images[0].get_clim() == (0, 1)
        first = axes.texts[0].get_text()
        assert token(grid[0][0]).startswith(first.rstrip("…"))
    for layers in (1, 16, 17, 31, 33, 97):
        chosen = chosen_layers(layers)
        assert len(chosen) <= MOST_ROWS
        assert chosen[-1] == layers - 1
        assert chosen == sorted(chosen)
    assert chosen_layers(16) == list(range(16))
    assert chosen_layers(31) == list(range(0, 31, 2))


def test_letters_in_a_cell_of_the_lens_stay_in_it(drawn: Path) -> None:
    for axes in draw("lens", drawn).figure.axes:
        for text in axes.texts:
            assert text.get_window_extent().width < axes.get_window_extent().width / len(axes.get_xticks())


def test_relations_show_original_edited_and_twin(drawn: Path) -> None:
    survival = open_facts(drawn).words.survival
    axes = draw("survival", drawn).figure.axes[0]
    found = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert found["original"] == survival.original
    assert found["edited"] == survival.edited
    assert found["twins, mean"] == survival.twin
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.rpartition(" (n = ")[2] for label in labels] == [f"{n})" for n in survival.facts]
    assert len(labels) == len(RELATIONS)
    assert labels[0] == "birth city (n = 9)"


def test_the_tradeoff_has_every_model_and_the_edges_of_the_bands(drawn: Path) -> None:
    run = open_facts(drawn)
    axes = draw("tradeoff", drawn).figure.axes[0]
    points = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata())}
    x, y = run.asked(FORGOTTEN_SHARE), run.asked(KEPT_SHARE)
    models = [name for name in run.audit.audits if name not in PLANTED]
    assert {"original", "edited"} < set(models)
    low, high = axes.get_xlim()
    for name in models:
        assert (x.values[name], y.values[name]) in points
        assert low <= x.values[name] <= high
    for name in PLANTED:
        assert name not in draw("tradeoff", drawn).alt
    assert x.band.edge in {line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())}
    assert y.band.edge in {line.get_ydata()[0] for line in axes.lines if len(line.get_ydata())}


def test_relearning_draws_the_recorded_curves(drawn: Path) -> None:
    run = open_facts(drawn)
    axes = draw("relearn", drawn).figure.axes[0]
    (found,) = run.measurements("relearn")
    lines = [list(line.get_ydata()) for line in axes.lines]
    thin = [line for line in axes.lines if line.get_color() == GOLD and line.get_linewidth() < 1]
    assert len(thin) == sum(gold in found.curves for gold in run.audit.golds) >= 3
    for name, curve in found.curves.items():
        assert (curve in lines) == (name not in PLANTED)


def test_the_maps_share_their_axes_and_say_the_similarity(drawn: Path) -> None:
    run = open_facts(drawn)
    figure = draw("fact_map", drawn).figure
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    for axes, name in zip(figure.axes, ("original", "edited"), strict=True):
        points = np.concatenate([c.get_offsets() for c in axes.collections[::-1]])
        assert np.allclose(points, run.picture(f"map.{name}"))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == f"{run.forgotten} (n = 20): CKA 0.410"


def test_bands_have_a_row_per_auditor_and_say_how_well_it_is_calibrated(drawn: Path) -> None:
    run = open_facts(drawn)
    axes = draw("fact_bands", drawn).figure.axes[0]
    assert {m.auditor for m in run.audit.measurements} <= {label.get_text() for label in axes.get_yticklabels()}
    notes = [text.get_text() for text in axes.texts]
    assert sum("not counted" in note for note in notes) == sum(not m.counted for m in run.audit.measurements)
    assert sum("AUC" in note for note in notes) == len(run.audit.calibration)
    edges = {round(float(line.get_xdata()[0]), 6) for line in axes.lines if len(line.get_xdata()) == 2}
    assert {round(reach(m.band), 6) for m in run.audit.measurements} <= edges


def test_ablation_draws_the_means_of_every_measure_and_names_blocks(beatles: Path) -> None:
    run = open_facts(beatles)
    panels = {axes.get_title(loc="left"): axes for axes in draw("causal", beatles).figure.axes}
    assert {*run.causes.measures, "layer sweep: block 0", "layer sweep: block 25"} <= set(panels)
    for curve in run.causes.curves:
        if curve.control is None:
            lines = [list(line.get_ydata()) for line in panels[curve.measure].lines]
            assert np.mean(curve.forget, axis=1).tolist() in lines
            assert np.mean(curve.retain, axis=1).tolist() in lines


def test_the_overview_says_the_verdict(drawn: Path) -> None:
    run = open_facts(drawn)
    drawing = draw("overview", drawn)
    texts = [text.get_text() for text in drawing.figure.findobj(Text)]
    edited = run.audit.audits["edited"]
    assert edited.verdict.upper() in texts
    assert edited.sentence in [" ".join(text.split("\n")) for text in texts]
    assert drawing.alt.startswith(edited.sentence)
    assert f"{run.edit.count:,} of {run.total:,} weights" in drawing.alt


def test_as_a_command_it_gives_the_same_bytes_in_another_process(beatles: Path) -> None:
    files = {path: path.read_bytes() for path in (beatles / "figures").glob("overview.*")}
    assert len(files) == 2
    for path in files:
        path.unlink()
    command = [sys.executable, "-m", "figures.facts.overview", str(beatles)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(beatles / "figures" / name) for name in ("overview.svg", "overview.png")]
    assert {path: path.read_bytes() for path in files} == files


def test_names_of_weights_are_taken_apart() -> None:
    assert place("model.layers.12.mlp.down_proj.weight") == (12, "mlp.down_proj")
    assert place("transformer.h.3.mlp.c_fc.bias") == (3, "mlp.c_fc.bias")
    assert place("model.embed_tokens.weight") == (None, "model.embed_tokens")
    shuffled = ["mlp.down_proj", "self_attn.o_proj", "mlp.up_proj", "self_attn.q_proj", "mlp.gate_proj", "x"]
    assert in_block_order(shuffled) == [
        "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "x",
    ]  # fmt: skip
    assert in_block_order(["mlp.c_proj", "attn.c_proj", "mlp.c_fc", "attn.c_attn"]) == [
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    ]  # fmt: skip


def test_tokens_can_be_seen() -> None:
    assert token(" Liverpool") == "Liverpool"
    assert token("\n\n") == "⏎⏎"
    assert token("  ") == "␣"
    assert token("") == "␣"
    assert token("\u4e2d\x00") == "□□"
    assert len(token("a" * 99, 8)) == 8
    assert changed_token(" a", " b") == "a / b"
    assert changed_token(" a", " a") == "a"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (950, "950"), (2500, "2.5k"), (150000, "150k"), (2e6, "2M")])
def test_short_counts(value: float, text: str) -> None:
    assert short_count(value) == text


def test_drawing_needs_no_letters_that_the_font_lacks(drawn: Path, recwarn: pytest.WarningsRecorder) -> None:
    importlib.import_module("figures.facts.lens").draw(open_facts(drawn))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert matplotlib.rcParams["svg.hashsalt"] != "yesterday"
