"""Everything that the report says of one group of arms, computed once for the page and for study.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from eval.report import curves
from eval.report.curves import ScalingChart
from eval.report.runs import Arm
from eval.study.findings import dose, frozen, human, paired
from eval.study.findings.dose import Curve
from eval.study.findings.finished import Group, StudyArm
from eval.study.findings.frozen import FrozenFigure
from eval.study.findings.human import HumanFigure
from eval.study.findings.paired import Pair, Spread
from eval.study.findings.speed import Speed, speed


@dataclass(frozen=True)
class Analysis:
    """number: of the group in the study; it makes the names of its charts different from the others'."""

    group: Group
    number: int

    @cached_property
    def pairs(self) -> list[Pair]:
        """Arms against the baseline."""
        return paired.against_baseline(self.group)

    def pair(self, arm: StudyArm) -> Pair | None:
        return next((pair for pair in self.pairs if pair.a is arm), None)

    @cached_property
    def judged(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.a in self.group.judged]

    @cached_property
    def controls(self) -> list[Pair]:
        return paired.against_controls(self.group)

    @cached_property
    def human(self) -> list[tuple[Pair, list[HumanFigure]]]:
        """Of the pairs that were evaluated on human similarity."""
        return [(pair, found) for pair in self.pairs if (found := human.figures(pair))]

    @cached_property
    def frozen(self) -> list[tuple[Pair, list[FrozenFigure]]]:
        """Of the pairs that were evaluated on downstream tasks."""
        return [(pair, found) for pair in self.pairs if (found := frozen.figures(pair))]

    @cached_property
    def speeds(self) -> list[Speed]:
        return [found for pair in self.pairs if (found := speed(pair)) is not None]

    @cached_property
    def doses(self) -> list[Curve]:
        return dose.curves(self.group, self.pairs)

    @cached_property
    def spreads(self) -> dict[str, dict[tuple[str, str], Spread]]:
        """Arm's label → its metrics."""
        return {arm.label: paired.spreads(arm) for arm in self.group.finished}

    @cached_property
    def scaling(self) -> list[ScalingChart]:
        """Of families and retrieval."""
        return curves.scaling(self._arms, f"g{self.number}-scaling")

    @cached_property
    def scaling_of_sets(self) -> list[ScalingChart]:
        return curves.scaling_of_sets(self._arms, f"g{self.number}-set")

    @property
    def _arms(self) -> Sequence[Arm]:
        return [arm.arm() for arm in self.group.finished]
