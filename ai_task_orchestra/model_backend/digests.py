"""SHA-256 of large files, remembered beside them by path, size and modification time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

SIDE_FILE = "digests.json"


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestStore:
    """Remembered digests in `folder`/digests.json.

    An entry counts only while path, size and modification time (nanoseconds) are unchanged. Losing the file, or an
    entry to another process that writes at the same time, costs one reading of the model, nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SIDE_FILE

    def digest(self, path: Path) -> str:
        """The digest of `path`, from memory if the file is unchanged."""
        info = path.stat()
        state = {"size": info.st_size, "mtime_ns": info.st_mtime_ns}
        known = self._load().get(str(path))
        if isinstance(known, dict) and {"size": known.get("size"), "mtime_ns": known.get("mtime_ns")} == state:
            digest = known.get("sha256")
            if isinstance(digest, str):
                return digest
        digest = sha256_of(path)
        self._save(str(path), {**state, "sha256": digest})
        return digest

    def _load(self) -> dict[str, object]:
        try:
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _save(self, key: str, entry: dict[str, object]) -> None:
        """Best effort: a folder that can't be written means reading the model each time."""
        entries = {name: known for name, known in self._load().items() if Path(name).exists()}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=self._path.parent, prefix=f".{SIDE_FILE}.")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump({**entries, key: entry}, file, indent=1)
                Path(scratch).replace(self._path)
            except OSError:
                Path(scratch).unlink(missing_ok=True)
                raise
