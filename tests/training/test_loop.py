"""The training loop: resumed bit for bit, clipped and scheduled group by group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from consort.training.loop import Group, Schedule, run_steps


def problem(seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(4, 1)

    def loss_of(step):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (layer(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": float(loss.detach())}

    return layer, loss_of


def test_a_run_continued_from_its_checkpoint_ends_in_the_same_bits(tmp_path):
    whole, loss_of = problem()
    log = run_steps(loss_of, [Group(tuple(whole.parameters()), 1e-2)], schedule=Schedule(20))

    class Killed(Exception):
        pass

    broken, loss_of = problem()

    def dies(step):
        if step == 13:
            raise Killed
        return loss_of(step)

    settings = {"schedule": Schedule(20), "checkpoint": tmp_path / "state", "checkpoint_every": 5}
    with pytest.raises(Killed):
        run_steps(dies, [Group(tuple(broken.parameters()), 1e-2)], **settings)
    resumed, loss_of = problem(seed=7)  # other weights: the checkpoint must bring all of them
    again = run_steps(loss_of, [Group(tuple(resumed.parameters()), 1e-2)], **settings)
    assert again == log
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_rate_warms_up_to_its_peak_and_falls_to_its_last_share():
    schedule = Schedule(100)
    factors = [schedule.factor(step) for step in range(100)]
    assert max(factors) == factors[4] == pytest.approx(1.0, abs=0.01)
    assert factors[:5] == sorted(factors[:5])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] == pytest.approx(schedule.final_share, abs=1e-2)


def test_two_calls_share_one_decay():
    whole, second = Schedule(100), Schedule(50, done=50, total=100)
    assert [second.factor(step) for step in range(10, 50)] == [whole.factor(step) for step in range(60, 100)]


def test_a_group_without_gradient_is_left_alone():
    layer, loss_of = problem()
    idle = nn.Parameter(torch.ones(3))
    run_steps(loss_of, [Group(tuple(layer.parameters()), 1e-2), Group((idle,), 1e-2)], schedule=Schedule(3))
    assert torch.equal(idle, torch.ones(3))
