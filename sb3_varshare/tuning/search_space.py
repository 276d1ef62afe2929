"""The one declaration of what is tuned and within which limits, for the zoo's sampler and for any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sb3_varshare.tasks.suite import nearest

if TYPE_CHECKING:
    import optuna

# Under this name a study keeps what it searches.
STUDY_KEY = "sb3_varshare"


@dataclass(frozen=True)
class Range:
    """
    Numbers between two limits, drawn on a logarithmic scale.

    :param low: least value, positive
    :param high: greatest value
    :raises ValueError: the limits are not in order
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"A range needs limits with 0 < low < high, got {self.low} and {self.high}.")

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """
        :param trial: asked for the value
        :param name: of the parameter
        """
        return trial.suggest_float(name, self.low, self.high, log=True)

    def declaration(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"low": float(self.low), "high": float(self.high), "log": True}


@dataclass(frozen=True)
class Choice:
    """
    One of several values.

    :param values: at least one
    :raises ValueError: there is none
    """

    values: tuple[str | int | float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("A choice needs at least one value, got none.")

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """
        :param trial: asked for the value
        :param name: of the parameter
        """
        return trial.suggest_categorical(name, self.values)

    def declaration(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"choices": list(self.values)}


# Parameter -> limits. Standard deviations are relative to the spread of each layer's initial weights. Rows per task
# stand for the batch size, which must be a multiple of the number of tasks; `width` is that of actor and critics.
PARAMETERS: dict[str, Range | Choice] = {
    "beta": Range(1e-3, 1.0),
    "beta_sigma": Range(1e-2, 10.0),
    "sigma_prior": Range(0.03, 0.6),
    "rows_per_task": Choice((16, 32, 64, 128, 256)),
    "learning_rate": Range(1e-4, 3e-3),
    "ent_coef_learning_rate": Range(1e-4, 3e-3),
    "mu_lr_multiplier": Range(0.03, 3.0),
    "rho_lr_multiplier": Range(0.1, 10.0),
    "estimator": Choice(("local_reparameterization", "flipout", "shared_noise")),
    "width": Choice((64, 128, 256, 512)),
}
# What is tuned unless something else is asked for.
DEFAULT = ("beta", "sigma_prior", "rows_per_task")
# Which adapters a parameter has an effect on; one that is not listed has an effect on all.
ADAPTERS_OF: dict[str, tuple[str, ...]] = {
    "beta": ("varshare", "low_rank", "deterministic"),
    "beta_sigma": ("varshare", "low_rank"),
    "sigma_prior": ("varshare", "low_rank", "deterministic"),
    "mu_lr_multiplier": ("varshare", "low_rank", "deterministic"),
    "rho_lr_multiplier": ("varshare", "low_rank"),
    "estimator": ("varshare", "low_rank"),
}


@dataclass(frozen=True)
class SearchSpace:
    """
    What is tuned.

    :param parameters: name -> limits, in the order in which they are drawn
    """

    parameters: Mapping[str, Range | Choice]

    @classmethod
    def of(cls, request: Iterable[str] | Mapping[str, Any] | None = None) -> SearchSpace:
        """
        The space that somebody asked for.

        :param request: names from :data:`PARAMETERS`; or a mapping from such a name to its own limits, which are
            ``[low, high]`` for a range, a list of values for a choice, and None for those declared here; by default
            :data:`DEFAULT`
        :return: the space
        :raises ValueError: a parameter is unknown, there is none, or limits are not possible
        """
        names = _names(DEFAULT if request is None else request)
        limits = dict(request) if isinstance(request, Mapping) else dict.fromkeys(names)
        if not limits:
            raise ValueError(f"A search space needs at least one of {', '.join(PARAMETERS)}, got none.")
        return cls({name: _parameter(name, own) for name, own in limits.items()})

    def sample(self, trial: optuna.Trial, n_tasks: int) -> dict[str, Any]:
        """
        :param trial: asked for every parameter
        :param n_tasks: T
        :return: arguments of the agent
        """
        values = {name: limits.suggest(trial, name) for name, limits in self.parameters.items()}
        return to_arguments(trial_arguments(values), n_tasks)

    def check_adapter(self, adapter: str) -> None:
        """
        :param adapter: the agent's
        :raises ValueError: a parameter has no effect on an agent with this adapter
        """
        idle = [name for name in self.parameters if adapter not in ADAPTERS_OF.get(name, (adapter,))]
        if idle:
            raise ValueError(
                f"Tuning {', '.join(idle)} has no effect with adapter={adapter!r}; name other parameters by "
                f"search_space, of {', '.join(PARAMETERS)}."
            )

    def declaration(self) -> dict[str, Any]:
        """Plain JSON values, equal for equal spaces."""
        return {name: self.parameters[name].declaration() for name in sorted(self.parameters)}


def _names(request: Any) -> list[str]:
    names = list(request) if isinstance(request, Iterable) and not isinstance(request, str) else [request]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"Expected names of parameters, or a mapping from them to limits, got {request!r}.")
    return names


def _parameter(name: str, limits: Any) -> Range | Choice:
    if name not in PARAMETERS:
        raise ValueError(f"Expected a parameter that can be tuned, got {name!r}; {nearest(name, PARAMETERS)}")
    declared = PARAMETERS[name]
    if limits is None:
        return declared
    if not isinstance(limits, list | tuple):
        raise ValueError(f"Expected a list as the limits of {name!r}, got {limits!r}.")
    if isinstance(declared, Choice):
        return Choice(tuple(limits))
    if len(limits) != 2:
        raise ValueError(f"Expected [low, high] as the limits of {name!r}, got {limits!r}.")
    try:
        # YAML reads 1e-3, without a point, as text.
        return Range(*(float(limit) for limit in limits))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected two numbers 0 < low < high as the limits of {name!r}, got {limits!r}.") from error


def trial_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a trial's values mean besides themselves.

    :param values: parameter -> value, as a study keeps them
    :return: the same, with the scale that its limits of ``sigma_prior`` are for
    """
    return {**values, **({"prior_scale": "relative"} if "sigma_prior" in values else {})}


def to_arguments(values: Mapping[str, Any], n_tasks: int) -> dict[str, Any]:
    """
    The agent's own arguments for those that are easier to tune; all others stay as they are.

    :param values: ``rows_per_task``, ``width`` and any arguments of the agent
    :param n_tasks: T
    :return: arguments of the agent
    """
    arguments = dict(values)
    if "rows_per_task" in arguments:
        arguments["batch_size"] = arguments.pop("rows_per_task") * n_tasks
    if "width" in arguments:
        width = arguments.pop("width")
        arguments |= {"actor_width": width, "critic_width": width}
    return arguments


def claim_study(study: optuna.Study, declaration: Mapping[str, Any]) -> None:
    """
    Write into a study what it searches; what was written stays.

    :param study: new, or of an earlier start
    :param declaration: plain JSON values
    :raises ValueError: the study searches something else
    """
    # As the study gives it back.
    declaration = json.loads(json.dumps(declaration))
    # In this order: who opens the study at the same moment writes first, and adds trials then.
    is_new = not study.get_trials(deepcopy=False)
    found = study.user_attrs.get(STUDY_KEY)
    if found is None and is_new:
        study.set_user_attr(STUDY_KEY, declaration)
        return
    if found != declaration:
        differences = "; ".join(name_differences(found or {}, declaration, "the study"))
        raise ValueError(
            f"The study {study.study_name!r} searches something else ({differences}); take another study name, or the "
            "settings that it was opened with."
        )


def name_differences(there: Mapping[str, Any], here: Mapping[str, Any], place: str, prefix: str = "") -> Iterator[str]:
    """
    Where two declarations differ.

    :param there: plain JSON values that were written
    :param here: those at hand
    :param place: where the former were found
    :param prefix: of the keys
    :return: a clause for each key, of mappings within mappings for each key within
    """
    for key in sorted({*there, *here}):
        before, now = there.get(key), here.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from name_differences(before, now, place, f"{prefix}{key}.")
        elif before != now or (key in there) != (key in here):
            yield f"{prefix}{key}: {there.get(key, 'nothing')} in {place}, {here.get(key, 'nothing')} now"
