"""One Gymnasium env that can play any task of a suite."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from sb3_varshare.tasks.encoding import append_task
from sb3_varshare.tasks.registry import Tasks, make_suite
from sb3_varshare.tasks.seeding import Purpose, root_seed, task_stream
from sb3_varshare.tasks.spaces import action_bounds, check_spaces, to_bounds
from sb3_varshare.tasks.suite import TaskDescription, TaskSuite

Observation = npt.NDArray[np.float32]


class MultiTaskEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """
    Plays one task an episode: the next of its tasks in turn, or the one named in ``reset(options={"task": ...})``.

    Observation (D + T,): the task's observation, padded with zeros to the longest of the suite, and the task's one-hot.
    Action (A,) in [-1, 1]: the entries the task uses are rescaled to its own bounds, the others are ignored.
    An env is built at the first episode of its task. ``info`` holds ``task`` and ``task_id``; for a task that reports
    success also ``is_success``, at any step of the episode so far, and ``success_last``, at this step.

    :param suite: a suite or whatever :func:`make_suite` takes
    :param seed: root of all random streams, which also depend on the task's name, the rank and the purpose; None draws
        one
    :param purpose: ``train`` or ``evaluation``
    :param rank: which copy of the env this is
    :param tasks: names or ids of the tasks to play in turn; all by default
    :param render_mode: of the task's env
    :param suite_options: for :func:`make_suite`
    :raises ValueError: if a task, an option or a task's space is not one that can be used
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 30}  # noqa: RUF012 - as gymnasium

    def __init__(
        self,
        suite: Tasks,
        seed: int | None = 0,
        purpose: Purpose = "train",
        rank: int = 0,
        tasks: Sequence[str | int] | None = None,
        render_mode: str | None = None,
        **suite_options: Any,
    ) -> None:
        self.suite: TaskSuite = make_suite(suite, **suite_options)
        self.task_names = self.suite.task_names
        self.task_description: TaskDescription = self.suite.describe()
        self.render_mode = render_mode
        self.seed_value, self.purpose, self._rank = root_seed(seed), purpose, rank
        self._envs: dict[int, gym.Env] = {}
        self._streams_due: set[int] = set()
        self.set_tasks(range(self.suite.n_tasks) if tasks is None else tasks)
        self._padded_size = self.suite.observation_size
        size = self._padded_size + self.suite.n_tasks
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.suite.action_size,), dtype=np.float32)

    def set_tasks(self, tasks: Sequence[str | int], rank: int | None = None) -> None:
        """
        Choose which tasks are played in turn, beginning with the first at the next reset.

        :param tasks: names or ids, at least one
        :param rank: which copy of the env this is from now on, on random streams of its own; None leaves it as it is
        :raises ValueError: if there is no task, or none of that name
        """
        if len(tasks) == 0:
            raise ValueError("An env needs at least one task to play, got none.")
        self._tasks = tuple(self.suite.task_id(task) for task in tasks)
        if rank is not None:
            self._rank = rank
            self._streams_due = set(self._envs)
        self._turn = 0
        self.current_task = self._tasks[0]
        self._env: gym.Env | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """
        Start an episode.

        :param seed: new root of all random streams; also begins the turn of tasks anew
        :param options: ``{"task": name or id}`` plays that task, out of turn
        :return: observation (D + T,), and info with the task
        """
        super().reset(seed=seed)
        if seed is not None:
            self.seed_value, self._turn = seed, 0
            self._streams_due = set(self._envs)
        if options and "task" in options:
            self.current_task = self.suite.task_id(options["task"])
        else:
            self.current_task = self._tasks[self._turn % len(self._tasks)]
            self._turn += 1
        self._env = self._task_env(self.current_task)
        self._steps = 0
        self._succeeded: bool | None = None
        observation, _ = self._env.reset()
        return self._encode(observation), self._info({})

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        :param action: (A,) in [-1, 1]
        :return: observation (D + T,), reward, terminated by the task itself, truncated by its own or our time limit
            and not terminated, info
        """
        env = self._playing()
        observation, reward, terminated, truncated, info = env.step(self._rescale(action, env.action_space))
        self._steps += 1
        horizon = self.suite.tasks[self.current_task].horizon
        out_of_time = truncated or (horizon is not None and self._steps >= horizon)
        return (
            self._encode(observation),
            float(reward),
            bool(terminated),
            bool(out_of_time and not terminated),
            self._info(info),
        )

    def render(self) -> Any:
        """
        :return: a frame of the current task's env
        """
        return self._playing().render()

    def close(self) -> None:
        """Close the envs of all tasks; a later reset builds them again."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()
        self._env = None

    def _playing(self) -> gym.Env:
        if self._env is None:
            raise RuntimeError("No task is being played; call reset() first.")
        return self._env

    def _task_env(self, task_id: int) -> gym.Env:
        env = self._envs.get(task_id)
        if env is None or task_id in self._streams_due:
            env = self._envs[task_id] = self._on_new_stream(task_id, env)
            self._streams_due.discard(task_id)
        return env

    def _on_new_stream(self, task_id: int, env: gym.Env | None) -> gym.Env:
        stream = task_stream(self.seed_value, self.purpose, self.suite.tasks[task_id].full_name, self._rank)
        if env is None:
            return self._build(task_id, stream)
        if env.has_wrapper_attr("reseed"):
            env.get_wrapper_attr("reseed")(stream)
            return env
        env.close()
        return self._build(task_id, stream)

    def _build(self, task_id: int, stream: np.random.SeedSequence) -> gym.Env:
        task = self.suite.tasks[task_id]
        env = task.make(stream)
        sizes = check_spaces(task.full_name, env)
        if sizes != (task.observation_size, task.action_size):
            env.close()
            raise ValueError(
                f"Task {task.full_name!r} declares observation and action sizes "
                f"{(task.observation_size, task.action_size)}, but its env has {sizes}; correct its TaskSpec."
            )
        bounds = action_bounds(env)
        if not np.allclose(bounds, task.bounds):
            env.close()
            raise ValueError(
                f"Task {task.full_name!r} declares actions from {task.bounds[0]} to {task.bounds[1]}, but its env has "
                f"{bounds[0]} to {bounds[1]}; give its TaskSpec these as action_bounds."
            )
        if self.render_mode is not None:
            # A maker takes only a stream; Gymnasium's envs read this attribute when they draw.
            env.unwrapped.render_mode = self.render_mode
        return env

    def _rescale(self, action: npt.NDArray[np.float32], space: Any) -> npt.NDArray[Any]:
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"Expected an action of shape {self.action_space.shape}, got {np.shape(action)}.")
        return to_bounds(np.asarray(action, dtype=np.float32), space.low, space.high)

    def _encode(self, observation: npt.NDArray[Any]) -> Observation:
        task = self.suite.tasks[self.current_task]
        if np.shape(observation) != (task.observation_size,):
            raise ValueError(
                f"Task {task.full_name!r} must give observations of shape {(task.observation_size,)}, as its "
                f"observation space says, got {np.shape(observation)}; correct its env or its space."
            )
        return append_task(observation, self.current_task, self.suite.n_tasks, self._padded_size)

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a task's info, under our names."""
        kept: dict[str, Any] = {"task": self.task_names[self.current_task], "task_id": self.current_task}
        success = info.get("is_success", info.get("success"))
        if success is not None:
            kept["success_last"] = bool(success)
            self._succeeded = bool(success) or bool(self._succeeded)
        if self._succeeded is not None:
            kept["is_success"] = self._succeeded
        if "TimeLimit.truncated" in info:
            kept["TimeLimit.truncated"] = info["TimeLimit.truncated"]
        return kept
