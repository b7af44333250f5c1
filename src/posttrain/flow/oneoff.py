"""One step without a recipe: the same code, the same manifest, into a folder of the user's choice."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.common.manifest import NAME, read_manifest
from posttrain.common.step import Step
from posttrain.flow.artifact import (
    STATE,
    UNFINISHED,
    Order,
    check_artifact,
    is_leftover,
    make,
    set_aside,
    tidy,
    unfinished,
)
from posttrain.flow.fingerprint import Fingerprint, Outsiders, fingerprint
from posttrain.flow.handover import check_unchanged, describe_outside, resolve
from posttrain.flow.hashing import Hasher
from posttrain.flow.store import hold


@dataclass(frozen=True)
class Result:
    """out: the artifact's folder. summary: what the step says of it. key: hash of all that determined it."""

    out: Path
    summary: Mapping[str, Any]
    key: str


def run_into(
    step: Step,
    config: Config,
    out: Path | str,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run `step` so that `out` becomes its artifact.

    A run that was cut short goes on where it was if nothing that matters has changed; a finished one with the
    same key is returned as it is. force: replace another run's artifact in `out`, finished or not.
    Raises ConfigError where `out` holds anything else, or an input does not exist.
    """
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out takes a folder")
    print_ = fingerprint(step, config, lambda name: None, Outsiders(Hasher()))
    _check_apart(folder, print_)
    with hold(_lock(folder), str(folder), say):
        if _clear(folder, print_.key, force):
            tidy(folder)
            say(f"{folder} holds this very run, finished; nothing to do")
            manifest = check_artifact(folder)
        else:
            if unfinished(folder):
                say(f"resuming in {folder}")
            manifest = make(folder, _order(step, config, print_, folder.name))
    return Result(folder, manifest["summary"], print_.key)


def _check_apart(folder: Path, print_: Fingerprint) -> None:
    """Writing into an input would change it under the run, and leave it changed."""
    for found in print_.outside.values():
        if found.path is not None and found.path.resolve() in folder.resolve().parents:
            raise ConfigError(f"{folder} lies inside the input {found.value}; choose an --out outside of it")


def _clear(folder: Path, key: str, force: bool) -> bool:
    """Whether `folder` holds the finished artifact of `key`; if not, see that the run may write there."""
    if (folder / NAME).exists():
        there = read_manifest(folder)
        if there.get("key") == key and not force:
            return True
        if not force:
            raise ConfigError(
                f"{folder} holds another finished run ('{there.get('kind')}' of {there.get('finished')});"
                " take another --out, or give --force to replace it"
            )
        _check_ours(folder, there)
        set_aside(folder, folder.parent)
        return False
    note = unfinished(folder)
    if note is not None:
        if note["key"] != key or force:
            if not force:
                raise ConfigError(
                    f"{folder} holds an unfinished run of other settings or inputs ({note['started']});"
                    " run that one again to finish it, choose another --out, or give --force to discard it"
                )
            set_aside(folder, folder.parent)
        return False
    if (folder / UNFINISHED).is_file() and (folder / STATE).is_dir():
        if not force:
            raise ConfigError(
                f"{folder / UNFINISHED}, which says whose work was cut short, is damaged, so nothing of "
                "it can be gone on with; choose another --out, or give --force to discard it"
            )
        set_aside(folder, folder.parent)
        return False
    if folder.exists() and any(not is_leftover(path) for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and not of our making; choose an empty --out")
    return False


def _check_ours(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to replace a run whose folder has since been given other files."""
    ours = {folder / name for name in manifest["files"]} | {folder / NAME, folder / UNFINISHED}
    strange = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path not in ours
        and (folder / STATE) not in path.parents
        and not is_leftover(path)
    ]
    if strange:
        raise ConfigError(
            f"{folder} also holds files that no run wrote ({', '.join(strange[:5])});"
            " move them, or choose another --out"
        )


def _order(step: Step, config: Config, print_: Fingerprint, name: str) -> Order:
    given = resolve(config, {}, print_.outside)
    return Order(
        step=name,
        kind=step.name,
        version=step.version,
        key=print_.key,
        identity=print_.identity,
        config=config.model_dump(mode="json", serialize_as_any=True),
        inputs=describe_outside(print_.outside),
        run=lambda ctx: step.run(given, ctx),
        check=lambda: check_unchanged(print_.outside),
    )


def _lock(folder: Path) -> Path:
    """A lock outside of the folder, which holds nothing but the artifact: per user and machine."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"posttrain-locks-{user}", f"{name}.lock")
