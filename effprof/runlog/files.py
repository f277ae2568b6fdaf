"""Reading files wherever they are: local paths directly, anything with a protocol through fsspec."""

from __future__ import annotations

import os
from typing import Any

from effprof.errors import EffprofError


class Files:
    """A path that may be a file or a directory, local or in an object store (`s3://…`, `memory://…`)."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") if len(path) > 1 else path
        self._remote: Any = None
        if "://" in path:
            import fsspec

            try:
                self._remote, _ = fsspec.core.url_to_fs(path)
            except (ImportError, ValueError) as error:
                raise EffprofError(f"{path}: {error}", "install the fsspec package for this protocol") from None

    def exists(self) -> bool:
        return bool(self._remote.exists(self.path)) if self._remote else os.path.exists(self.path)

    def require(self) -> None:
        """Raise EffprofError where there is no such path."""
        try:
            # stat and not exists(): a directory above that may not be entered is no reason to say "no such path"
            found = self.exists() if self._remote else bool(os.stat(self.path))
        except FileNotFoundError:
            found = False
        except OSError as error:
            raise _refusal(self.path, error) from None
        if not found:
            raise EffprofError(f"{self.path}: no such file or directory", "give the run directory that effprof named")

    def is_file(self) -> bool:
        return bool(self._remote.isfile(self.path)) if self._remote else os.path.isfile(self.path)

    def names(self) -> list[str]:
        """Names in the directory, sorted; hidden ones left out."""
        try:
            if self._remote:
                names = [self.name(entry) for entry in self._remote.ls(self.path, detail=False)]
            else:
                names = os.listdir(self.path)
        except OSError as error:
            raise _refusal(self.path, error) from None
        return sorted(name for name in names if not name.startswith("."))

    def directories(self) -> list[str]:
        """Paths of the directories in this one, sorted by name."""
        paths = [self.join(name) for name in self.names()]
        return [path for path in paths if (self._remote.isdir(path) if self._remote else os.path.isdir(path))]

    def read(self, path: str) -> bytes:
        try:
            if self._remote:
                return bytes(self._remote.cat_file(path))
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise _refusal(path, error) from None

    def join(self, name: str) -> str:
        return f"{self.path}/{name}"

    @staticmethod
    def name(path: str) -> str:
        return path.rstrip("/").rpartition("/")[2]

    @staticmethod
    def parent(path: str) -> str:
        return path.rstrip("/").rpartition("/")[0] or "."


def _refusal(path: str, error: OSError) -> EffprofError:
    if isinstance(error, PermissionError):
        return EffprofError(f"{path}: no permission to read it", "ask its owner, or run as a user who may read it")
    return EffprofError(f"{path}: {error.strerror or error}", "check the path and the file system")
