"""A SAMPLE with a stopping rule: how many of its samples are under way, when there are enough, and how much is left of it.

Under way are samples at work, and those that have ended and await their label.

| `SampleSpec.wave` | under way                                                                            |
|-------------------|--------------------------------------------------------------------------------------|
| k                 | those without which the rule cannot stop (`waves.needed`), and at least k            |
| None              | those, and as many more as there are seats at engines that no call waits for         |
| 0                 | all                                                                                  |

A label brings the end nearer by one at most, so what is under way because it is needed is never stopped in vain; seats
that stand empty cost nothing but what a later call may wait for them, and are what makes the samples of an idle server as fast as if
all had begun at once. A sample that failed is made good within the width that was asked for.
"""

from flowserve.core import lengths, load
from flowserve.core.state import Expansion, SchedulerState, Task
from flowserve.core.stopping.remaining import branch_s, expected
from flowserve.core.stopping.samples import RULES
from flowserve.core.stopping.waves import needed
from flowserve.graphs.plan import Kind, SampleSpec
from flowserve.ids import Seconds


def spec_of(task: Task) -> SampleSpec:
    return task.run.plan.samples[task.node.target]


def expect(task: Task, least: int = 1) -> None:
    """Something is known anew: how many further samples could suffice, `least` at the least?"""
    spec, expansion = spec_of(task), task.expansion
    assert expansion is not None and spec.rule is not None
    expansion.needed = needed(RULES[spec.rule], expansion.labels, dict(spec.rule_args), _left(expansion), least)


def enough(task: Task) -> bool:
    """Does the rule stop, now that a label came?"""
    spec, expansion = spec_of(task), task.expansion
    assert expansion is not None and spec.rule is not None
    return RULES[spec.rule](expansion.labels, {**dict(spec.rule_args), "left": _left(expansion)})


def _left(expansion: Expansion) -> int:
    """Samples whose label is not known, begun or not."""
    return expansion.width - expansion.failed - len(expansion.labels.order)


def tell_remaining(state: SchedulerState, task: Task) -> None:
    """What has been said so far says how many samples are still to come; policies that rank by work to do hear of it."""
    spec, expansion, run = spec_of(task), task.expansion, task.run
    assert expansion is not None and spec.rule is not None
    count = expected(RULES[spec.rule], expansion.labels, dict(spec.rule_args), _left(expansion))
    longer_s = count * _branch_s(task) - run.works[task.node.id]
    lengths.lengthen(state, run, longer_s - expansion.longer_s)
    expansion.longer_s = longer_s


def _branch_s(task: Task) -> Seconds:
    """Model time of one more sample of `task`, as its run's own have been."""
    run = task.run
    written = run.shape.figures.written
    return sum(
        branch_s(run.works[node], written[node].mean if node in written else 0.0, *run.wrote.get(node, (0, 0)))
        for node in run.plan.blocks[task.node.bodies[0]].nodes
    )


def room(state: SchedulerState, task: Task) -> int:
    """Frames that may be at work for `task` at once, by its wave."""
    expansion = task.expansion
    assert expansion is not None
    least = certain(task)
    if task.kind is Kind.SAMPLE and spec_of(task).wave is None:
        return max(least, len(expansion.live) + load.spare_seats(state))
    return least


def certain(task: Task) -> int:
    """Frames that are at work for `task` at once, if there are as many, whatever else is going on."""
    expansion = task.expansion
    assert expansion is not None
    spec = spec_of(task) if task.kind is Kind.SAMPLE else None
    if spec is None or spec.rule is None or spec.wave == 0:
        return expansion.width
    return max(expansion.needed, spec.wave or 0) - len(expansion.unlabelled)
