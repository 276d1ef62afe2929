"""From a name to a suite. A further source of tasks is one module with a ``load`` and one line of ``SOURCES``."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_varshare.tasks.suite import TaskSource, TaskSpec, TaskSuite, nearest

Tasks = str | Sequence[str | TaskSpec] | Mapping[str, Callable[[], gym.Env]] | TaskSuite


class SourceEntry(NamedTuple):
    """
    :param module: imported when one of its tasks is asked for; has ``load(**options) -> TaskSource``
    :param suites: names of the suites that come from it
    """

    module: str
    suites: tuple[str, ...] = ()


SOURCES: dict[str, SourceEntry] = {
    "metaworld": SourceEntry("sb3_varshare.tasks.suites.metaworld", ("MT3", "MT10", "MT25", "MT50")),
    "contextual": SourceEntry("sb3_varshare.tasks.suites.contextual", ("contextual",)),
}
CUSTOM = "sb3_varshare.tasks.suites.custom"
# Meta-World's own way to call a suite of one task.
ALIASES = {"MT1": "metaworld"}


def make_suite(tasks: Tasks, **options: Any) -> TaskSuite:
    """
    Resolve whatever names tasks into a suite.

    :param tasks: a suite's name (``"MT10"``, ``"MT1/reach-v3"``, ``"contextual"``), a sequence of full task names
        (``["metaworld/reach-v3", "contextual/swing-up"]``) or :class:`TaskSpec`, a mapping from a name to a callable
        without arguments that builds an env, or a suite, which is returned as it is
    :param options: handed to every source concerned that takes them, e.g. ``reward_version``, ``horizon``, ``n_goals``
    :return: the suite
    :raises ValueError: if a name or an option is unknown
    :raises ImportError: if a source's own package is not installed
    """
    if isinstance(tasks, TaskSuite):
        _refuse_left_over(options, set(), "a TaskSuite, which is already built")
        return tasks
    if isinstance(tasks, Mapping):
        return _custom_suite(tasks, options)
    if isinstance(tasks, str):
        return _named_suite(tasks, options)
    return _suite_of("custom", tasks, options)


def _named_suite(name: str, options: dict[str, Any]) -> TaskSuite:
    prefix, slash, task = name.partition("/")
    source_name = ALIASES.get(prefix, prefix)
    if slash and source_name in SOURCES:
        return _suite_of(name, [f"{source_name}/{task}"], options)
    for source_name, entry in SOURCES.items():
        if name in entry.suites:
            names = _load(source_name, options).suites[name]
            return _suite_of(name, [f"{source_name}/{task}" for task in names], options)
    known = [suite for entry in SOURCES.values() for suite in entry.suites] + [f"{alias}/<task>" for alias in ALIASES]
    raise ValueError(f"Expected the name of a suite, got {name!r}; {nearest(name, known)}")


def _suite_of(name: str, tasks: Iterable[str | TaskSpec], options: dict[str, Any]) -> TaskSuite:
    sources: dict[str, TaskSource] = {}
    specs = []
    for task in tasks:
        if isinstance(task, TaskSpec):
            specs.append(task)
            continue
        source_name, slash, short_name = task.partition("/")
        source_name = ALIASES.get(source_name, source_name)
        if not slash or source_name not in SOURCES:
            raise ValueError(f"Expected 'source/task' with a source of {', '.join(SOURCES)}, got {task!r}.")
        if source_name not in sources:
            sources[source_name] = _load(source_name, options)
        specs.append(sources[source_name].task(short_name))
    accepted = {option for source_name in sources for option in _options_of(_module(source_name))}
    _refuse_left_over(options, accepted, f"tasks of {', '.join(sources) or 'ready-made specs'}")
    return TaskSuite(name, tuple(specs), _protocol(sources.values()))


def _custom_suite(factories: Mapping[str, Callable[[], gym.Env]], options: dict[str, Any]) -> TaskSuite:
    module = importlib.import_module(CUSTOM)
    _refuse_left_over(options, _options_of(module), "a mapping of one's own envs")
    source: TaskSource = module.load(factories=factories, **options)
    return TaskSuite("custom", tuple(source.tasks.values()), _protocol([source]))


def _load(source_name: str, options: dict[str, Any]) -> TaskSource:
    module = _module(source_name)
    accepted = _options_of(module)
    source: TaskSource = module.load(**{option: value for option, value in options.items() if option in accepted})
    return source


def _module(source_name: str) -> ModuleType:
    try:
        return importlib.import_module(SOURCES[source_name].module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The tasks of source {source_name!r} need the package {error.name!r}, which is not installed; "
            f'run pip install "sb3_varshare[{source_name}]".'
        ) from error


def _options_of(module: ModuleType) -> set[str]:
    return set(inspect.signature(module.load).parameters) - {"factories"}


def _refuse_left_over(options: Mapping[str, Any], accepted: set[str], what: str) -> None:
    left_over = sorted(set(options) - accepted)
    if left_over:
        known = ", ".join(sorted(accepted)) or "none"
        raise ValueError(f"Expected options of {what} ({known}), got {', '.join(left_over)}.")


def _protocol(sources: Iterable[TaskSource]) -> dict[str, Any]:
    return {"success": "any step of the episode", **{source.name: source.protocol for source in sources}}
