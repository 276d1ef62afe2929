"""A trained agent without the trainer: one task as a plain network or a file, and all of them as a folder."""

from sb3_varshare.deployment.compose import compose_task
from sb3_varshare.deployment.export import export_policy
from sb3_varshare.deployment.exported_policy import ExportedPolicy
from sb3_varshare.deployment.files import PolicyFileError
from sb3_varshare.deployment.folder import load_policy
from sb3_varshare.deployment.single_file import export_task

__all__ = ["ExportedPolicy", "PolicyFileError", "compose_task", "export_policy", "export_task", "load_policy"]
