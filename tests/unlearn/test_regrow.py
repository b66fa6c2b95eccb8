import copy
from dataclasses import replace

import pytest
import torch
from digit_tasks import drawn_afresh, some_weights, state_bytes

from analysis.representations.capture import caught, hidden
from analysis.representations.similarity import likeness, linear_cka
from analysis.training import seeded
from unlearn.methods import METHODS
from unlearn.optimize import batches

REGROW = METHODS["regrow"]


def test_reinitialised_weights_start_from_a_fresh_draw_inside_the_mask(small):
    subject, model = small["cnn", "forget"]
    mask, states = some_weights(model), {}
    settings = replace(REGROW.settings, steps=4, teacher_steps=4)
    REGROW.run(model, subject, mask, 11, settings, lambda step, m: states.update({step: state_bytes(m)}))
    fresh = drawn_afresh(subject, 11)
    expected = {
        n: torch.where(mask.bits[n], p.detach(), q.detach())
        for (n, p), q in zip(fresh.named_parameters(), model.parameters(), strict=True)
    }
    assert all(states[1][n] == e.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, e in expected.items())


def test_what_is_regrown_is_not_rewound_to_where_the_original_began(small):
    subject, model = small["mlp", "forget"]
    own = seeded(subject.network.make, 0)
    begun = REGROW.run(model, subject, None, 0, replace(REGROW.settings, steps=1, rate=0.0, decay=0.0), None)
    for mine, theirs in zip(begun.parameters(), own.parameters(), strict=True):
        assert (mine != theirs).float().mean() > 0.99


def in_double(subject, model):
    """The same task and net in float64."""
    network = replace(subject.network, make=lambda make=subject.network.make: make().double())
    train = replace(subject.train, images=subject.train.images.double())
    return replace(subject, network=network, train=train), copy.deepcopy(model).double()


def learnt(work, loss, steps, lr, decay):
    """AdamW on everything, its rate falling to nothing; matrices decay, biases don't."""
    wide = [p for p in work.parameters() if p.dim() > 1]
    groups = [
        {"params": wide, "weight_decay": decay},
        {"params": [p for p in work.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    stepper = torch.optim.AdamW(groups, lr=lr)
    for step in range(steps):
        for group in stepper.param_groups:
            group["lr"] = lr * (1 - step / steps)
        stepper.zero_grad()
        loss(work, step).backward()
        stepper.step()
    return work


@pytest.mark.parametrize(("teachers", "steps", "compared"), [(0, 17, ()), (1, 16, (8,)), (2, 17, (16,))])
def test_what_is_regrown_learns_as_the_network_does_and_late_to_be_alike(small, teachers, steps, compared):
    # Against all steps written out; layers are compared at multiples of eight, from half of the steps on.
    subject, model = in_double(*small["mlp", "forget"])
    settings = replace(
        REGROW.settings, steps=steps, batch=40, decay=3.0, rate=0.5, teachers=teachers, teacher_steps=3, alike=0.5
    )
    edited = REGROW.run(model, subject, None, 3, settings, None)
    kept, points, lr = subject.retain_train, subject.network.points, 0.5 * subject.network.recipe.lr

    def plain(many, seed):
        order = list(batches((kept.images, kept.labels), 40, many, seed))

        def loss(work, step):
            images, labels = order[step]
            return -work(images).log_softmax(1).gather(1, labels[:, None]).mean()

        return order, loss

    others = [
        learnt(drawn_afresh(subject, 3 + 1000 * k), plain(3, 3 + 1000 * k)[1], 3, lr, 3.0)
        for k in range(1, teachers + 1)
    ]
    order, answers = plain(steps, 3)

    def loss(work, step):
        with caught(work, points) as mine:
            value = answers(work, step)
        if step in compared:
            for other in others:
                with torch.no_grad(), caught(other, points) as theirs:
                    other(order[step][0])
                for point in points:
                    value = value + 8 * 0.5 / teachers * (1 - likeness(mine[point], theirs[point]))
        return value

    work = learnt(drawn_afresh(subject, 3), loss, steps, lr, 3.0)
    for mine, theirs in zip(edited.parameters(), work.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_teacher_of_what_is_regrown_shows_in_its_layers(small):
    subject, model = small["mlp", "forget"]
    settings = replace(REGROW.settings, steps=300, teacher_steps=60, decay=0.0)
    teacher = REGROW.run(model, subject, None, 1007, replace(settings, steps=60, alike=0.0), None)
    images, points = subject.retain_test.images, subject.network.points

    def unlike(alike):
        edited = REGROW.run(model, subject, some_weights(model, 0.3), 7, replace(settings, alike=alike), None)
        mine, theirs = (hidden(m, points, images) for m in (edited, teacher))
        return sum(1 - linear_cka(mine[point], theirs[point]) for point in points)

    assert unlike(1.0) < 0.85 * unlike(0.0)
