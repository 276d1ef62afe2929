"""
How results come about: goals, horizon, rewards, versions. Named presets, a line for tables, and a comparison.

A protocol is a dictionary of JSON types that every suite, model and result carries: ``success``, ``name`` where it has
one, under each source's name that source's settings, and under ``tasks`` what is peculiar to single tasks. In a
source's settings ``versions`` maps packages to versions, and ``summary`` says the settings in words.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sb3_varshare.tasks.suite import nearest

SUCCESS = "any step of the episode"
VERSIONS, SUMMARY, TASKS = "versions", "summary", "tasks"


class Protocol(NamedTuple):
    """
    A named choice of options.

    :param name: for the argument ``protocol`` and for tables
    :param options: source -> arguments of its ``load``
    """

    name: str
    options: Mapping[str, Mapping[str, Any]]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Meta-World's own: as many goals as its benchmarks have, and the most steps that it allows.
        Protocol(
            "mt-rand",
            {"metaworld": {"reward_version": "v2", "horizon": 500, "n_goals": 50, "held_out_goals": True}},
        ),
        # Nauman et al. 2025, "Bigger, Regularized, Categorical", by its code at eec512f: the goal is frozen by the
        # env's seed, and evaluation has the seed + 42.
        Protocol(
            "brc",
            {
                "metaworld": {"reward_version": "v2", "horizon": 200, "n_goals": 1, "held_out_goals": True},
                "dm_control": {"horizon": 1_000, "action_repeat": 1},
            },
        ),
    )
}
# What a source plays when nobody asks for a protocol.
DEFAULTS = {"metaworld": PROTOCOLS["mt-rand"]}


def find_protocol(protocol: str | Protocol) -> Protocol:
    """
    :param protocol: its name, or one of your own, which is returned as it is
    :return: the protocol
    :raises ValueError: if there is none of that name
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"Expected the name of a protocol, got {protocol!r}; {nearest(protocol, PROTOCOLS)}")
    return PROTOCOLS[protocol]


def describe_protocol(protocol: Mapping[str, Any]) -> str:
    """
    A line for tables and logs.

    :param protocol: of a suite, a model or a result
    :return: e.g. ``mt-rand: 50 goals, others in evaluation, horizon 500, reward v2, metaworld 3.1.1, mujoco 3.3.0``
    """
    sources = _sources(protocol)
    if not sources:
        return "protocol unknown"
    texts = {source: _describe_source(settings) for source, settings in sources.items()}
    if len(texts) == 1 and protocol.get("name"):
        return f"{protocol['name']}: {next(iter(texts.values()))}"
    text = "; ".join(f"{source}: {text}" for source, text in texts.items())
    return f"{protocol['name']}; {text}" if protocol.get("name") else text


def _describe_source(settings: Mapping[str, Any]) -> str:
    plain = [f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if key not in (VERSIONS, SUMMARY)]
    words = [settings[SUMMARY]] if SUMMARY in settings else plain
    return ", ".join([*words, *(f"{package} {version}" for package, version in settings.get(VERSIONS, {}).items())])


def protocol_differences(one: Any, other: Any, ignore_versions: bool = False) -> list[str]:
    """
    What differs between two protocols.

    Only sources and tasks that both have are compared, so that an agent of one task can stand beside one of all. Names
    and summaries do not count.

    :param one: a protocol, or anything with one, such as a model or an evaluation
    :param other: likewise
    :param ignore_versions: leave out the versions of packages
    :return: a text for each difference, e.g. ``metaworld.horizon: 500 against 200``
    """
    one, other = (getattr(side, "protocol", side) for side in (one, other))
    ours, theirs = _sources(one), _sources(other)
    if not set(ours) & set(theirs) and (ours or theirs):
        return [f"tasks: of {_listed(ours)} against {_listed(theirs)}"]
    left, right = (dict(_settings(side, set(ours) & set(theirs))) for side in (one, other))
    # Of tasks that only one side plays there is nothing to compare.
    tasks = [set(side.get(TASKS, {})) for side in (one, other)]
    left, right = (
        {key: value for key, value in side.items() if key[0] != TASKS or key[1] in tasks[0] & tasks[1]}
        for side in (left, right)
    )
    return [
        f"{'.'.join(key)}: {left.get(key, 'not set')} against {right.get(key, 'not set')}"
        for key in sorted({*left, *right})
        if left.get(key, "not set") != right.get(key, "not set") and not (ignore_versions and VERSIONS in key)
    ]


def check_same_protocol(one: Any, other: Any, ignore_versions: bool = False) -> None:
    """
    Refuse to put two results side by side that did not come about alike.

    :param one: a protocol, or anything with one, such as a model or an evaluation
    :param other: likewise
    :param ignore_versions: let versions of packages differ
    :raises ValueError: naming every difference
    """
    differences = protocol_differences(one, other, ignore_versions)
    if differences:
        hint = "evaluate both under one protocol"
        if any(f".{VERSIONS}." in text for text in differences):
            hint += "; where only versions differ and you know that rewards do not, pass ignore_versions=True"
        raise ValueError(f"The protocols differ, so the results cannot be compared: {'; '.join(differences)}. ({hint})")


def _sources(protocol: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: settings for name, settings in protocol.items() if isinstance(settings, Mapping) and name != TASKS}


def _listed(sources: Mapping[str, Any]) -> str:
    return ", ".join(sources) or "an unknown source"


def _settings(protocol: Mapping[str, Any], sources: set[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that counts."""
    for name, value in protocol.items():
        if name in sources or name == TASKS:
            yield from _leaves((name,), value)
        elif not isinstance(value, Mapping) and name != "name":
            yield (name,), value


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, Mapping):
        # Tuples come back from files as lists.
        yield path, list(value) if isinstance(value, tuple) else value
        return
    for key, inner in value.items():
        if key != SUMMARY:
            yield from _leaves((*path, key), inner)
