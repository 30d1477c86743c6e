"""Files on Airflow's object storage that appear when they are complete."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, cast

from airflow.sdk import ObjectStoragePath


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
