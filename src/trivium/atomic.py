"""Files that are there whole or not at all: written aside, synced, and only then given their name.

Where the system can (Linux, on most file systems), what is being written has no name at all, so
that a process that is killed leaves nothing behind; elsewhere it is called ``.trivium-…``.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAMELESS = getattr(os, "O_TMPFILE", 0)
_OPEN = "/proc/self/fd"  # where Linux shows a file that has no name, so that it can be given one
_CANNOT = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)  # no such file system


def write(path: str | Path, content: bytes | str, sync: bool = True) -> None:
    """Make ``content`` (text as UTF-8) the file at ``path``, whose old content stays until then.

    A link is followed, permissions are kept. ``sync=False`` is for what may be lost with the
    machine. OSError, with the path: nothing has changed.
    """
    data = content.encode() if isinstance(content, str) else content
    with together() as group:
        try:
            group.append(_aside(Path(os.path.realpath(path)), data, sync))
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None


def writable(path: str | Path) -> None:
    """An OSError if :func:`write` would have no place for ``path``: ask before long work."""
    try:
        _aside(Path(os.path.realpath(path)), b"", False).close()
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


_group: contextvars.ContextVar[list[_Aside] | None] = contextvars.ContextVar("group", default=None)


@contextlib.contextmanager
def together() -> Iterator[list[_Aside]]:
    """What is written in this block appears when it ends; when it fails, nothing of it does."""
    outer = _group.get()
    if outer is not None:
        yield outer
        return
    written: list[_Aside] = []
    token = _group.set(written)
    try:
        yield written
        for file in written:
            file.put_in_place()
        for folder in {file.target.parent for file in written if file.sync}:
            _sync_folder(folder)
    finally:
        _group.reset(token)
        for file in written:
            file.close()


@dataclass
class _Aside:
    """A file that is written and not yet where it belongs."""

    target: Path
    sync: bool
    handle: int | None
    name: Path | None  # None: it has no name yet, or no longer this one

    def put_in_place(self) -> None:
        """Give it a name, where it has none, and at once the right one."""
        if self.name is None:
            name = _fresh(self.target.parent)
            # With a folder's handle Python asks for linkat, which follows the link in /proc.
            folder = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.link(f"{_OPEN}/{self.handle}", name, src_dir_fd=folder)
                self.name = name
            finally:
                os.close(folder)
        self._shut()  # Windows renames no open file
        os.replace(self.name, self.target)
        self.name = None

    def close(self) -> None:
        """Let go of it; what did not get to its place is gone."""
        self._shut()
        if self.name is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.name)

    def _shut(self) -> None:
        if self.handle is not None:
            handle, self.handle = self.handle, None
            os.close(handle)


def _aside(target: Path, data: bytes, sync: bool) -> _Aside:
    """``data`` in a file in the folder of ``target``, with the permissions that this will have."""
    before = _before(target)
    file = _opened(target, sync)
    try:
        handle = file.handle
        assert handle is not None
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        if before is not None and hasattr(os, "fchmod"):
            mine = os.fstat(handle)
            if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
                with contextlib.suppress(PermissionError):
                    os.fchown(handle, before.st_uid, before.st_gid)
            os.fchmod(handle, stat.S_IMODE(before.st_mode))
        if sync:
            os.fsync(handle)
    except BaseException:
        file.close()
        raise
    return file


def _before(target: Path) -> os.stat_result | None:
    """The file that is there now; an error where nobody may write to it."""
    try:
        before = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return before


def _opened(target: Path, sync: bool) -> _Aside:
    folder = target.parent
    if _NAMELESS and os.path.isdir(_OPEN):
        try:
            return _Aside(target, sync, os.open(folder, _NAMELESS | os.O_WRONLY, 0o666), None)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    name = _fresh(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return _Aside(target, sync, os.open(name, flags, 0o666), name)


def _fresh(folder: Path) -> Path:
    return folder / f".trivium-{secrets.token_hex(8)}"


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system syncs a folder, and the file is there
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


__all__ = ["together", "writable", "write"]
