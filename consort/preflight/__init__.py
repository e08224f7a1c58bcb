"""Everything that can be known to be wrong before training starts, found at once, from files.

A model is loaded only where its files do not tell whether a served adapter is its own (`served`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from consort.config import Config
from consort.config_file import Origin, read_config
from consort.errors import ConfigError
from consort.preflight.values import range_problems, value_problems
from consort.problems import Problem, raise_errors

if TYPE_CHECKING:
    from consort.preflight.data import Rows
    from consort.preflight.models import ModelSurvey


SERVING = frozenset({"serve", "runtime", "name", "seed"})  # what a file may hold that names no run


@dataclass(frozen=True, slots=True)
class Preflight:
    """A configuration with what was found about it. `models` is None where the models were not looked at;
    `serves_only` where the file says who answers and names no run, so that nothing of one is missed."""

    config: Config
    problems: tuple[Problem, ...]
    rows: Mapping[str, Rows]
    models: ModelSurvey | None
    serves_only: bool = False

    @property
    def ok(self) -> bool:
        """Whether a run may start, or an endpoint where the file names no run."""
        return all(problem.level == "warning" for problem in self.problems)


def load_checked(
    path: Path | str, overrides: Sequence[str] = (), *, models: bool = True, memory: bool = True
) -> Preflight:
    """Read and examine a configuration before a run; one ConfigError lists all mistakes."""
    found = examine_file(path, overrides, models=models, memory=memory)
    raise_errors(found.problems)
    if found.serves_only:
        hint = "a run needs public, cloud.model and devices; `consort serve` takes this file"
        raise ConfigError("only [serve] is written, which names no run", where=str(path), hint=hint)
    return found


def examine_file(
    path: Path | str, overrides: Sequence[str] = (), *, models: bool = True, memory: bool = True
) -> Preflight:
    """Read a configuration and examine it, with the mistakes returned."""
    config, origin, mistakes = read_config(path, overrides)
    found = examine(config, origin, models=models, memory=memory)
    mistaken = {
        problem.key for problem in mistakes
    }  # these keep a default, which says nothing about the file
    rest = [problem for problem in found.problems if not problem.key or problem.key not in mistaken]
    return replace(found, problems=(*mistakes, *rest))


def examine(
    config: Config, origin: Origin | None = None, *, models: bool = True, memory: bool = True
) -> Preflight:
    """What is wrong with the values, the data and (with `models`) the models of a configuration; `memory`
    also compares what the devices have with what their models take."""
    from consort.preflight.data import read_data

    serves_only = origin is not None and "serve" in origin.sections <= SERVING
    found = list(range_problems(config) if serves_only else value_problems(config))
    rows, in_data = read_data(config)
    found += in_data
    survey = None
    if models:
        from consort.preflight.memory import device_problems
        from consort.preflight.models import survey_models

        survey = survey_models(config, rows)
        said = {problem.key for problem in found}
        of_models = [*survey.found, *(device_problems(survey) if memory else ())]
        found += [problem for problem in of_models if problem.key not in said]
    if origin:
        found = [replace(p, where=origin.locate(p.key)) if p.where == p.key else p for p in found]
    return Preflight(config, tuple(found), rows, survey, serves_only)
