"""What shall be run: a YAML file with suites, arms and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sb3_varshare.runs.unit import NO_SEARCH, Unit, entry_file
from sb3_varshare.tasks.suite import nearest
from sb3_varshare.tuning.training import Settings, Trainer

# They become names of files and folders.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.=+-]*$")]
Positive = Annotated[int, Field(ge=1)]
POLICIES = {"varshare_sac": "MultiTaskPolicy", "sac": "MlpPolicy", "tqc": "MlpPolicy"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SuiteEntry(_Strict):
    """
    :param id: of Gymnasium, such as MT3-v0; MultiTask-v0 takes any tasks by ``env_kwargs``
    :param env_kwargs: of the envs
    :param params: hyper-parameters of all arms on this suite, such as ``n_envs``
    """

    id: str
    env_kwargs: dict[str, Any] = {}
    params: dict[str, Any] = {}


class ArmEntry(_Strict):
    """
    :param algo: in the zoo
    :param conf_file: in the zoo's form, seen from the declaration's folder; without one ``params`` are all there is
    :param params: hyper-parameters, which win over those of the suite and of the file
    """

    algo: Literal["varshare_sac", "sac", "tqc"] = "varshare_sac"
    conf_file: str | None = None
    params: dict[str, Any] = {}


class Declaration(_Strict):
    """
    A grid; its units are all combinations of suites, arms and seeds.

    :param name: of the grid
    :param suites: name -> suite
    :param arms: name -> contender
    :param seeds: of everything in a run
    :param steps_per_task: transitions of each task
    :param evaluations: evenly spaced, the last one at the end
    :param eval_episodes: of each task in an evaluation
    :param device: of the agents
    :param threads: of torch in each run
    """

    name: Name
    suites: Annotated[dict[Name, SuiteEntry], Field(min_length=1)]
    arms: Annotated[dict[Name, ArmEntry], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    steps_per_task: Positive
    evaluations: Positive = 10
    eval_episodes: Positive = 5
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Positive = 1

    def units(self, folder: Path = Path()) -> list[Unit]:
        """
        All combinations; those of one seed stand together, so that what is finished can be compared early.

        :param folder: from which files of hyper-parameters are seen
        :return: units with everything that their outcome depends on
        :raises ValueError: a suite, a file, a key or a parameter is not possible
        :raises ImportError: a suite's own package is not installed
        """
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Expected every seed once, got {self.seeds}.")
        resolved = {
            (suite, arm): self._resolve(self.suites[suite], self.arms[arm], folder)
            for suite in self.suites
            for arm in self.arms
        }
        return [
            Unit(suite, arm, seed, **resolved[suite, arm])
            for seed in self.seeds
            for suite in self.suites
            for arm in self.arms
        ]

    def _resolve(self, suite: SuiteEntry, arm: ArmEntry, folder: Path) -> dict[str, Any]:
        """The entry as the zoo reads it, so that a unit needs no file."""
        params = {**suite.params, **arm.params}
        with entry_file({"policy": POLICIES[arm.algo]}) as alone:
            conf_file = alone if arm.conf_file is None else str(folder / arm.conf_file)
            settings = Settings(
                *(suite.id, conf_file, yaml.safe_dump(params), yaml.safe_dump(suite.env_kwargs)),
                *(NO_SEARCH.get(arm.algo), self.steps_per_task),
            )
            trainer = Trainer(settings, self.device, arm.algo)
        found = trainer.declaration
        return {
            **{name: found[name] for name in ("algo", "env", "env_kwargs", "entry")},
            **{name: getattr(self, name) for name in ("evaluations", "eval_episodes", "device", "threads")},
            "steps": self.steps_per_task * trainer.n_tasks,
        }


def read_declaration(path: Path) -> Declaration:
    """
    :param path: of a YAML file
    :return: what it declares
    :raises ValueError: the file is not there, or something in it is not possible; with all mistakes
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    try:
        return Declaration.model_validate(found)
    except ValidationError as error:
        mistakes = "\n".join(f"  {_mistake(one)}" for one in error.errors())
        raise ValueError(f"{path} does not declare a grid:\n{mistakes}") from error


def _mistake(error: Any) -> str:
    place = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(place) or 'the file'}: {error['msg']}, got {error['input']!r}"
    known: Any = {"suites": SuiteEntry, "arms": ArmEntry}[place[0]] if len(place) > 1 else Declaration
    return f"{'.'.join(place)}: unknown key; {nearest(place[-1], known.model_fields)}"
