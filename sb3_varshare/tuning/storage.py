"""Where a study is kept: the work queue of all its workers."""

from __future__ import annotations

import importlib.util
import random
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

# Seconds for which a worker waits for another's lock on a SQLite file.
LOCK_TIMEOUT = 60
# Two workers that create the tables of one database at the same moment are in each other's way.
OPENING_ATTEMPTS = 5


def open_storage(url: str, heartbeat: int = 60, grace: int | None = None, max_retries: int = 3) -> BaseStorage:
    """
    The storage behind an address.

    :param url: of SQLAlchemy, such as ``sqlite:///study.db`` or ``postgresql://user@host/database``; a journal file,
        ``<path>.log``; or ``grpc://host:port`` of Optuna's proxy. The last two have no heartbeat
    :param heartbeat: seconds between two signs of life of a running trial
    :param grace: seconds without one after which a trial is lost; by default twice ``heartbeat``
    :param max_retries: of a lost trial
    :return: the storage
    :raises ValueError: an address or a duration is not possible
    :raises ImportError: the database's driver is not installed
    :raises ConnectionError: the database does not answer
    """
    if heartbeat < 1 or (grace is not None and grace <= heartbeat):
        raise ValueError(
            f"Expected a heartbeat of at least 1 s and a longer grace period, got {heartbeat} s and {grace} s."
        )
    if url.endswith(".log") or url.startswith("grpc://"):
        warnings.warn(
            f"{'A journal file' if url.endswith('.log') else 'The gRPC proxy'} has no heartbeat: the trial of a worker "
            "that was killed stays marked as running, and no other takes it up. sqlite:/// and postgresql:// have one.",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # The heartbeat is one since Optuna 2.9, the proxy since 4.2.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if url.endswith(".log") or url.startswith("grpc://"):
            return _without_heartbeat(url)
        options: dict[str, Any] = {
            "heartbeat_interval": heartbeat,
            "grace_period": 2 * heartbeat if grace is None else grace,
            "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(max_retry=max_retries),
        }
        return _open_database(*_address(url), options)


def _without_heartbeat(url: str) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if url.startswith("grpc://"):
        host, _, port = url.removeprefix("grpc://").partition(":")
        if not host or not port.isdigit():
            raise ValueError(f"Expected grpc://host:port, got {url!r}.")
        return GrpcStorageProxy(host=host, port=int(port))
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(url))


def _address(url: str) -> tuple[str, dict[str, Any]]:
    """The address with the driver that is installed, and arguments of the engine."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        # Without what was given, as there may be a password in it.
        raise ValueError(
            "Expected sqlite:///<file>, postgresql://..., <file>.log or grpc://host:port as the storage."
        ) from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        return url, {"connect_args": {"timeout": LOCK_TIMEOUT}}
    if parsed.drivername == "postgresql" and importlib.util.find_spec("psycopg2") is None:
        if importlib.util.find_spec("psycopg") is None:
            raise ImportError('PostgreSQL needs its driver; run pip install "sb3_varshare[postgres]".')
        parsed = parsed.set(drivername="postgresql+psycopg")
    # A trial may be longer than a database keeps an idle connection.
    return parsed.render_as_string(hide_password=False), {"pool_pre_ping": True}


def _open_database(url: str, engine: dict[str, Any], options: dict[str, Any]) -> RDBStorage:
    for attempt in range(OPENING_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=engine, **options)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            failure = error
            if attempt + 1 < OPENING_ATTEMPTS:
                time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))
    # Without the address: there may be a password in it.
    raise ConnectionError(f"The database of the study cannot be opened: {failure}") from failure
