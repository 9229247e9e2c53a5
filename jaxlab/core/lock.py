"""Keeps a folder to one process at a time, without JAX."""

import contextlib
import errno
import fcntl
import os
import pathlib
import platform
import warnings
from collections.abc import Iterator
from typing import TextIO


class LockedError(RuntimeError):
    """Another process is at work in a folder; the message names it."""


@contextlib.contextmanager
def one_writer(directory: str | pathlib.Path, *, file_name: str = ".lock") -> Iterator[None]:
    """Keeps a folder for this process as long as the context lasts, and makes it if need be.

    The lock is the operating system's, on a file there: when its process ends, killed or not, it is
    gone, and a file that was left behind locks nothing.

    Args:
        directory: the folder.
        file_name: of the file, one for each thing that takes one writer.

    Raises:
        LockedError: if another process holds it; the message has its process id and its host.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    file = _locked(path)
    if file is None:
        warnings.warn(
            f"{folder} is on a file system without locks: nothing keeps a second process from "
            "writing there",
            RuntimeWarning,
            stacklevel=3,
        )
        yield
        return
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still locked


def _locked(path: pathlib.Path) -> TextIO | None:
    """Opens and locks a file; None where the file system has no locks."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # removed in between
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise LockedError(
                f"{holder} is at work in {path.parent}; wait until it ends, or take another folder"
            ) from None
        except OSError as error:
            file.close()
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return None
            raise
        file.close()  # its holder had removed it before it let go: once more
