"""A task more, a task less: the others are not touched, to the last bit."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from growing import AGENTS, Reach, agent_name, assert_equal, make_agent, make_env, make_reach, outputs, tensors
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_varshare import TaskSpec, VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.compression import prune
from sb3_varshare.growth import add_task, drop_task, specialise
from sb3_varshare.growth.specialist import at_base
from sb3_varshare.networks.task_input import EmbeddingInput
from sb3_varshare.tasks import make_suite
from sb3_varshare.tasks.suite import find_tasks
from sb3_varshare.varshare_sac import memory, saving


def stored(model: VarShareSAC, folder: Path) -> dict[str, Any]:
    """The attributes that a file of the agent holds."""
    model.save(folder / "model.zip")
    with zipfile.ZipFile(folder / "model.zip") as archive:
        data: dict[str, Any] = json.loads(archive.read("data"))
    # Open episodes begin anew, and what a pickle looks like is no property of the agent.
    return {name: value for name, value in data.items() if not name.startswith("_last_") and name != "policy_kwargs"}


# What stays


@pytest.mark.parametrize("kwargs", AGENTS, ids=agent_name)
def test_adding_a_task_changes_no_prediction_of_the_others(kwargs: dict[str, Any]) -> None:
    model = make_agent(**kwargs).learn(60)
    before, learned, random = outputs(model, [0, 1]), tensors(model), th.get_rng_state()
    assert model._n_updates > 0
    assert add_task(model, "zero", make_reach(0.0)) is model
    if kwargs["adapter"] != "embedding":
        assert th.equal(random, th.get_rng_state())
    assert_equal(before, outputs(model, [0, 1]))
    assert model.task_names == ["plus", "minus", "zero"] and model.n_tasks == 3
    # What the replay holds, the scales and all moments are those of before, at their places.
    after = tensors(model)
    assert learned.keys() <= after.keys()
    for name in ("reward_scale.return_max", "reward_scale.return_min", "written", "rows of 0", "rows of 1"):
        assert th.equal(after[name][: len(learned[name])], learned[name]), name
    assert after["written"][2] == 0
    model.learn(60)
    assert model.replay_buffer.sizes.min() > 0


@pytest.mark.parametrize("kwargs", AGENTS, ids=agent_name)
def test_add_then_drop_gives_back_the_same_state(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_agent(**kwargs).learn(60)
    before, arguments, env = tensors(model), stored(model, tmp_path), model.env
    drop_task(add_task(model, "zero", make_reach(0.0)), "zero")
    assert_equal(before, tensors(model))
    assert stored(model, tmp_path) == arguments
    assert model.env is not env and model.env.suite.describe() == env.suite.describe()
    assert model.env.layout == env.layout and model.env.suite == env.suite
    model.learn(40)


@pytest.mark.parametrize("kwargs", AGENTS, ids=agent_name)
@pytest.mark.parametrize("gone", ["plus", 1])
def test_dropping_a_task_changes_no_prediction_of_the_others(kwargs: dict[str, Any], gone: str | int) -> None:
    model = add_task(make_agent(**kwargs), "zero", make_reach(0.0)).learn(60)
    left = [task for task in range(3) if task != model.task_id(gone)]
    before, names = outputs(model, left), [model.task_names[task] for task in left]
    drop_task(model, gone)
    assert_equal(before, outputs(model, [0, 1]))
    assert model.task_names == names and model.env.task_names == tuple(names)
    model.learn(40)


def test_a_grown_agent_is_saved_and_loaded_as_any_other(tmp_path: Path) -> None:
    model = add_task(make_agent(task_input="one_hot").learn(60), "zero", make_reach(0.0)).learn(60)
    model.save(tmp_path / "model")
    for env in (None, make_multitask_env({"plus": Reach, "minus": Reach, "zero": Reach})):
        loaded = VarShareSAC.load(tmp_path / "model", env=env, device="cpu")
        assert_equal(outputs(model, [0, 1, 2]), outputs(loaded, [0, 1, 2]))
        assert loaded.observation_space == model.observation_space


# What the new task starts with


def test_a_new_task_starts_at_the_shared_base_with_sigma_at_the_prior() -> None:
    model = add_task(make_agent(sigma_structure="full").learn(60), "zero", make_reach(0.0))
    policy = model.policy
    for network in (policy.actor, policy.critic.net):
        for layer in network.linears():
            theta, residual = layer.theta, layer.adapter.residual
            assert th.equal(layer.merged_weight(2), theta[..., 0, :, :])
            assert residual.sigma()[..., 2, :, :].allclose(th.tensor(residual.sigma_prior))
        assert network.kl_divergence()[2].abs() < 1e-3 * network.kl_divergence()[:2].min()
    for target, source in zip(policy.critic_target.averaged_tensors(), policy.critic.averaged_tensors(), strict=True):
        if target.shape[1] == 3:
            assert th.equal(target[:, 2], source[:, 2])


def test_a_new_task_has_moments_of_zero() -> None:
    model = make_agent().learn(60)
    add_task(model, "zero", make_reach(0.0))
    optimizer = model.critic.optimizer
    for layer in model.policy.critic.net.linears():
        state = optimizer.state[layer.adapter.residual.mu]
        assert state["exp_avg"][:, 2].count_nonzero() == state["exp_avg_sq"][:, 2].count_nonzero() == 0
        assert state["exp_avg_sq"][:, :2].count_nonzero() > 0
        assert state["step"] == model._n_updates


def test_a_new_one_hot_is_an_input_without_weight() -> None:
    model = add_task(make_agent(adapter="none", task_input="one_hot").learn(60), "zero", make_reach(0.0))
    layer = model.policy.critic.net.linear_in
    assert layer.theta.shape[-2] == 2 + 1 + 3
    assert layer.theta[..., -1, :].count_nonzero() == 0
    assert model.critic.optimizer.state[layer.theta]["exp_avg_sq"][..., -1, :].count_nonzero() == 0
    model.learn(80)
    assert layer.theta is not model.policy.critic.net.linear_in.theta or layer.theta[..., -1, :].count_nonzero() > 0


@pytest.mark.parametrize("embedding", ["random", "mean"])
def test_a_new_embedding_has_unit_length(embedding: str) -> None:
    model = make_agent(adapter="embedding").learn(60)
    add_task(model, "zero", make_reach(0.0), embedding=embedding)
    task_input = model.policy.critic.task_input
    assert isinstance(task_input, EmbeddingInput)
    table, vectors = task_input.table.detach(), task_input().detach()
    assert table[2].norm().item() == pytest.approx(1.0)
    mean = vectors[:2].mean(0)
    assert (table[2] @ mean / mean.norm() > 0.999) == (embedding == "mean")
    assert th.equal(model.policy.critic_target.task_input.table[2], table[2])
    with pytest.raises(ValueError, match="embedding must be one of"):
        add_task(model, "one", make_reach(0.0), embedding="zero")


def test_an_independent_network_of_a_new_task_is_a_fresh_one() -> None:
    model = add_task(make_agent(adapter="independent").learn(60), "zero", make_reach(0.0))
    fresh = make_agent(adapter="independent").policy.critic.net
    for layer, other in zip(model.policy.critic.net.linears(), fresh.linears(), strict=True):
        assert th.equal(layer.bias[:, 2], other.bias[:, 0])
        assert not th.equal(layer.theta[:, 2], layer.theta[:, 0])
        assert layer.theta[:, 2].norm().item() == pytest.approx(other.theta[:, 0].norm().item(), rel=1e-4)


def test_the_entropy_coefficient_starts_at_the_geometric_mean() -> None:
    model = make_agent().learn(60)
    model.log_ent_coef.data = th.tensor([0.04, 0.01]).log()
    add_task(model, "zero", make_reach(0.0))
    assert model._ent_coef().tolist() == pytest.approx([0.04, 0.01, 0.02])
    assert model.log_ent_coef.requires_grad and model.ent_coef_optimizer.param_groups[0]["params"] == [
        model.log_ent_coef
    ]


def test_arguments_that_list_tasks_get_an_entry() -> None:
    lists: dict[str, Any] = {"ent_coef": [0.04, 0.01], "target_entropy": [-1.0, -3.0]}
    model = make_agent(make_env(action_size=2), **lists)
    add_task(model, "zero", make_reach(0.0, action_size=1))
    assert model.ent_coef == pytest.approx([0.04, 0.01, 0.02])
    assert model._ent_coef().tolist() == pytest.approx([0.04, 0.01, 0.02])
    # -1 per action dimension on average.
    assert model.target_entropy == [-1.0, -3.0, -1.0]
    drop_task(model, "plus")
    assert model.target_entropy == [-3.0, -1.0] and model.ent_coef == pytest.approx([0.01, 0.02])


def test_observation_statistics_start_with_those_of_all_tasks() -> None:
    model = make_agent(normalize_observations=True).learn(60)
    norm = model.policy.observation_norm
    norm.mean[:], norm.variance[:] = th.tensor([[1.0, 0.0], [3.0, 4.0]]), th.tensor([[2.0, 1.0], [4.0, 1.0]])
    add_task(model, "zero", make_reach(0.0, observation_size=1))
    norm = model.policy.observation_norm
    # Mean 2, and 3 within the tasks and 1 between them; the padded entry stays at zero.
    assert norm.mean[2].tolist() == [2.0, 0.0] and norm.variance[2].tolist() == [4.0, 1.0]
    assert norm.count[2] == 1_000


def test_batches_and_rings_keep_their_rows_of_each_task() -> None:
    model = make_agent(buffer_size=4_001)
    assert model.replay_buffer.buffer_size == 2_000
    add_task(model, "zero", make_reach(0.0))
    assert (model.batch_size, model.buffer_size, model.replay_buffer.buffer_size) == (48, 6_001, 2_000)
    drop_task(drop_task(model, "zero"), "minus")
    assert (model.batch_size, model.buffer_size, model.replay_buffer.buffer_size) == (16, 2_000, 2_000)


# Environments


def test_the_environments_are_those_of_all_tasks_and_the_old_ones_are_closed() -> None:
    env = make_env(4)
    closed = []
    env.close = lambda: closed.append(True)  # type: ignore[method-assign]
    model = add_task(make_agent(env).learn(40), "zero", make_reach(0.0))
    assert closed == [True]
    assert model.env.task_names == ("plus", "minus", "zero")
    assert model.env.num_envs == model.n_envs == 6
    assert (model.env.seed_value, model.env.has_own_seed) == (env.seed_value, False)
    assert model.env.suite.full_protocol == model.protocol == env.suite.full_protocol
    assert set(evaluate_tasks(model, model.env, 2).returns()) == {"plus", "minus", "zero"}


@pytest.mark.parametrize(("n_envs", "grown"), [(1, 1), (2, 3), (3, 5), (5, 7)])
def test_every_task_keeps_its_copies(n_envs: int, grown: int) -> None:
    model = make_agent(make_env(n_envs))
    layout = model.env.layout
    add_task(model, "zero", make_reach(0.0))
    assert model.env.num_envs == grown
    plays = [task for cycle in model.env.layout for task in cycle]
    if n_envs > 1:
        assert [plays.count(task) for task in (0, 1)] == [[task for (task,) in layout].count(task) for task in (0, 1)]
    assert set(plays) == {0, 1, 2}
    assert drop_task(model, "zero").env.layout == layout


def test_a_ready_spec_and_its_protocol() -> None:
    model = make_agent(make_multitask_env(["contextual/light"]))
    before = model.protocol
    spec = make_suite(["contextual/reversed"]).tasks[0]
    add_task(model, "backwards", spec)
    assert model.full_names == ["contextual/light", "contextual/backwards"]
    assert model.protocol == model.env.suite.full_protocol == before
    peculiar = TaskSpec("mine", "own", lambda _: Reach(), 4, 2, 1, protocol={"wind": 1}, source_protocol={"version": 2})
    add_task(model, "mine", peculiar)
    assert model.protocol == {**before, "own": {"version": 2}, "tasks": {"own/mine": {"wind": 1}}}
    assert find_tasks(model.env).protocol == model.protocol
    assert drop_task(model, "mine").protocol == model.env.suite.full_protocol == before


def test_an_agent_without_environments_stays_without(tmp_path: Path) -> None:
    model = make_agent().learn(60)
    model.save(tmp_path / "model")
    loaded = VarShareSAC.load(tmp_path / "model", device="cpu")
    add_task(loaded, "zero", make_reach(0.0))
    add_task(model, "zero", make_reach(0.0))
    assert loaded.env is None
    for name in ("task_names", "full_names", "action_sizes", "action_bounds", "protocol", "observation_space"):
        # Tuples come back from files as lists.
        assert saving.encode(getattr(loaded, name)) == saving.encode(getattr(model, name)), name
    action, _ = loaded.predict_task(np.zeros(2), "zero")
    assert action.shape == (1,)
    assert loaded.n_envs == model.n_envs == 3
    loaded.set_env(make_multitask_env({"plus": Reach, "minus": Reach, "zero": Reach}))
    loaded = VarShareSAC.load(tmp_path / "model", device="cpu")
    drop_task(drop_task(add_task(loaded, "zero", make_reach(0.0)), "zero"), "minus")
    assert loaded.n_envs == 1
    assert loaded.task_names == ["plus"] and loaded.predict_task(np.zeros(2), "plus")[0].shape == (1,)


def test_smaller_tasks_are_padded_and_larger_ones_are_refused() -> None:
    model = make_agent(make_env(observation_size=3, action_size=2))
    add_task(model, "small", make_reach(0.0, observation_size=1, action_size=1))
    assert model.action_sizes == [2, 2, 1] and model.observation_sizes == [3, 3, 1]
    assert model.policy.action_mask[:, 0].tolist() == [[1, 1], [1, 1], [1, 0]]
    assert model.target_entropy_tensor.tolist() == [-1.0, -1.0, -0.5]
    model.learn(60)
    for sizes, words in (
        ((4, 1), r"observations of 4 numbers, .* at most 3, .*padded_sizes=\(4, 2\)"),
        ((1, 3), r"actions of 3 numbers, .* at most 2, .*padded_sizes=\(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            add_task(model, "large", make_reach(0.0, observation_size=sizes[0], action_size=sizes[1]))
    # Without the large ones the networks are as wide as before.
    drop_task(drop_task(model, "plus"), "minus")
    assert (model.policy.observation_size, model.policy.action_size) == (3, 2)
    assert model.observation_space.shape == (4,)
    model.learn(40)


def test_room_can_be_reserved() -> None:
    suite = dataclasses.replace(make_suite({"plus": make_reach(0.7)}), padded_sizes=(5, 3))
    model = make_agent(make_multitask_env(suite))
    assert (model.observation_space.shape, model.action_space.shape) == ((6,), (3,))
    add_task(model, "large", make_reach(0.0, observation_size=5, action_size=3)).learn(40)


def test_environments_of_another_kind_are_given() -> None:
    def make_vec_env(n_tasks: int) -> DummyVecEnv:
        spaces = {"observation_size": 2 + n_tasks}
        return DummyVecEnv([lambda: OneHot(**spaces)])

    class OneHot(Reach):
        def _observe(self) -> np.ndarray:
            observation = np.zeros(self.observation_space.shape, np.float32)
            observation[-1] = 1.0
            return observation

    model = make_agent(make_vec_env(2), n_tasks=2)
    with pytest.raises(ValueError, match=r"Only environments as make_multitask_env gives them .* env="):
        add_task(model, "task_2", make_reach())
    with pytest.raises(ValueError, match=r"observations of \(5,\).* got \(4,\)"):
        add_task(model, "task_2", env=make_vec_env(2))
    env = make_vec_env(3)
    add_task(model, "task_2", env=env)
    assert model.env is env and model.task_names == ["task_0", "task_1", "task_2"] and model.action_sizes == [1, 1, 1]
    with pytest.raises(ValueError, match="Only environments as make_multitask_env"):
        drop_task(model, "task_2")
    drop_task(model, "task_2", env=make_vec_env(2))
    assert model.task_names == ["task_0", "task_1"]


def test_given_environments_have_the_old_tasks_as_they_were() -> None:
    def make(**sizes: int) -> Any:
        return make_multitask_env({name: make_reach(action_size=size) for name, size in sizes.items()})

    model = make_agent(make(one=2, other=1))
    smaller = dataclasses.replace(make_suite({"one": make_reach(action_size=1)}), padded_sizes=(2, 2))
    with pytest.raises(ValueError, match=r"\['one', 'other'\] have actions of \[2, 1\] .* environment of \[1, 2\]"):
        add_task(model, "new", env=make(one=1, other=2, new=2))
    with pytest.raises(ValueError, match=r"\['one'\] have actions of \[2\] numbers, .* of \[1\]"):
        drop_task(model, "other", env=make_multitask_env(smaller))
    assert add_task(model, "new", env=make(one=2, other=1, new=1)).action_sizes == [2, 1, 1]


def test_an_agent_of_one_plain_environment_becomes_one_of_many_tasks() -> None:
    model = make_agent(DummyVecEnv([make_reach(0.7)]), task_input="one_hot").learn(40)
    assert model.one_hot_size == 0
    before = outputs(model, [0])
    env = make_multitask_env({"task": make_reach(0.7), "other": make_reach(0.0)})
    add_task(model, "other", env=env)
    assert (model.one_hot_size, model.task_names, model.observation_space.shape) == (2, ["task", "other"], (4,))
    # One task's product is another routine of the library than that of two.
    for name, after in outputs(model, [0]).items():
        th.testing.assert_close(after, before[name], msg=name)
    model.learn(40)


# Going on


def test_training_waits_for_rows_of_the_new_task_or_for_its_own_scale() -> None:
    for reward_scale, episodes in (("typical", 0), ("own", 1)):
        model = make_agent().learn(60)
        add_task(model, "zero", make_reach(0.0), reward_scale=reward_scale)
        # With the scale of the others the policy goes on acting; one of its own needs an episode, which chance plays.
        assert model.is_warm() == (episodes == 0) and not model.is_ready()
        updates = model._n_updates
        model.learn(3 * 4 * episodes, reset_num_timesteps=False)
        assert model._n_updates - updates == episodes and model.is_warm()
        model.learn(6, reset_num_timesteps=False)
        assert model._n_updates - updates == 2 + episodes and model.is_ready()
        assert model.num_timesteps == 60 + 12 * episodes + 6


def test_logger_noise_and_callbacks_stay_with_the_agent() -> None:
    model = make_agent(action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))
    logger = Logger(None, [])
    model.set_logger(logger)
    model.learn(40)
    add_task(model, "zero", make_reach(0.0)).learn(40)
    assert model.logger is logger
    assert model.action_noise().shape == (3, 1)


@pytest.mark.parametrize("has_env", [True, False])
def test_a_task_that_is_left_of_two_of_one_name_has_its_name_without_a_source(has_env: bool, tmp_path: Path) -> None:
    specs = [TaskSpec("reach", source, lambda _: Reach(), 4, 2, 1) for source in ("one", "two")]
    model = make_agent(make_multitask_env([*specs, TaskSpec("push", "one", lambda _: Reach(), 4, 2, 1)]), batch_size=48)
    assert model.task_names == ["one/reach", "two/reach", "push"]
    if not has_env:
        model.save(tmp_path / "model")
        model = VarShareSAC.load(tmp_path / "model", device="cpu")
    before = outputs(model, [1, 2])
    drop_task(model, "one/reach")
    assert (model.task_names, model.full_names) == (["reach", "push"], ["two/reach", "one/push"])
    assert_equal(before, outputs(model, [0, 1]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # PyTorch, compiling
@th._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_a_compiled_agent_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # The default backend would build each graph with a C compiler; this one runs the traced operations as they are.
    compile_module = th.nn.Module.compile
    monkeypatch.setattr(th.nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    th._dynamo.reset()
    model = make_agent(compile=True, actor_depth=0, critic_depth=0).learn(24)
    agent = specialise(model, make_reach(0.2), "new").learn(24)
    assert not at_base(model, make_reach(0.2), "new", "random", None).compile
    add_task(model, "new", make_reach(0.2), from_agent=agent)
    updates = model._n_updates
    model.learn(24, reset_num_timesteps=False)
    assert model._n_updates > updates


# Refusals


def test_factors_that_the_other_tasks_need_are_not_lost() -> None:
    """Two numbers, and a one-hot: of rank 8 the actor's first layer has as many factors as these are inputs."""
    model = make_agent(adapter="low_rank", task_input="one_hot").learn(60)
    before = tensors(model)
    drop_task(add_task(model, "zero", make_reach(0.0)), "zero")
    assert_equal(before, tensors(model))
    with pytest.raises(ValueError, match=r"trunk\.linear_in has at most 3 factors, .* need 4.* \(2\), got rank=8"):
        drop_task(model, "plus")
    assert_equal(before, tensors(model))


def test_what_cannot_be_done_leaves_the_agent_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_agent().learn(40)
    before, attributes = tensors(model), dict(vars(model))
    other = make_multitask_env({"plus": Reach, "zero": Reach, "minus": Reach})
    attempts: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "has a task 'minus' already", lambda: add_task(model, "minus", make_reach())),
        (ValueError, "has a task 'custom/plus' already", lambda: add_task(model, "custom/plus", make_reach())),
        (ValueError, "Expected the name of the new task, got ''", lambda: add_task(model, "", make_reach())),
        (ValueError, "Expected the name of the new task, got 3", lambda: add_task(model, 3, make_reach())),
        (ValueError, "Expected make_env=", lambda: add_task(model, "zero")),
        (ValueError, "Expected a callable", lambda: add_task(model, "zero", Reach())),
        (ValueError, r"\['plus', 'minus', 'zero'\] in this order", lambda: add_task(model, "zero", env=other)),
        (ValueError, "did you mean 'minus'", lambda: drop_task(model, "minos")),
        (MemoryError, "side by side", lambda: add_task(model, "zero", make_reach())),
    ]
    for error, words, attempt in attempts:
        if error is MemoryError:
            monkeypatch.setattr(memory, "free_memory", lambda _: 1_000)
        with pytest.raises(error, match=words):
            attempt()
    assert vars(model) == attributes
    assert_equal(before, tensors(model))


def test_the_last_task_stays() -> None:
    model = drop_task(make_agent(), "plus")
    with pytest.raises(ValueError, match="'minus' is the only task"):
        drop_task(model, "minus")


def test_not_while_several_processes_train_the_agent() -> None:
    model = make_agent()
    model._peers = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="several processes"):
        add_task(model, "zero", make_reach())


def test_a_pruned_agent_keeps_its_tasks() -> None:
    model = make_agent().learn(40)
    prune(model, keep_fraction=0.5)
    before = tensors(model)
    for attempt in (
        lambda: add_task(model, "zero", make_reach()),
        lambda: drop_task(model, "plus"),
        lambda: specialise(model, make_reach()),
    ):
        with pytest.raises(ValueError, match="change them first and prune afterwards"):
            attempt()
    assert_equal(before, tensors(model))
