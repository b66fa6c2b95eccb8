"""The stages of a run: atomic, skipped when nothing they depend on has changed, resumed after a kill.

A stage's record, `stages/NAME.json`, is written last and holds a key (hash of its settings and of the files it needs)
and the hash of every file it made. A killed stage leaves no record and is done again, with the same seeds and so the
same numbers.
"""

import fcntl
import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from analysis.files import sha256, write_text

Report = Callable[[str, float], None]


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Args:
        folder: The run folder; made where it is missing.
        wait: Wait until it is free instead of raising: for what several jobs of one command share.

    Yields:
        Nothing; the folder is free again afterwards, also after a kill.

    Raises:
        UserError: Another process is at work in it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"Can't write in {folder} ({error.strerror}); choose another folder with --out.") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another run is at work in {folder}; wait for it, or for a run folder choose another with --out."
            ) from error
        yield


@dataclass(frozen=True)
class Stages:
    """The stages of one run folder.

    Attributes:
        folder: The run folder.
        report: Called with a stage's name and the share done, 0 to 1.
        hashes: SHA-256 by relative path of every file that a stage made or found whole; filled as stages pass.
        records: What each passed stage noted, by name.
    """

    folder: Path
    report: Report
    hashes: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        needs: Sequence[str],
        makes: Sequence[str],
        work: Callable[[Callable[[float], None]], Mapping[str, Any] | None],
    ) -> dict[str, Any]:
        """Do a stage, or skip it when it was done with the same settings and the same files.

        Args:
            name: Of the stage.
            settings: All that decides its result besides files; JSON-like.
            needs: Files of earlier stages that it reads, relative to the run folder.
            makes: Files that it writes, relative to the run folder.
            work: Does it, atomically file by file; is given a progress function and may return facts to keep.

        Returns:
            The facts that `work` returned, now or when it was done.
        """
        text = json.dumps([settings, {need: self.hashes[need] for need in needs}], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        done = self._finished(name, key, makes)
        if done is None:
            self.report(name, 0.0)
            # A record that no longer holds must go before its files do.
            (self.folder / "stages" / f"{name}.json").unlink(missing_ok=True)
            start = time.perf_counter()
            facts = dict(work(lambda share: self.report(name, share)) or {})
            files = {path: sha256(self.folder / path) for path in makes}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            seconds = round(time.perf_counter() - start, 2)
            done = {"key": key, "files": files, "seconds": seconds, "peak_mb": round(peak), "facts": facts}
            write_text(self.folder / "stages" / f"{name}.json", json.dumps(done, indent=1))
        self.hashes.update(done["files"])
        self.records[name] = done
        self.report(name, 1.0)
        return done["facts"]

    def _finished(self, name: str, key: str, makes: Sequence[str]) -> dict[str, Any] | None:
        path = self.folder / "stages" / f"{name}.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            wanted, files = record["key"], record["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is corrupted; delete it and run the same command again to redo {name}.") from error
        if wanted != key or set(files) != set(makes) or not all((self.folder / file).is_file() for file in files):
            return None
        for file, digest in files.items():
            if sha256(self.folder / file) != digest:
                raise UserError(
                    f"{self.folder / file} is corrupted: it is not what the run wrote; "
                    "delete it and run the same command again to make it anew."
                )
        return record
