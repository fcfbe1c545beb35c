"""A folder at a URI (S3, GCS, a mounted path, whatever fsspec knows): where machines without a
common disk meet. Nothing there can be renamed: what makes something whole is written last."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from scpo_ray.records import InputError


class RemoteFolder:
    """Files by their names below the URI, "/" between a name's parts.

    Args:
        uri: with Arrow's options behind a "?", as in s3://bucket/runs?region=eu-north-1.

    Raises: InputError if the URI names no file system that can be used here.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with self._errors():
            self._files, self._root = _opened(uri)

    def below(self, name: str) -> "RemoteFolder":
        folder = object.__new__(RemoteFolder)
        folder.uri = below_uri(self.uri, name)
        folder._files, folder._root = self._files, self._path(name)
        return folder

    def upload(self, file: Path, name: str) -> None:
        """Copies a local file to `name`. Raises: InputError if it cannot be written there."""
        path = self._path(name)
        with self._errors():
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with file.open("rb") as source, self._files.open_output_stream(path) as target:
                shutil.copyfileobj(source, target, 1 << 24)

    def download(self, name: str, file: Path) -> None:
        """Copies `name` to a local file. Raises: InputError if it cannot be read.

        Where `file` lies is the caller's to decide: a name from the store may lead anywhere, and
        `disk.inside` keeps it in a folder.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._errors(),
            self._files.open_input_stream(self._path(name)) as source,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 24)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""
        if not self.has(name):
            return None
        with self._errors(), self._files.open_input_stream(self._path(name)) as source:
            content: bytes = source.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        with self._errors():
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(path) as target:
                target.write(content)

    def has(self, name: str) -> bool:
        with self._errors():
            return bool(self._files.get_file_info(self._path(name)).type == fs.FileType.File)

    def names(self) -> list[str]:
        """What lies right below the folder; nothing where there is no such folder."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        with self._errors():
            return sorted(info.base_name for info in self._files.get_file_info(selector))

    def files(self) -> list[str]:
        """The names of all files, however deep."""
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        with self._errors():
            found = self._files.get_file_info(selector)
        start = len(self._root) + 1
        return sorted(info.path[start:] for info in found if info.type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """The file or the folder `name` with all in it; nothing where there is none."""
        path = self._path(name)
        with self._errors():
            kind = self._files.get_file_info(path).type
            if kind == fs.FileType.Directory:
                self._files.delete_dir(path)
            elif kind == fs.FileType.File:
                self._files.delete_file(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        # File systems raise what their libraries raise: all of it means that the place fails us.
        except (OSError, pa.ArrowException, ValueError, ImportError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"launch.storage = {self.uri}: cannot be used", [lines[0]]) from error


def below_uri(uri: str, name: str) -> str:
    """The URI of what is called `name` in the folder at `uri`, whose options stay at the end."""
    place, question, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{question}{options}"


def _opened(uri: str) -> tuple[Any, str]:
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        place, _, options = uri.partition("?")
        # Not one of those that come with Arrow, or one of its own with a fault in it.
        if place.partition("://")[0] in (
            "file",
            "s3",
            "gs",
            "gcs",
            "hdfs",
            "viewfs",
            "abfs",
            "abfss",
        ):
            raise
        if options:
            raise ValueError("options behind a ? are for s3://, gs:// and hdfs:// alone") from None
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(place)
        files = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    return files, path.rstrip("/")
