"""Task-conditioned networks; usable without any reinforcement learning."""

from sb3_varshare.networks.bronet import BroNet
from sb3_varshare.networks.task_input import TASK_INPUTS, TaskInput
from sb3_varshare.networks.task_linear import TaskLinear
from sb3_varshare.networks.task_network import TaskNetwork

__all__ = ["TASK_INPUTS", "BroNet", "TaskInput", "TaskLinear", "TaskNetwork"]
