"""The Ray cluster that workers may run on; Ray is an extra, and is imported when it is first asked for."""

from typing import Any


def connect() -> Any:
    """
    The module ``ray``, connected: to what the script connected to, else to ``RAY_ADDRESS`` or a cluster on this
    machine, else to a new one on it.

    :return: ``ray``
    :raises ImportError: Ray is not installed
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('start_method="ray" needs Ray; install it with: pip install "sb3_varshare[ray]"') from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return ray


def count_cpus() -> int:
    """
    :return: processor cores of the whole cluster
    """
    return max(1, int(connect().cluster_resources().get("CPU", 1)))
