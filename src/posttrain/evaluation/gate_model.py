"""A model into a second artifact without a second copy on the disk, where that is safe."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from posttrain.common.manifest import NAME
from posttrain.models.folder import whole_folder
from posttrain.models.locate import find_model


def keep_model(ref: str, folder: Path) -> None:
    """Put the model that `ref` names into `folder`, whole or not at all.

    The files of an artifact are never written again, so they are hard-linked; all others are copied, and so
    is what lies on another disk.
    """
    source = find_model(ref)
    finished = any((place / NAME).is_file() for place in (source, source.parent))
    with whole_folder(folder) as draft:
        shutil.copytree(source, draft, dirs_exist_ok=True, copy_function=_link if finished else _copy)


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError as e:
        if e.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        _copy(source, target)
