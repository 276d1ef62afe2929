"""From a name to a suite. A further source is one module with a ``load`` and a call of :func:`register_source`."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_varshare.tasks.protocol import DEFAULTS, SUCCESS, TASKS, Protocol, find_protocol, protocol_differences
from sb3_varshare.tasks.suite import TaskSource, TaskSpec, TaskSuite, near, nearest

Tasks = str | Sequence[str | TaskSpec] | Mapping[str, Callable[[], gym.Env]] | TaskSuite


class SourceEntry(NamedTuple):
    """
    :param module: imported when one of its tasks is asked for; has ``load(**options) -> TaskSource``
    :param suites: names of the suites that come from it, with options that are these suites' own defaults
    :param install: how to get the package that it needs
    """

    module: str
    suites: Mapping[str, Mapping[str, Any]]
    install: str = ""


_HIDDEN_GOALS = {"goal_observable": False}

SOURCES: dict[str, SourceEntry] = {
    "metaworld": SourceEntry(
        "sb3_varshare.tasks.suites.metaworld",
        {
            **{name: {} for name in ("MT3", "MT10", "MT25", "MT50")},
            # As Meta-World itself has it: which goal is meant shows in the rewards alone.
            **{f"{name}-{part}": _HIDDEN_GOALS for name in ("ML10", "ML25", "ML45") for part in ("train", "test")},
        },
        'pip install "sb3_varshare[metaworld]"',
    ),
    "dm_control": SourceEntry(
        "sb3_varshare.tasks.suites.dm_control",
        {name: {} for name in ("DMC-easy", "DMC-dogs", "DMC-humanoids", "DMC-full")},
        'pip install "sb3_varshare[dm-control]" on Python 3.11 or 3.12, since labmaze has no wheel for later ones',
    ),
    "gymnasium": SourceEntry(
        "sb3_varshare.tasks.suites.gymnasium",
        {name: {} for name in ("HalfCheetah", "HopperGravity", "Walker2dMass")},
        'pip install "gymnasium[mujoco]"',
    ),
    "contextual": SourceEntry("sb3_varshare.tasks.suites.contextual", {"contextual": {}}),
}
CUSTOM = "sb3_varshare.tasks.suites.custom"
# Meta-World's own way to call a suite of one task.
ALIASES = {"MT1": "metaworld"}


def register_source(
    name: str, module: str, suites: Iterable[str] | Mapping[str, Mapping[str, Any]] = (), install: str = ""
) -> None:
    """
    Make the tasks of a further source known by name.

    :param name: of the source, the part of a task's full name before the slash
    :param module: dotted name of the module; imported when one of its tasks is asked for. Its
        ``load(**options) -> TaskSource`` takes the options that :func:`make_suite` may be given
    :param suites: names of its suites; as a mapping, with options that are these suites' own defaults
    :param install: command that installs what it needs, for the message if that is missing
    :raises ValueError: if another module has the name, or another source has a suite of that name
    """
    if name != name.strip() or not name or "/" in name:
        raise ValueError(f"Expected the name of a source without a slash or spaces around it, got {name!r}.")
    if name in SOURCES and SOURCES[name].module != module:
        raise ValueError(f"The source {name!r} is that of {SOURCES[name].module}; choose another name.")
    entry = SourceEntry(module, suites if isinstance(suites, Mapping) else {suite: {} for suite in suites}, install)
    for other, known in SOURCES.items():
        twice = sorted(set(entry.suites) & set(known.suites)) if other != name else []
        if twice:
            raise ValueError(f"The suites {twice} are those of source {other!r}; choose other names.")
    SOURCES[name] = entry


def make_suite(tasks: Tasks, protocol: str | Protocol | None = None, **options: Any) -> TaskSuite:
    """
    Resolve whatever names tasks into a suite.

    :param tasks: a suite's name (``"MT10"``, ``"MT1/reach-v3"``, ``"contextual"``), a sequence of full task names
        (``["metaworld/reach-v3", "dm_control/walker-walk"]``) or :class:`TaskSpec`, a mapping from a name to a callable
        without arguments that builds an env, or a suite, which is returned as it is
    :param protocol: a named choice of options, see :data:`sb3_varshare.tasks.protocol.PROTOCOLS`
    :param options: handed to every source concerned that takes them, e.g. ``reward_version``, ``horizon``, ``n_goals``;
        they win over those of the protocol
    :return: the suite
    :raises ValueError: if a name or an option is unknown
    :raises ImportError: if a source's own package is not installed
    """
    choice = _Choice(None if protocol is None else find_protocol(protocol), options)
    if isinstance(tasks, TaskSuite):
        choice.refuse_unused({}, "a TaskSuite, which is already built")
        return tasks
    if isinstance(tasks, Mapping):
        return _custom_suite(tasks, choice)
    if isinstance(tasks, str):
        return _named_suite(tasks, choice)
    return _suite_of("custom", tasks, choice)


def remake_suite(full_names: Sequence[str], protocol: Mapping[str, Any]) -> TaskSuite:
    """
    The suite of a model or of a result: the same tasks, set up by the options that its protocol holds.

    :param full_names: (T,) the tasks with their sources
    :param protocol: of the model or the result
    :return: the suite; its own protocol differs in what is no option, such as versions of packages
    :raises ValueError: a source is not known in this process
    :raises ImportError: if a source's own package is not installed
    """
    sources = {name.partition("/")[0] for name in full_names}
    unknown = sorted(sources - set(SOURCES))
    if unknown:
        raise ValueError(
            f"The tasks of {', '.join(unknown)} cannot be made from their names: import the module that registers "
            "their source first. Tasks that were given as callables have no source; give the environments instead."
        )
    options = {}
    for source in sources:
        # A time limit may stand with the source or with each of its tasks.
        of_tasks = [own for name, own in protocol.get(TASKS, {}).items() if name.startswith(f"{source}/")]
        horizons = {own.get("horizon") for own in of_tasks}
        common = {"horizon": horizons.pop()} if len(horizons) == 1 else {}
        settings = {**common, **protocol.get(source, {})}
        options[source] = {name: settings[name] for name in _options_of(_module(source)) if name in settings}
    return make_suite(list(full_names), Protocol(protocol.get("name", "as trained"), options))


class _Choice(NamedTuple):
    """What the caller chose: a protocol, options that win over it, and below both the suite's own defaults."""

    protocol: Protocol | None
    options: Mapping[str, Any]
    defaults: Mapping[str, Any] = {}

    def options_of(self, source_name: str, module: ModuleType) -> dict[str, Any]:
        """What the source's ``load`` is given."""
        chosen = {} if self.protocol is None else self.protocol.options.get(source_name, {})
        given = {**self.defaults, **chosen, **self.options}
        accepted = _options_of(module)
        return {option: value for option, value in given.items() if option in accepted}

    def refuse_unused(self, modules: Mapping[str, ModuleType], what: str) -> None:
        """A choice that nobody takes is a mistake."""
        accepted = {option for module in modules.values() for option in _options_of(module)}
        left_over = sorted(set(self.options) - accepted)
        if left_over:
            known = ", ".join(sorted(accepted)) or "none"
            raise ValueError(f"Expected options of {what} ({known}), got {', '.join(left_over)}.")
        if self.protocol is None:
            return
        if not set(self.protocol.options) & set(modules):
            sources = ", ".join(self.protocol.options)
            raise ValueError(f"The protocol {self.protocol.name!r} is for {sources}, got {what}; leave it out.")
        for source_name, module in modules.items():
            known_options = _options_of(module)
            for option in sorted(set(self.protocol.options.get(source_name, {})) - set(known_options)):
                raise ValueError(
                    f"Expected options of {source_name} in the protocol {self.protocol.name!r}, got {option!r}; "
                    f"{nearest(option, known_options)}"
                )

    def name(self, modules: Mapping[str, ModuleType]) -> str | None:
        """Of the protocol, with what was changed in it; None where the sources have none."""
        protocol = self.protocol or next((DEFAULTS[source] for source in modules if source in DEFAULTS), None)
        if protocol is None:
            return None
        changed: dict[str, Any] = {}
        for source in set(modules) & set(protocol.options):
            usual = {**_options_of(modules[source]), **protocol.options[source]}
            given = self.options_of(source, modules[source])
            changed |= {option: value for option, value in given.items() if value != usual[option]}
        changes = ", ".join(f"{option}={value}" for option, value in sorted(changed.items()))
        return f"{protocol.name} with {changes}" if changes else protocol.name


def _named_suite(name: str, choice: _Choice) -> TaskSuite:
    prefix, slash, task = name.partition("/")
    source_name = ALIASES.get(prefix, prefix)
    if slash and source_name in SOURCES:
        return _suite_of(name, [f"{source_name}/{task}"], choice)
    for source_name, entry in SOURCES.items():
        if name in entry.suites:
            choice = choice._replace(defaults=entry.suites[name])
            names = _load(source_name, choice).suites[name]
            return _suite_of(name, [f"{source_name}/{task}" for task in names], choice)
    known = [suite for entry in SOURCES.values() for suite in entry.suites] + [f"{alias}/<task>" for alias in ALIASES]
    raise ValueError(f"Expected the name of a suite, got {name!r}; {nearest(name, known)}")


def _suite_of(name: str, tasks: Iterable[str | TaskSpec], choice: _Choice) -> TaskSuite:
    sources: dict[str, TaskSource] = {}
    specs = []
    for task in tasks:
        if isinstance(task, TaskSpec):
            specs.append(task)
            continue
        source_name, slash, short_name = _checked_name(task).partition("/")
        source_name = ALIASES.get(source_name, source_name)
        if not slash or source_name not in SOURCES:
            expected = f"Expected 'source/task' with a source of {', '.join(SOURCES)}"
            raise ValueError(f"{expected}, got {task!r}{_hint(task, choice)}")
        if source_name not in sources:
            sources[source_name] = _load(source_name, choice)
        specs.append(sources[source_name].task(short_name))
    modules = {source_name: _module(source_name) for source_name in sources}
    what = f"tasks of {', '.join(sources)}" if sources else "ready-made specs"
    choice.refuse_unused(modules, what)
    return TaskSuite(name, tuple(specs), _protocol(specs, choice.name(modules)))


def _checked_name(task: Any) -> str:
    if not isinstance(task, str):
        raise ValueError(f"Expected the names of tasks or TaskSpecs, got {task!r}.")
    return task


def _hint(name: str, choice: _Choice) -> str:
    """End of an error message about a task without a source, or a suite among tasks."""
    if any(name in entry.suites for entry in SOURCES.values()):
        return f", which is a suite; give it alone, or its tasks by *make_suite({name!r}).tasks."
    tasks: list[str] = []
    for source_name in SOURCES:
        with suppress(ImportError):
            tasks += [f"{source_name}/{task}" for task in _load(source_name, choice).tasks]
    close = near(name, tasks)[:3]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else "."


def _custom_suite(factories: Mapping[str, Callable[[], gym.Env]], choice: _Choice) -> TaskSuite:
    modules = {"custom": importlib.import_module(CUSTOM)}
    choice.refuse_unused(modules, "a mapping of one's own envs")
    options = choice.options_of("custom", modules["custom"])
    source: TaskSource = modules["custom"].load(factories=factories, **options)
    specs = [source.task(name) for name in factories]
    return TaskSuite("custom", tuple(specs), _protocol(specs, choice.name(modules)))


def _load(source_name: str, choice: _Choice) -> TaskSource:
    module = _module(source_name)
    source: TaskSource = module.load(**choice.options_of(source_name, module))
    return source


def _module(source_name: str) -> ModuleType:
    entry = SOURCES[source_name]
    try:
        return importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        hint = f"; run {entry.install}." if entry.install else "."
        raise ImportError(
            f"The tasks of source {source_name!r} need the package {error.name!r}, which is not installed{hint}"
        ) from error


def _options_of(module: ModuleType) -> dict[str, Any]:
    """The arguments of a source's ``load`` with their defaults."""
    parameters = inspect.signature(module.load).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "factories"}


def _protocol(specs: Iterable[TaskSpec], name: str | None) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for spec in specs:
        if not spec.source_protocol:
            continue  # of a user's own making: nothing is known of its source
        # A variant of a suite has its suite's name behind the source's.
        source_name = spec.source.partition("/")[0]
        ours = sources.setdefault(source_name, spec.source_protocol)
        differences = protocol_differences({source_name: ours}, {source_name: spec.source_protocol})
        if differences:
            raise ValueError(
                f"The tasks of {source_name} in one suite must have one protocol, got {'; '.join(differences)}."
            )
    named = {} if name is None else {"name": name}
    return {**named, "success": SUCCESS, **sources}
