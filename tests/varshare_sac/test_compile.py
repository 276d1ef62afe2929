"""``compile=True`` computes the same, and models are saved and loaded as ever."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch as th
import torch._inductor.config

from sb3_varshare import VarShareSAC

TinyAgent = Callable[..., VarShareSAC]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # PyTorch, compiling
@pytest.mark.parametrize("sigma_structure", ["full", "tied"])
def test_a_compiled_agent_takes_the_same_gradient_steps(
    tiny_agent: TinyAgent, tmp_path: Path, sigma_structure: str
) -> None:
    # PyTorch compiles each piece of code eight times at most, those of other tests counted.
    th._dynamo.reset()
    # Adam would make a whole step of what is a rounding error in a gradient of zero.
    options = dict(learning_rate=0.1, policy_kwargs={"optimizer_class": th.optim.SGD}, actor_depth=0, critic_depth=0)
    options |= dict(learning_starts=10_000, batch_size=32, ent_coef=0.1)
    plain, compiled = (
        tiny_agent(compile=compiled, sigma_structure=sigma_structure, **options) for compiled in (False, True)
    )
    # A compiled graph draws its own random numbers unless it is told to draw PyTorch's.
    with th._inductor.config.patch(fallback_random=True):
        for model in (plain, compiled):
            model.learn(80)
            model.learning_starts = 0
        compiled.policy.load_state_dict(plain.policy.state_dict())
        before = {name: value.clone() for name, value in plain.policy.state_dict().items()}
        for model in (plain, compiled):
            th.manual_seed(5)
            model.train(3, 32)
    assert plain.policy.actor._compiled_call_impl is None
    assert compiled.policy.actor._compiled_call_impl is not None
    assert plain.policy.state_dict().keys() == compiled.policy.state_dict().keys()
    for name, value in plain.policy.state_dict().items():
        assert not th.equal(value, before[name]), name
        th.testing.assert_close(compiled.policy.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)

    compiled.save(tmp_path / "model")
    loaded = VarShareSAC.load(tmp_path / "model", trusted=True)  # an optimizer class is a pickle
    assert loaded.compile
    observation = plain.env.reset()
    actions, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_allclose(actions, compiled.predict(observation, deterministic=True)[0], atol=1e-6)
