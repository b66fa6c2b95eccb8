from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.subjects.classes import ClassSubject, Split, digest
from analysis.subjects.networks import builtin

CLASSES = tuple("abcde")


def numbered(per_class: int, start: int = 0) -> Split:
    """Images that say who they are: every one holds its own number."""
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    images = torch.arange(start, start + len(labels)).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Split(images, labels)


def subject(forget=(1,), incoming=None, slot="own", **changes):
    given_ = {"train": numbered(10), "test": numbered(4, start=1000), **changes}
    network = builtin("mlp", (1, 4, 4), len(CLASSES))
    return ClassSubject("s", "d", CLASSES, forget=forget, network=network, incoming=incoming, slot=slot, **given_)


def ids(split):
    return set(split.images[:, 0, 0, 0].long().tolist())


@st.composite
def tasks(draw):
    forget = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True)))
    incoming = draw(st.none() | st.integers(0, 4))
    assume(incoming not in forget)
    assume(len(forget) + (incoming is not None) < len(CLASSES))
    return subject(forget, incoming, draw(st.sampled_from(["own", "old"])))


# --- splits


@given(st.sets(st.integers(0, 4)))
def test_only_and_without_part_a_split(labels):
    split = numbered(6)
    inside, outside = split.only(sorted(labels)), split.without(sorted(labels))
    assert set(inside.labels.tolist()) == labels
    assert ids(inside) | ids(outside) == ids(split)
    assert not ids(inside) & ids(outside)
    assert ids(inside + outside) == ids(split)
    assert len(inside + outside) == len(split)


def test_sample_draws_without_replacement_and_by_seed_alone():
    split = numbered(6)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = split.sample(7, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(ids(first)) == 7
    assert torch.equal(split.sample(7, seed=3).images, first.images)
    assert not torch.equal(split.sample(7, seed=4).images, first.images)
    assert ids(split.sample(1000, seed=0)) == ids(split)


def test_relabelled_changes_labels_only():
    split = numbered(2)
    other = split.relabelled(3)
    assert other.labels.unique().tolist() == [3]
    assert torch.equal(other.images, split.images)
    assert split.labels.unique().tolist() == [0, 1, 2, 3, 4]


# --- subjects


@given(tasks())
@settings(deadline=None)
def test_the_training_data_is_cut_into_three_parts(task):
    parts = [ids(task.forget_train), ids(task.retain_train), ids(task.incoming_train)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == len(task.train)
    assert ids(task.gold_train) == parts[1] | parts[2]
    assert ids(task.original_train) == parts[0] | parts[1]


@given(tasks())
@settings(deadline=None)
def test_gold_never_sees_what_is_forgotten_nor_a_label_that_is_gone(task):
    assert not ids(task.gold_train) & ids(task.forget_train)
    taught = set(task.gold_train.labels.tolist())
    assert taught == set(range(5)) - set(task.gone)
    assert set(task.retain_test.labels.tolist()) == taught
    assert not (ids(task.train) & ids(task.test))


@given(tasks())
@settings(deadline=None)
def test_relearning_never_uses_an_output_that_has_been_taken(task):
    slots = task.relearn_slots
    assert set(slots) == set(task.forget)
    assert len(set(slots.values())) == len(slots)
    assert set(slots.values()) == set(task.gone)


def test_replacing_in_both_slots():
    own, old = subject((1, 2), 4), subject((1, 2), 4, "old")
    assert (own.incoming_slot, old.incoming_slot) == (4, 1)
    assert (own.gone, old.gone) == ((1, 2), (2, 4))
    assert old.relearn_slots == {1: 4, 2: 2}
    assert own.incoming_train.labels.unique().tolist() == [4]
    assert old.incoming_train.labels.unique().tolist() == [1]
    assert ids(own.incoming_train) == ids(old.incoming_train) == ids(own.train.only([4]))
    assert own.retain == old.retain == (0, 3)


def test_forgetting_brings_nothing_in():
    task = subject((2, 1))
    assert len(task.incoming_train) == 0
    assert task.incoming_slot is None
    assert task.gone == (1, 2)
    assert task.forget_names == "c, b"
    assert ids(task.original_train) == ids(task.train)


@given(tasks(), st.integers(0, 3), st.floats(0.1, 0.5))
@settings(deadline=None)
def test_choosing_never_touches_the_test_set(task, seed, share):
    inner = task.for_choosing(seed, share)
    assert ids(inner.train) | ids(inner.test) == ids(task.train)
    assert not ids(inner.train) & ids(inner.test)
    assert inner.test.labels.bincount().tolist() == [max(1, round(share * 10))] * 5
    assert inner.forget == task.forget
    assert inner.name != task.name


@given(tasks(), st.integers(0, 3), st.floats(0.01, 1), st.floats(0, 1))
@settings(deadline=None)
def test_less_can_be_seen_of_what_is_trained_on_and_all_of_what_is_tested_on(task, seed, forget, retain):
    inner = task.seen(forget, retain, seed)
    assert ids(inner.train) <= ids(task.train)
    assert ids(inner.test) == ids(task.test)
    assert len(inner.forget_train) == max(1, round(forget * 10)) * len(task.forget)
    assert inner.retain_train.labels.bincount(minlength=5)[list(task.retain)].tolist() == [round(retain * 10)] * len(
        task.retain
    )
    assert ids(inner.incoming_train) == ids(task.incoming_train)
    assert inner == replace(task, train=inner.train)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"forget": ()}, "No class to forget"),
        ({"forget": (0, 1, 2, 3, 4)}, "Every class is to be forgotten"),
        ({"forget": (0, 1, 2, 3), "incoming": 4}, "none is left to keep"),
        ({"incoming": 1}, "Can't replace class 'b' by itself"),
        ({"train": numbered(3).without([1])}, "Class 'b' of d has no training images"),
        ({"test": numbered(3).without([1])}, "Class 'b' of d has no test images"),
        ({"test": numbered(3).without([3]), "incoming": 3}, "Class 'd' of d has no test images"),
    ],
)
def test_impossible_subjects(changes, says):
    with pytest.raises(UserError, match=says):
        subject(**changes)


def test_a_digest_changes_with_every_image_and_label_and_with_nothing_else():
    base = digest(subject())
    assert base == digest(subject(forget=(2,)))
    moved = numbered(10)
    assert base != digest(subject(train=Split(moved.images, moved.labels.flip(0))))
    assert base != digest(subject(test=numbered(4, start=1001)))
    assert len(base) == 64
