"""Files on Airflow's object storage that appear when they are complete."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, cast

from airflow.sdk import ObjectStoragePath

from airflow_dblink.core.errors import UsageError


def demand_file(name: str, path: str, conn_id: str | None) -> None:
    """Refuse a *path* that can't be a file's: to be asked before anything is done.

    :param name: of the argument.
    :raises UsageError: if it is a directory, ends in a slash, or has a scheme that nothing stands for.
    """
    try:
        target = ObjectStoragePath(path, conn_id=conn_id)
        is_directory = path.endswith("/") or target.is_dir()
    except ValueError as error:
        raise UsageError(f"{name} is no URL on Airflow's object storage: {error}") from None
    if is_directory:
        # What is moved to a directory lands in it, under the name of the unfinished file.
        raise UsageError(f"{name} must be a file, got the directory {path!r}", hint="add the file's name")


@contextmanager
def new_file(path: str, conn_id: str | None) -> Iterator[IO[bytes]]:
    """Give a file to write to; it becomes *path*, replacing what was there, when the block ends well.

    :param path: URL on Airflow's object storage; what is written is compressed if it ends in ``.gz``.
    :param conn_id: Airflow connection of the object storage.
    """
    target = ObjectStoragePath(path, conn_id=conn_id)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            opened = stack.enter_context(partial.open("wb"))  # type: ignore[no-untyped-call] # Airflow's
            file = cast("IO[bytes]", opened)
            if path.endswith(".gz"):
                # Without name and time in its header, the same content is the same bytes.
                zipped = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
                file = cast("IO[bytes]", zipped)
            yield file
        partial.fs.mv(partial.path, target.path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
