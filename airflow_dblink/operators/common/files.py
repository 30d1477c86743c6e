"""Files on Airflow's object storage that appear when they are complete."""

from __future__ import annotations

import gzip
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, cast

from airflow.sdk import BaseOperator, ObjectStoragePath

from airflow_dblink.core.errors import UsageError
from airflow_dblink.operators.common.arguments import demand_text

#: Mode of new files on the worker's disk: nobody else reads them.
OWN = "0600"

_LOCAL = ("", "file", "local")
_MODE = re.compile(r"0?[0-7]{3}")


class FileWritingOperator(BaseOperator):
    """Mixin of the operators that may write a file, *path* or *statements_path*.

    :param base_path: folder that the file must be in, a URL like the file's. Not templated: a path that
        comes from ``dag_run.conf`` then can't lead elsewhere.
    :param file_mode: permissions of a file on the worker's disk, octal; object storage has its own.
    """

    def __init__(self, *, base_path: str | None = None, file_mode: str = OWN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base_path = base_path
        self.file_mode = file_mode


def demand_file(name: str, path: str, conn_id: str | None, base_path: str | None = None) -> None:
    """Raise unless *path* can be a file's; call this before any work is done.

    :param name: the argument's name.
    :param base_path: folder that the file must be in.
    :raises UsageError: if *path* is a directory, ends in a slash, has an unknown scheme, holds a NUL
        character, or leads out of *base_path*; if *base_path* is no text, or empty.
    """
    if "\0" in path:
        raise UsageError(f"{name} holds a NUL character")
    try:
        if base_path is not None:
            demand_text("base_path", base_path)
            _demand_within(name, path, base_path, conn_id)
        target = ObjectStoragePath(path, conn_id=conn_id)
        is_directory = path.endswith("/") or target.is_dir()
    except ValueError as error:
        raise UsageError(f"{name} is no URL on Airflow's object storage: {error}") from None
    if is_directory:
        # A file that is moved to a directory lands in it, under its unfinished name.
        raise UsageError(f"{name} must be a file, got the directory {path!r}", hint="add the file's name")


def demand_mode(value: object) -> int:
    """Return the permissions in *value*, octal digits as text.

    :raises UsageError: if it is anything else.
    """
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise UsageError(f'file_mode must be octal digits as text, such as "0640", got {value!r}')
    return int(value, 8)


def _demand_within(name: str, path: str, base_path: str, conn_id: str | None) -> None:
    target, base = (ObjectStoragePath(each, conn_id=conn_id) for each in (path, base_path))
    folder, place = _place(base), _place(target)
    if "::" in path or place[:2] != folder[:2] or not place[2].startswith(folder[2].rstrip("/") + "/"):
        raise UsageError(
            f"{name} leads out of base_path: {path!r} is not in {base_path!r}",
            hint="give a path below base_path, of the same storage and connection",
        )


def _place(path: ObjectStoragePath) -> tuple[str, str | None, str]:
    """Return the place of *path*: the storage, its connection, and the path without ``..`` and links."""
    if path.protocol in _LOCAL:
        return "file", None, os.path.realpath(path.path)
    return path.protocol, path.conn_id, posixpath.normpath("/" + path.path)


@contextmanager
def new_file(path: str, conn_id: str | None, mode: int) -> Iterator[IO[bytes]]:
    """Give a file to write to; if the block ends well, it becomes *path*, and replaces an older file.

    :param path: URL on Airflow's object storage; if it ends in ``.gz``, the content is compressed.
    :param conn_id: Airflow connection of the object storage.
    :param mode: permissions of a file on this machine's disk.
    """
    target = ObjectStoragePath(path, conn_id=conn_id)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if partial.protocol in _LOCAL:  # the mode is set before a row is in the file
            os.close(os.open(partial.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            os.chmod(partial.path, mode)
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
