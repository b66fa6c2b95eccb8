import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from analysis.errors import UserError
from analysis.files import save_tensors
from unlearn.edit import Edit, apply_to_file, fingerprint

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]


def raw(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def same(one, other):
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and raw(one[n]) == raw(other[n]) for n in one
    )


def noise(shape, dtype, generator):
    # Random bytes: NaN, infinities, -0.0 and denormals included.
    count = int(torch.tensor(shape).prod()) if shape else 1
    data = torch.randint(0, 256, (count * torch.empty((), dtype=dtype).element_size(),), generator=generator)
    return data.to(torch.uint8).view(dtype).reshape(shape)


@st.composite
def state_pairs(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    before, after = {}, {}
    for i in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        name = f"{draw(st.sampled_from(['z', 'a.b', 'w/x']))}{i}"
        before[name] = noise(shape, dtype, generator)
        other = noise(shape, dtype, generator)
        share = draw(st.sampled_from([0.0, 0.3, 1.0]))
        pick = torch.rand(shape, generator=generator) < share
        after[name] = torch.where(pick, other, before[name]) if before[name].numel() else before[name].clone()
    return before, after


def slow_count(before, after):
    count = 0
    for name in before:
        size = before[name].element_size()
        one, other = raw(before[name]), raw(after[name])
        count += sum(one[i : i + size] != other[i : i + size] for i in range(0, len(one), size))
    return count


@settings(max_examples=60, deadline=None)
@given(state_pairs())
def test_apply_and_revert_are_exact_for_every_type_and_bit_pattern(pair):
    before, after = pair
    edit = Edit.between(before, after)
    assert edit.count == slow_count(before, after)
    assert edit.total == sum(t.numel() for t in before.values())
    copy = {n: t.clone() for n, t in before.items()}
    applied = edit.apply(before)
    assert same(applied, after)
    assert same(before, copy)
    assert same(edit.revert(applied), before)


@settings(max_examples=25, deadline=None)
@given(state_pairs(), st.dictionaries(st.text("abc", max_size=3), st.text("xyz", max_size=5), max_size=2))
def test_apply_then_revert_gives_the_same_file_bytes(pair, metadata):
    before, after = pair
    with tempfile.TemporaryDirectory() as folder:
        model, edit, out, back = (Path(folder) / f"{n}.safetensors" for n in ("model", "edit", "out", "back"))
        save_file({n: t.contiguous() for n, t in before.items()}, str(model), metadata=metadata or None)
        Edit.between(before, after).save(edit)
        apply_to_file(edit, model, out)
        patched = load_file(str(out))
        assert all(raw(patched[n]) == raw(after[n]) for n in after)
        apply_to_file(edit, out, back, revert=True)
        assert back.read_bytes() == model.read_bytes()


@settings(max_examples=60, deadline=None)
@given(state_pairs())
def test_an_edit_of_strength_0_or_1_is_exact_for_every_type_and_bit_pattern(pair):
    before, after = pair
    edit = Edit.between(before, after)
    for strength, expected in ((0, before), (1.0, after)):
        found = edit.partly(before, strength)
        assert set(found) == set(edit.changes)
        assert same(found, {name: expected[name] for name in found})


def test_an_edit_of_some_strength_lies_on_the_straight_line():
    before = {"w": torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "count": torch.tensor(10), "kept": torch.ones(2)}
    after = {"w": torch.tensor([[2.0, -2.0], [3.0, -4.0]]), "count": torch.tensor(21), "kept": torch.ones(2)}
    found = Edit.between(before, after).partly(before, 0.25)
    assert torch.equal(found["w"], torch.tensor([[1.25, -2.0], [3.0, 2.0]]))
    assert torch.equal(found["count"], torch.tensor(13))
    assert set(found) == {"w", "count"}
    assert before["w"][0, 0] == 1.0


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    before = {"w": torch.randn(6, 5), "b": torch.zeros(6, dtype=torch.bfloat16), "n": torch.tensor(7)}
    after = {"w": before["w"].clone(), "b": before["b"].clone(), "n": torch.tensor(8)}
    after["w"][2, 3] = 9.0
    after["b"][4] = -0.0
    save_tensors(tmp_path / "model.safetensors", before, {"made": "by hand"})
    Edit.between(before, after).save(tmp_path / "edit.safetensors")
    return tmp_path, before, after


def test_an_edit_is_sparse_and_survives_its_file(files):
    folder, before, after = files
    edit = Edit.load(folder / "edit.safetensors")
    assert edit.counts() == {"w": 1, "b": 1, "n": 1}
    assert edit.count == 3
    assert edit.fraction == 3 / 37
    assert edit.changes["w"].indices.tolist() == [13]
    assert edit.changes["w"].new.tolist() == [9.0]
    assert edit.changes["w"].old.tolist() == [before["w"][2, 3].item()]
    assert edit.fingerprint == fingerprint(before)
    assert same(edit.apply(before), after)


def test_fingerprint_sees_every_kind_of_change_but_not_the_order():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([0.0, 1.0])}
    mine = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == mine
    variants = [
        {**state, "b": torch.tensor([-0.0, 1.0])},
        {**state, "a": state["a"].view(3, 2)},
        {**state, "b": state["b"].view(torch.int32)},
        {"a": state["a"], "c": state["b"]},
        {**state, "c": torch.empty(0)},
        {"a": state["a"]},
    ]
    assert len({mine, *(fingerprint(v) for v in variants)}) == len(variants) + 1


def test_a_strided_tensor_is_edited_by_its_own_order():
    before = {"w": torch.arange(6.0).view(2, 3).t()}
    after = {"w": before["w"].clone()}
    after["w"][2, 0] = -1.0
    edit = Edit.between(before, after)
    assert edit.changes["w"].indices.tolist() == [4]
    assert torch.equal(edit.apply(before)["w"], after["w"])


def test_the_wrong_model_is_refused(files):
    folder, before, after = files
    edit = Edit.load(folder / "edit.safetensors")
    stranger = {**before, "n": torch.tensor(99)}
    with pytest.raises(UserError, match="another base model"):
        edit.apply(stranger)
    with pytest.raises(UserError, match="has the edit already"):
        edit.apply(after)
    with pytest.raises(UserError, match="nothing to revert"):
        edit.revert(before)
    with pytest.raises(UserError, match="not what the edit made"):
        edit.revert(stranger)
    with pytest.raises(UserError, match="same architecture"):
        Edit.between(before, {"w": before["w"]})
    with pytest.raises(UserError, match="same architecture"):
        Edit.between(before, {**before, "n": torch.tensor(7.0)})


def test_a_wrong_base_file_leaves_the_output_as_it_was(files):
    folder, before, _ = files
    save_tensors(folder / "other.safetensors", {**before, "n": torch.tensor(3)})
    (folder / "out.safetensors").write_text("precious")
    with pytest.raises(UserError, match="another base model"):
        apply_to_file(folder / "edit.safetensors", folder / "other.safetensors", folder / "out.safetensors")
    assert (folder / "out.safetensors").read_text() == "precious"


def test_out_may_be_in(files):
    folder, _, _ = files
    model = folder / "model.safetensors"
    original = model.read_bytes()
    apply_to_file(folder / "edit.safetensors", model, model)
    assert model.read_bytes() != original
    assert len(model.read_bytes()) == len(original)
    apply_to_file(folder / "edit.safetensors", model, model, revert=True)
    assert model.read_bytes() == original


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_edit_is_refused(files, share):
    folder, _, _ = files
    path = folder / "edit.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    original = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError):
        apply_to_file(path, folder / "model.safetensors", folder / "model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == original


def there_and_back(edit, model, out):
    apply_to_file(edit, model, out)
    apply_to_file(edit, out, out, revert=True)


def test_no_flipped_byte_in_an_edits_values_goes_unnoticed(files):
    folder, _, _ = files
    path = folder / "edit.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    model, out = folder / "model.safetensors", folder / "out.safetensors"
    for position in range(start, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x11]) + content[position + 1 :])
        # A flipped old value can't hurt applying, so what comes out is taken back too.
        with pytest.raises(UserError, match="damaged"):
            there_and_back(path, model, out)


def test_other_files_are_no_edits(files):
    folder, _, _ = files
    with pytest.raises(UserError, match="not an edit"):
        Edit.load(folder / "model.safetensors")
    with pytest.raises(UserError, match="no file"):
        Edit.load(folder / "missing.safetensors")
    header = {"kind": "edit", "version": "2", "base": "x", "result": "y", "total": "1"}
    save_tensors(folder / "half.safetensors", {"gaps/w": torch.tensor([0])}, header)
    with pytest.raises(UserError, match="damaged edit"):
        Edit.load(folder / "half.safetensors")
    save_tensors(folder / "later.safetensors", {}, {**header, "version": "3"})
    with pytest.raises(UserError, match="format 3"):
        Edit.load(folder / "later.safetensors")


@pytest.mark.parametrize(("step", "width"), [(1, 1), (300, 2), (40_000, 4)])
def test_positions_are_written_in_few_bytes(tmp_path, step, width):
    before = {"w": torch.zeros(10 * step + 1)}
    after = {"w": before["w"].clone()}
    after["w"][::step] = 1.0
    edit = Edit.between(before, after)
    edit.save(tmp_path / "edit.safetensors")
    assert load_file(str(tmp_path / "edit.safetensors"))["gaps/w"].element_size() == width
    again = Edit.load(tmp_path / "edit.safetensors").changes["w"].indices
    assert again.dtype == torch.int64
    assert again.tolist() == list(range(0, 10 * step + 1, step))


def test_a_plain_state_dict_is_read_and_becomes_safetensors(files):
    folder, before, after = files
    torch.save(before, folder / "model.pth")
    apply_to_file(folder / "edit.safetensors", folder / "model.pth", folder / "out.safetensors")
    written = load_file(str(folder / "out.safetensors"))
    assert all(raw(written[name]) == raw(after[name]) for name in after)


def test_a_pickle_is_refused(files):
    folder, _, _ = files
    (folder / "model.pth").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(UserError):
        apply_to_file(folder / "edit.safetensors", folder / "model.pth", folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


def test_a_read_only_target_is_refused_and_nothing_is_lost(files):
    folder, _, _ = files
    blocked = folder / "file" / "out.safetensors"
    (folder / "file").write_text("not a folder")
    with pytest.raises(UserError, match="Can't write"):
        apply_to_file(folder / "edit.safetensors", folder / "model.safetensors", blocked)

    with tempfile.TemporaryDirectory() as name:
        closed = Path(name)
        for file in ("edit.safetensors", "model.safetensors"):
            (closed / file).write_bytes((folder / file).read_bytes())
        original = (closed / "model.safetensors").read_bytes()
        closed.chmod(0o555)
        root = os.geteuid() == 0  # to whom nothing is read-only
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="Can't write"):
                apply_to_file(closed / "edit.safetensors", closed / "model.safetensors", closed / "model.safetensors")
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o755)
        assert (closed / "model.safetensors").read_bytes() == original
        assert len(list(closed.iterdir())) == 2
