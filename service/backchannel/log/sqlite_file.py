"""The files of an SQLite log: made private, and locked so that one process at a time writes.

Beside ``name.db`` lie SQLite's own ``name.db-wal`` and ``name.db-shm``, and ``name.db.lock``,
which says who has the log open. The lock is the kernel's (`flock`), so it ends with the process
however that ends; the file stays, since removing it would let two processes lock two files of one
name.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import SessionDamagedError


def unavailable(path: Path, what: str) -> BackchannelError:
    """`LOG_UNAVAILABLE` for the file: what is wrong, and what to do."""
    return BackchannelError(
        Reason.LOG_UNAVAILABLE, f"log file {path}: {what}", metadata={"file": str(path)}
    )


def corrupt(path: Path, what: str, session_id: str = "") -> BackchannelError:
    """`LOG_CORRUPT` for the file, or for one session in it."""
    message = f"log file {path}: {what}"
    metadata = {"file": str(path)}
    if session_id:
        return SessionDamagedError(session_id, message, metadata=metadata)
    return BackchannelError(Reason.LOG_CORRUPT, message, metadata=metadata)


class LogFile:
    """The database file while it is open: exists, is ours alone, and is still where it was.

    Attributes:
        descriptor: Of the database file, for `sqlite_gaps`. Open as long as the lock is held, see
            there.

    Args:
        path: The database file, absolute.

    Raises:
        BackchannelError: `LOG_UNAVAILABLE` if it cannot be made or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self.descriptor = -1
        try:
            _make_folder(path.parent)
            self._lock = self._locked()
            try:
                # SQLite gives its side files the mode of the database, so this one decides.
                self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._identity = _identity(path)
            except OSError:
                self.release()
                raise
        except OSError as error:
            at = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
            raise unavailable(
                path,
                f"{error.strerror or error}{at}; check that the path is right and that this user "
                "may read and write there",
            ) from error

    def check_in_place(self) -> None:
        """Refuse to write into a file that has lost its name: nobody would find it again.

        Raises:
            BackchannelError: `LOG_UNAVAILABLE`.
        """
        try:
            in_place = _identity(self.path) == self._identity
        except OSError:
            in_place = False
        if not in_place:
            raise unavailable(
                self.path,
                "it was removed or replaced while in use; put it back, or restart to begin anew",
            )

    def release(self) -> None:
        """Let others open it."""
        for descriptor in (self.descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self.descriptor = -1

    def _locked(self) -> int:
        lock = os.open(
            self.path.with_name(self.path.name + ".lock"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
            0o600,
        )
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
                raise unavailable(
                    self.path,
                    f"process {holder or '(unknown)'} has it open, and one process at a time may; "
                    "stop that one, or give this one another file",
                ) from None
            os.ftruncate(lock, 0)
            try:
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            except OSError:
                # On a full disk the lock holds all the same; only its holder stays unknown.
                os.ftruncate(lock, 0)
        except BaseException:
            os.close(lock)
            raise
        return lock


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
