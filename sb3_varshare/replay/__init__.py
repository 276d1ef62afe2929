"""Replay on the training device and the reward scale of each task."""

from sb3_varshare.replay.reward_scale import RewardScale
from sb3_varshare.replay.task_replay_buffer import TaskReplayBuffer

__all__ = ["RewardScale", "TaskReplayBuffer"]
