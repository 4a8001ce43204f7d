"""Learning rates as pure functions of the epoch or step, so that a resume cannot shift them.

Those that torch has too are those of torch.optim.lr_scheduler, in closed form.
"""

from __future__ import annotations

import bisect
import math
from itertools import pairwise

from batchtrain.spec import schedules as specs
from batchtrain.spec.schedules import ScheduleSpec, Warmup

__all__ = ["rate_at", "warmup_share", "warmup_steps"]


def rate_at(spec: ScheduleSpec, base_lr: float, number: int, total: int) -> float:
    """The learning rate in one epoch, or for `one_cycle` in one step.

    Args:
        spec: Which schedule; of `plateau`, which depends on the losses, this is where it begins.
        base_lr: The optimizer's `lr`.
        number: The epoch or step; the first is 0.
        total: How many the run is meant to have.
    """
    match spec:
        case specs.StepSchedule():
            share = spec.factor ** (number // spec.every_epochs)
        case specs.MultistepSchedule():
            share = spec.factor ** bisect.bisect_right(spec.milestones, number)
        case specs.ExponentialSchedule():
            share = spec.factor**number
        case specs.LinearSchedule():
            done = min(number / (spec.over_epochs or total), 1.0)
            share = spec.start + (spec.end - spec.start) * done
        case specs.PolynomialSchedule():
            share = (1.0 - min(number / (spec.over_epochs or total), 1.0)) ** spec.power
        case specs.CosineSchedule():
            return _half_cosine(base_lr, spec.min_lr, min(number / total, 1.0))
        case specs.CosineRestartsSchedule():
            return _half_cosine(base_lr, spec.min_lr, _done_of_fall(spec, number))
        case specs.OneCycleSchedule():
            return _one_cycle(spec, base_lr, number, total)
        case _:
            share = 1.0
    return base_lr * float(share)


def warmup_steps(warmup: Warmup, steps_per_epoch: int) -> int:
    """Over how many global steps the rate grows, at least 1."""
    if warmup.steps is not None:
        return warmup.steps
    return max(1, round((warmup.epochs or 0.0) * steps_per_epoch))


def warmup_share(start: float, steps: int, step: int) -> float:
    """By what a warm-up over so many steps multiplies the rate of a step; the first is 0.

    The first step is taken with a share above `start`, the last of the warm-up with the share 1.
    """
    done = step + 1
    return 1.0 if done >= steps else start + (1 - start) * done / steps


def _done_of_fall(spec: specs.CosineRestartsSchedule, epoch: int) -> float:
    """How much of the fall that an epoch belongs to is done, from 0 to below 1."""
    length = spec.first_epochs
    if spec.growth == 1:
        return (epoch % length) / length
    while epoch >= length:
        epoch -= length
        length *= spec.growth
    return epoch / length


def _one_cycle(spec: specs.OneCycleSchedule, base_lr: float, step: int, steps: int) -> float:
    first = base_lr / spec.start_divisor
    top = spec.rise * steps - 1
    # At these steps the rate begins to turn to the next; not all of them are whole.
    turns = [(0.0, first), (top, base_lr), (steps - 1.0, first / spec.end_divisor)]
    if spec.three_phase:
        turns.insert(2, (2 * top, first))
    phases = list(pairwise(turns))
    (begin, start), (end, goal) = next((each for each in phases if step <= each[1][0]), phases[-1])
    done = min((step - begin) / (end - begin), 1.0) if end > begin else 1.0
    if spec.shape == "linear":
        return start + (goal - start) * done
    return _half_cosine(start, goal, done)


def _half_cosine(start: float, end: float, done: float) -> float:
    """From `start` to `end` as `done` goes from 0 to 1; exact at both."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2 if done else start
