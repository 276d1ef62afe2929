"""A new task on the frozen base: what is frozen does not move, and what was learned fits into the large agent."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from growing import AGENTS, agent_name, assert_equal, make_agent, make_env, make_reach, outputs, tensors

from sb3_varshare import VarShareSAC, export_policy, load_policy, make_multitask_env, prune
from sb3_varshare.growth import add_task, drop_task, single_task_env, specialise
from sb3_varshare.growth.task_axes import is_own, task_axes
from sb3_varshare.tasks import make_suite

# Adam moves what it is given even without a gradient, by weight decay and by momentum that it has gathered.
MOVING: dict[str, Any] = {"weight_decay": 0.1}
WITH_RESIDUAL = [kwargs for kwargs in AGENTS if kwargs["adapter"] not in ("none", "independent")]


def shared(model: VarShareSAC) -> dict[str, th.Tensor]:
    """What all tasks share in actor, critics and target, by name."""
    axes, state = task_axes(model), model.policy.state_dict()
    return {
        name: tensor.clone()
        for name, tensor in state.items()
        if not is_own(tensor, axes[name], model.n_tasks) and not name.startswith("observation_norm")
    }


@pytest.mark.parametrize("kwargs", AGENTS, ids=agent_name)
def test_it_starts_at_the_base_and_leaves_the_large_agent_alone(kwargs: dict[str, Any]) -> None:
    model = make_agent(**kwargs).learn(60)
    before, random = tensors(model), th.get_rng_state()
    agent = specialise(model, make_reach(0.2), "new", freeze_base=False)
    if kwargs["adapter"] != "embedding":
        assert th.equal(random, th.get_rng_state())
    assert_equal(before, tensors(model))
    assert (agent.task_names, agent.n_tasks, agent.batch_size, agent.num_timesteps) == (["new"], 1, 16, 0)
    assert agent._n_updates == 0 < model._n_updates
    assert agent.policy.critic.net.kl_divergence().item() == pytest.approx(0.0, abs=1e-4)
    if kwargs["adapter"] == "independent":
        return
    base, grown = model.policy, add_task(make_agent(**kwargs), "new", make_reach(0.2)).policy
    for name, value in shared(agent).items():
        if not name.startswith("critic_target"):
            theirs = base.state_dict()[name]
            # The one-hot of two tasks has become that of one, whose weights are zero.
            rows = value.shape[-2] - 1 if value.shape != theirs.shape else None
            assert th.equal(value[..., :rows, :], theirs[..., :rows, :]), name
            assert rows is None or value[..., rows:, :].count_nonzero() == 0
    for target, source in zip(
        agent.policy.critic_target.averaged_tensors(), agent.policy.critic.averaged_tensors(), strict=True
    ):
        assert th.equal(target, source)
    assert grown.n_tasks == 3


def test_the_base_acts_as_the_large_agent_without_its_residuals() -> None:
    model = make_agent().learn(60)
    agent = specialise(model, make_reach(0.2))
    observations = th.rand(2, 64, 2)
    expected = model.policy.actor.base(model.policy.actor_input(observations))[:1]
    th.testing.assert_close(agent.policy.actor(agent.policy.actor_input(observations[:1])), expected)


@pytest.mark.parametrize("kwargs", WITH_RESIDUAL, ids=agent_name)
def test_what_the_tasks_share_does_not_move(kwargs: dict[str, Any]) -> None:
    agent = specialise(make_agent(**kwargs, **MOVING).learn(60), make_reach(0.2), seed=0)
    frozen, own = shared(agent), outputs(agent, [0])["critic"]
    assert frozen and agent.base_frozen and agent.policy.base_frozen
    agent.learn(80)
    assert agent._n_updates > 20
    assert_equal(frozen, shared(agent))
    if kwargs.get("critic_residuals", True):
        assert not th.equal(own, outputs(agent, [0])["critic"])
    trained = [p for module in (agent.actor, agent.critic) for g in module.optimizer.param_groups for p in g["params"]]
    held = {id(parameter) for parameter in trained}
    for name, parameter in agent.policy.named_parameters():
        if name in frozen:
            assert id(parameter) not in held and parameter.grad is None and not parameter.requires_grad, name


def test_without_freezing_everything_moves() -> None:
    agent = specialise(make_agent().learn(60), make_reach(0.2), freeze_base=False)
    before = shared(agent)
    agent.learn(80)
    assert not any(th.equal(value, before[name]) for name, value in shared(agent).items() if name.endswith("theta"))


def test_of_an_embedding_the_vector_alone_is_trained() -> None:
    agent = specialise(make_agent(adapter="embedding").learn(60), make_reach(0.2))
    table = agent.policy.critic.task_input.table
    assert [g["params"] for g in agent.critic.optimizer.param_groups] == [[table]]
    assert [g["params"] for g in agent.actor.optimizer.param_groups] == [[]]
    before, ent_coef = table.detach().clone(), agent._ent_coef().item()
    agent.learn(80)
    assert not th.equal(table, before) and agent._ent_coef().item() != ent_coef
    assert agent.policy.actor.trunk.linear_in.theta.grad is None


def test_the_base_stays_frozen_through_a_file(tmp_path: Path) -> None:
    model = make_agent(**MOVING).learn(60)
    agent = specialise(model, make_reach(0.2), "new").learn(60)
    agent.save(tmp_path / "new")
    loaded = VarShareSAC.load(tmp_path / "new", env=single_task_env(model, agent.env.suite.tasks[0]), device="cpu")
    assert loaded.base_frozen and loaded.policy.base_frozen
    after = tensors(loaded)
    assert_equal(
        {name: value for name, value in tensors(agent).items() if name in after} | {"written": after["written"]}, after
    )
    loaded.learn(60)
    assert_equal(shared(agent), shared(loaded))
    assert add_task(model, "new", make_reach(0.2), from_agent=loaded).n_tasks == 3


def test_pruning_leaves_a_frozen_base_as_it_is(tmp_path: Path) -> None:
    model = make_agent(**MOVING).learn(60)
    export_policy(model, tmp_path / "policy")
    agent = specialise(model, make_reach(0.2), "new").learn(60)
    base = [layer.theta.detach().clone() for layer in agent.policy.actor.linears()]
    with pytest.raises(ValueError, match="refit_base=True moves the base"):
        prune(agent, keep_fraction=0.5, refit_base=True)
    report = prune(agent, keep_fraction=0.5)
    for name in ("actor", "critic"):
        assert 0 < report.kept(name) <= round(0.5 * report.total(name))
    values = [mu.detach().clone() for mu in agent.policy.actor.means()]
    agent.learn(40)
    assert all(th.equal(old, layer.theta) for old, layer in zip(base, agent.policy.actor.linears(), strict=True))
    assert not all(th.equal(old, new) for old, new in zip(values, agent.policy.actor.means(), strict=True))
    # Its base is still that of the others, beside which its file can stand.
    export_policy(agent, tmp_path / "policy")
    assert set(load_policy(tmp_path / "policy").task_names) == {"plus", "minus", "new"}


@pytest.mark.parametrize("kwargs", [*WITH_RESIDUAL, {"adapter": "independent"}], ids=agent_name)
def test_what_was_learned_is_put_into_the_large_agent(kwargs: dict[str, Any]) -> None:
    model = make_agent(**kwargs).learn(60)
    agent = specialise(model, make_reach(0.2), "new", seed=1).learn(80)
    before, alone, learned = outputs(model, [0, 1]), outputs(agent, [0]), tensors(agent)
    add_task(model, "new", make_reach(0.2), from_agent=agent)
    # The others do not change, and the new one acts as it did alone, up to the order of a sum over one task or three.
    assert_equal(before, outputs(model, [0, 1]))
    for name in ("actor", "critic"):
        th.testing.assert_close(outputs(model, [2])[name], alone[name], rtol=1e-4, atol=1e-4)
    state, axes = model.policy.state_dict(), task_axes(model)
    for name, tensor in agent.policy.state_dict().items():
        if is_own(tensor, axes[name], 1) and tensor.shape[-2:] == state[name].shape[-2:] and tensor.dim() > 2:
            assert th.equal(state[name].select(-3, -1), tensor.select(-3, 0)), name
    after = tensors(model)
    assert th.equal(after["rows of 2"], learned["rows of 0"])
    assert th.equal(after["reward_scale.return_min"][2:], learned["reward_scale.return_min"])
    if not kwargs.get("share_ent_coef") and not isinstance(kwargs.get("ent_coef"), list):
        assert th.equal(after["ent_coef"][2:], learned["ent_coef"])
        assert th.equal(after["exp_avg of ent_coef"][2:], learned["exp_avg of ent_coef"])
    for name in after:
        if name.startswith("exp_avg_sq of ") and name.endswith("residual.mu") and "linear_in" not in name:
            assert th.equal(after[name].select(-3, 2), learned[name].select(-3, 0)), name
    model.learn(40)


def test_normalisation_goes_along() -> None:
    model = make_agent(normalize_observations=True).learn(60)
    agent = specialise(model, make_reach(0.2), "new").learn(40)
    add_task(model, "new", make_reach(0.2), from_agent=agent)
    ours, theirs = model.policy.observation_norm, agent.policy.observation_norm
    assert theirs.count[0] == 1_040
    for name in ("mean", "variance", "count"):
        assert th.equal(getattr(ours, name)[2], getattr(theirs, name)[0])


def test_rings_of_another_size_hold_the_newest_rows() -> None:
    model = make_agent()
    agent = specialise(model, make_reach(0.2), "new", buffer_size=10).learn(25)
    newest = agent.replay_buffer._rows[0, th.arange(15, 25) % 10]
    add_task(model, "new", make_reach(0.2), from_agent=agent)
    assert model.replay_buffer.written.tolist() == [0, 0, 10]
    assert th.equal(model.replay_buffer._rows[2, :10], newest)


def test_arguments_are_carried_over_or_changed() -> None:
    model = make_agent(make_env(6), beta=0.03, buffer_size=4_001, learning_starts=500).learn(60)
    model.log_ent_coef.data = th.tensor([0.04, 0.01]).log()
    agent = specialise(model, make_reach(0.2), learning_rate=1e-2, rho_lr_multiplier=0.5)
    assert (agent.learning_rate, agent.n_envs, agent.buffer_size) == (1e-2, 3, 2_000)
    assert agent.beta == pytest.approx(0.003)
    assert specialise(model, make_reach(0.2), freeze_base=False).beta == 0.03
    assert specialise(model, make_reach(0.2), beta=0.2).beta == 0.2
    assert agent.learning_starts == agent.batch_size == 16
    assert agent._ent_coef().item() == pytest.approx(0.02)
    assert specialise(model, make_reach(0.2), ent_coef="auto_0.5")._ent_coef().item() == pytest.approx(0.5)
    rates = [group["lr_multiplier"] for group in agent.actor.optimizer.param_groups]
    assert rates == [1.0, 0.5]


def test_the_reward_scale_is_typical_or_its_own() -> None:
    model = add_task(make_agent(), "zero", make_reach())
    model.reward_scale.return_max[:] = th.tensor([1.0, -2.0, 0.0])
    model.reward_scale.return_min[:] = th.tensor([-50.0, -3.0, -7.0])
    for agent in (specialise(model, make_reach(0.2)), add_task(model, "more", make_reach(0.2))):
        # Ranges of 50, 3 and 7: the middle one.
        assert agent.reward_scale.return_max[-1] == 0.0 and agent.reward_scale.return_min[-1] == -7.0
    own = specialise(model, make_reach(0.2), reward_scale="own")
    assert own.reward_scale.missing_tasks() == {0}
    assert specialise(make_agent(), make_reach()).reward_scale.missing_tasks() == {0}
    with pytest.raises(ValueError, match="reward_scale must be one of"):
        specialise(model, make_reach(0.2), reward_scale="mine")


def test_a_shared_network_can_be_the_base_of_a_residual() -> None:
    model = make_agent(adapter="none").learn(60)
    agent = specialise(model, make_reach(0.2), adapter="varshare")
    frozen = {name: tensor for name, tensor in shared(agent).items() if "critic_target" not in name}
    agent.learn(60)
    state = agent.policy.state_dict()
    assert_equal(frozen, {name: state[name] for name in frozen})
    with pytest.raises(ValueError, match="from_agent has adapter 'varshare', the agent 'none'"):
        add_task(model, "new", make_reach(0.2), from_agent=agent)


def test_smaller_tasks_are_padded_to_the_networks() -> None:
    model = make_agent(make_env(observation_size=3, action_size=2))
    agent = specialise(model, make_reach(0.2, observation_size=1, action_size=1), "small")
    assert (agent.observation_space.shape, agent.action_space.shape, agent.action_sizes) == ((4,), (2,), [1])
    assert agent.predict_task(th.zeros(1).numpy(), "small")[0].shape == (1,)
    with pytest.raises(ValueError, match="observations of 4 numbers"):
        specialise(model, make_reach(0.2, observation_size=4))


def test_a_spec_brings_its_name_and_seeds_are_those_given() -> None:
    model = make_agent(make_multitask_env(["contextual/light"]))
    spec = make_suite(["contextual/reversed"]).tasks[0]
    agent = specialise(model, spec, seed=7)
    assert (agent.task_names, agent.full_names, agent.seed) == (["reversed"], ["contextual/reversed"], 7)
    assert (agent.env.seed_value, agent.env.has_own_seed) == (7, True)
    assert th.initial_seed() == 7


# Refusals


def test_what_has_another_base_is_refused() -> None:
    model = make_agent().learn(60)
    frozen = specialise(model, make_reach(0.2), "new").learn(40)
    attempts: list[tuple[str, Any]] = [
        ("has trained all of its weights", specialise(model, make_reach(0.2), "new", freeze_base=False)),
        ("has sigma_prior 0.1, the agent 0.2", specialise(model, make_reach(0.2), "new", sigma_prior=0.1)),
        ("has gamma 0.9, the agent 0.99", specialise(model, make_reach(0.2), "new", gamma=0.9)),
        ("Expected from_agent of one task", model),
    ]
    for words, agent in attempts:
        with pytest.raises(ValueError, match=words):
            add_task(model, "new", make_reach(0.2), from_agent=agent)
    assert model.n_tasks == 2
    model.learn(40)
    with pytest.raises(ValueError, match=r"stands on another base: critic\.net.* differs"):
        add_task(model, "new", make_reach(0.2), from_agent=frozen)


def test_changed_tasks_leave_the_base_as_it_is() -> None:
    model = make_agent(task_input="one_hot").learn(60)
    agent = specialise(model, make_reach(0.2), "new").learn(40)
    drop_task(add_task(model, "zero", make_reach(0.0)), "plus")
    add_task(model, "new", make_reach(0.2), from_agent=agent)
    assert model.task_names == ["minus", "zero", "new"]


@pytest.mark.parametrize("task_input", [None, "one_hot"])
def test_where_nothing_is_left_to_train(task_input: str | None) -> None:
    model = make_agent(adapter="none", task_input=task_input)
    with pytest.raises(ValueError, match="nothing of its own that could be trained on a frozen base"):
        specialise(model, make_reach(0.2))
    assert specialise(model, make_reach(0.2), freeze_base=False).learn(40)._n_updates > 0


@pytest.mark.parametrize("changes", [{"betta": 0.1}, {"n_tasks": 2}, {"_n_updates": 0}], ids=str)
def test_unknown_arguments_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"no arguments .*{next(iter(changes))}"):
        specialise(make_agent(), make_reach(0.2), **changes)


def test_the_networks_cannot_be_reshaped() -> None:
    with pytest.raises(ValueError, match="Arguments that shape the networks cannot be changed"):
        specialise(make_agent(), make_reach(0.2), critic_width=16)
