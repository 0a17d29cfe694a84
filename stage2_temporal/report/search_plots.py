"""What a search's page shows: how much each setting mattered, and the skill over its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stage2_temporal.report.plots import LOG_AXIS_RATIO, Plot, Role, Series, padded_range

LOWEST_SKILL = -0.2  # of the plots; worse ones are drawn at this one
SERIES: tuple[tuple[str, Role, bool], ...] = (("finished", "model", False), ("stopped early", "train", True))


@dataclass(frozen=True)
class SearchedSetting:
    """A setting that a search varied.

    Attributes:
        name: its full name.
        importance: its share of the variance of the skill, 0 to 1; None if there are too few runs to tell.
        values: of each trial: numbers, or the index of an option.
        skills: of each trial, on the validation split; of one that was stopped early, the best until then.
        pruned: whether each trial was stopped early.
        options: what the indices mean; empty for numbers.
    """

    name: str
    importance: float | None
    values: tuple[float, ...]
    skills: tuple[float, ...]
    pruned: tuple[bool, ...]
    options: tuple[str, ...] = ()

    @property
    def plot(self) -> Plot:
        """The slice plot: a dot per trial, the best one ringed."""
        skills = [max(skill, LOWEST_SKILL) for skill in self.skills]
        clipped = min(self.skills) < LOWEST_SKILL
        log = not self.options and min(self.values) > 0 and max(self.values) / min(self.values) > LOG_AXIS_RATIO
        series = [
            Series(name, "points", role, *_of(self.values, skills, [p == stopped for p in self.pruned]))
            for name, role, stopped in SERIES
        ]
        finished = series[0]
        if finished.y:
            best = max(range(len(finished.y)), key=finished.y.__getitem__)
            series.append(Series("best", "ring", "model", [finished.x[best]], [finished.y[best]]))
        notes = [f"{i} is {option}" for i, option in enumerate(self.options)]
        notes += [f"skills below {LOWEST_SKILL:g} are drawn there"] if clipped else []
        note = f"{'; '.join(notes)}." if notes else ""
        x_range, y_range = padded_range(self.values, log=log), padded_range(skills)
        return Plot(self.name, note, self.name, "skill", tuple(series), x_range, y_range, x_log=log)


def _of(values: Sequence[float], skills: Sequence[float], chosen: Sequence[bool]) -> tuple[list[float], list[float]]:
    pairs = [(v, s) for v, s, is_chosen in zip(values, skills, chosen, strict=True) if is_chosen]
    return [v for v, _ in pairs], [s for _, s in pairs]
