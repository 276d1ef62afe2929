"""Presets: the values, and that what is given explicitly wins however it is given."""

import inspect
from typing import Any

import pytest

from sb3_varshare import VarShareSAC
from sb3_varshare.presets import PRESETS, accepts_preset, default_batch_size, preset_arguments


class Recorder:
    """A constructor with the three kinds of arguments: of the preset, not of it, and the preset itself."""

    @accepts_preset(lambda env, n_tasks: n_tasks or len(env))
    def __init__(
        self,
        policy: str,
        env: Any,
        learning_rate: float = 7.0,
        buffer_size: int = 7,
        batch_size: int | None = None,
        tau: float = 0.25,
        n_tasks: int | None = None,
        adapter: str = "varshare",
        preset: str | None = None,
        **others: Any,
    ) -> None:
        self.given = {
            "learning_rate": learning_rate,
            "buffer_size": buffer_size,
            "batch_size": batch_size,
            "tau": tau,
            "adapter": adapter,
            "preset": preset,
            **others,
        }


@pytest.mark.parametrize(
    ("n_tasks", "batch_size"), [(1, 256), (2, 1024), (3, 1023), (7, 1022), (10, 1020), (50, 1000), (2000, 2000)]
)
def test_default_batch_size_is_the_multiple_of_the_tasks_nearest_to_1024(n_tasks: int, batch_size: int) -> None:
    assert default_batch_size(n_tasks) == batch_size


def test_brc_has_the_values_of_its_code() -> None:
    assert preset_arguments("brc", 10) == {
        "adapter": "embedding",
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
        "batch_size": 1020,
        "buffer_size": 10_000_000,
        "learning_starts": 50_000,
        "gradient_steps": 2,
        "actor_width": 256,
        "actor_depth": 1,
        "critic_width": 4096,
        "critic_depth": 2,
        "initial_return_std": None,
        "ent_coef": "auto_0.1",
        "share_ent_coef": True,
        "mask_actions": False,
        "normalize_observations": False,
        "n_steps": 1,
    }


def test_brc_of_one_task_has_no_embedding_and_the_smaller_batch() -> None:
    values = preset_arguments("brc", 1)
    assert (values["adapter"], values["batch_size"], values["buffer_size"]) == ("none", 256, 1_000_000)
    assert values["learning_starts"] == 5_000


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"brc"}))
def test_the_own_presets_grow_with_the_tasks(name: str) -> None:
    one, four = preset_arguments(name, 1), preset_arguments(name, 4)
    assert four["batch_size"] == 4 * one["batch_size"] and four["buffer_size"] == 4 * one["buffer_size"]
    assert {key: value for key, value in one.items() if key not in ("batch_size", "buffer_size")} == {
        key: value for key, value in four.items() if key not in ("batch_size", "buffer_size")
    }


def test_every_preset_sets_arguments_that_exist() -> None:
    known = set(inspect.signature(VarShareSAC.__init__).parameters)
    for name in PRESETS:
        assert set(preset_arguments(name, 3)) <= known


def test_the_number_of_tasks_comes_from_the_env_or_the_argument() -> None:
    assert Recorder("p", ["a", "b", "c"], preset="small").given["batch_size"] == 192
    assert Recorder("p", [], n_tasks=5, preset="small").given["batch_size"] == 320


def test_without_a_preset_nothing_changes() -> None:
    given = Recorder("p", ["a"]).given
    assert given["learning_rate"] == 7.0 and given["batch_size"] is None and given["adapter"] == "varshare"


def test_an_explicit_argument_wins_by_keyword_by_position_and_at_the_default() -> None:
    by_keyword = Recorder("p", ["a", "b"], buffer_size=33, preset="brc").given
    by_position = Recorder("p", ["a", "b"], 0.5, 33, preset="brc").given
    at_default = Recorder("p", ["a", "b"], learning_rate=7.0, adapter="varshare", batch_size=None, preset="brc").given
    assert (by_keyword["buffer_size"], by_keyword["learning_rate"]) == (33, 3e-4)
    assert (by_position["buffer_size"], by_position["learning_rate"]) == (33, 0.5)
    assert (at_default["learning_rate"], at_default["adapter"], at_default["batch_size"]) == (7.0, "varshare", None)
    assert by_keyword["adapter"] == by_position["adapter"] == "embedding"


def test_an_argument_that_the_preset_does_not_set_keeps_its_default() -> None:
    assert Recorder("p", ["a"], preset="brc").given["tau"] == 0.25


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of \['brc', .*'small'\] or None, got 'huge'"):
        Recorder("p", ["a"], preset="huge")
