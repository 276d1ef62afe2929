"""Named presets, what a line says of them, and what may be compared."""

import json
from typing import Any

import gymnasium as gym
import pytest

from sb3_varshare.tasks import PROTOCOLS, Protocol, check_same_protocol, describe_protocol, make_suite
from sb3_varshare.tasks.protocol import protocol_differences

META_WORLD = {
    "name": "mt-rand",
    "success": "any step of the episode",
    "metaworld": {
        "horizon": 500,
        "n_goals": 50,
        "summary": "50 goals, horizon 500",
        "versions": {"metaworld": "3.1.1"},
    },
}


def changed(protocol: dict[str, Any], source: str, **settings: Any) -> dict[str, Any]:
    return {**protocol, source: {**protocol[source], **settings}}


def test_presets_set_what_they_say() -> None:
    pytest.importorskip("metaworld")
    random, frozen = (make_suite("MT3", protocol=name) for name in ("mt-rand", "brc"))
    expected = {"mt-rand": (50, 500), "brc": (1, 200)}
    for suite in (random, frozen):
        settings = suite.protocol["metaworld"]
        assert (settings["n_goals"], settings["horizon"]) == expected[suite.protocol["name"]]
        assert settings["reward_version"] == "v2" and settings["held_out_goals"] is True
        assert {task.horizon for task in suite.tasks} == {settings["horizon"]}
    assert make_suite("MT3").protocol == random.protocol


def test_explicit_options_win_and_show_in_the_name() -> None:
    pytest.importorskip("metaworld")
    names = {
        "brc": make_suite("MT3", protocol="brc", horizon=200),
        "brc with horizon=500": make_suite("MT3", protocol="brc", horizon=500),
        "mt-rand with horizon=200, n_goals=1": make_suite("MT3", n_goals=1, horizon=200),
        "mt-rand with held_out_goals=False": make_suite("MT3", protocol="mt-rand", held_out_goals=False),
    }
    assert {suite.protocol["name"] for suite in names.values()} == set(names)
    # The name is for readers: the values decide.
    assert not protocol_differences(make_suite("MT3", n_goals=1, horizon=200).protocol, names["brc"].protocol)


def test_a_protocol_of_ones_own() -> None:
    short = Protocol("short", {"contextual": {"horizon": 20}})
    suite = make_suite("contextual", protocol=short)
    assert suite.protocol["name"] == "short" and {task.horizon for task in suite.tasks} == {20}
    assert describe_protocol(suite.protocol) == "short: version 1, horizon 20"


def test_a_protocol_reaches_ones_own_envs() -> None:
    suite = make_suite(
        {"mine": lambda: gym.make("Pendulum-v1")}, protocol=Protocol("short", {"custom": {"horizon": 7}})
    )
    assert (suite.tasks[0].horizon, suite.protocol["custom"]["horizon"], suite.protocol["name"]) == (7, 7, "short")


def test_tasks_taken_out_of_suites_keep_their_protocol() -> None:
    short, usual = (make_suite("contextual", **options).tasks for options in ({"horizon": 20}, {}))
    assert make_suite(short[:2]).protocol["contextual"]["horizon"] == 20
    with pytest.raises(ValueError, match=r"must have one protocol, got contextual.horizon: 20 against 200"):
        make_suite([short[0], usual[1]])


@pytest.mark.parametrize(
    ("tasks", "protocol", "message"),
    [
        (
            "contextual",
            Protocol("mine", {"contextual": {"horizn": 5}}),
            "options of contextual in the protocol 'mine', got 'horizn'; did you mean 'horizon'",
        ),
        ("contextual", "brx", "name of a protocol, got 'brx'; did you mean 'brc'"),
        ("contextual", "brc", "'brc' is for metaworld, dm_control, got tasks of contextual; leave it out"),
        (make_suite("contextual"), "brc", "which is already built"),
    ],
)
def test_a_protocol_that_does_not_fit(tasks: Any, protocol: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(tasks, protocol=protocol)


def test_a_line_names_protocol_settings_and_versions() -> None:
    assert describe_protocol(META_WORLD) == "mt-rand: 50 goals, horizon 500, metaworld 3.1.1"
    other = {"grid": {"wind_speed": 3, "versions": {"grid": "1.0"}}}
    assert describe_protocol(other) == "grid: wind speed 3, grid 1.0"
    both = {**META_WORLD, **other}
    assert describe_protocol(both) == (
        "mt-rand; metaworld: 50 goals, horizon 500, metaworld 3.1.1; grid: wind speed 3, grid 1.0"
    )
    assert describe_protocol({}) == "protocol unknown"


def test_equal_protocols_may_be_compared_whatever_they_are_called() -> None:
    renamed = changed({**META_WORLD, "name": "other"}, "metaworld", summary="other words")
    check_same_protocol(META_WORLD, renamed)
    check_same_protocol(META_WORLD, json.loads(json.dumps(META_WORLD)))
    check_same_protocol({}, {})


def test_every_difference_is_named() -> None:
    other = changed(META_WORLD, "metaworld", horizon=200, versions={"metaworld": "3.2.0"}, n_goals=1)
    with pytest.raises(ValueError) as caught:
        check_same_protocol(META_WORLD, {**other, "success": "last step"})
    for text in (
        "metaworld.horizon: 500 against 200",
        "metaworld.n_goals: 50 against 1",
        "metaworld.versions.metaworld: 3.1.1 against 3.2.0",
        "success: any step of the episode against last step",
    ):
        assert text in str(caught.value)


def test_versions_are_refused_too_unless_the_caller_knows_better() -> None:
    other = changed(META_WORLD, "metaworld", versions={"metaworld": "3.2.0"})
    with pytest.raises(ValueError, match="pass ignore_versions=True"):
        check_same_protocol(META_WORLD, other)
    check_same_protocol(META_WORLD, other, ignore_versions=True)
    with pytest.raises(ValueError, match="horizon") as caught:
        check_same_protocol(META_WORLD, changed(META_WORLD, "metaworld", horizon=1), ignore_versions=True)
    assert "ignore_versions" not in str(caught.value)


def test_a_part_of_a_suite_may_stand_beside_the_whole() -> None:
    whole = make_suite(["contextual/light", "gymnasium/Pendulum-v1"], horizon=30)
    part = make_suite(["contextual/light"], horizon=30)
    check_same_protocol(whole.full_protocol, part.full_protocol)
    other_task = make_suite(["gymnasium/Pendulum-v1"], horizon=40)
    with pytest.raises(ValueError, match=r"tasks.gymnasium/Pendulum-v1.horizon: 30 against 40"):
        check_same_protocol(whole.full_protocol, other_task.full_protocol)
    with pytest.raises(ValueError, match="of contextual against gymnasium"):
        check_same_protocol(part.full_protocol, other_task.full_protocol)
    with pytest.raises(ValueError, match="of contextual against an unknown source"):
        check_same_protocol(part.full_protocol, {})


def test_presets_are_json() -> None:
    for protocol in PROTOCOLS.values():
        assert json.loads(json.dumps(protocol.options)) == protocol.options
