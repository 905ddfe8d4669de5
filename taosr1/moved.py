"""Modules that version 0.2 moved: their old import paths go on working, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "taosr1.config": "taosr1.runtime.cli",
    "taosr1.files": "taosr1.runtime.files",
    "taosr1.learning.logprobs": "taosr1.model.logprobs",
    "taosr1.learning.run": "taosr1.runtime.run_folder",
    "taosr1.model.folders": "taosr1.model.io.folders",
    "taosr1.model.weights": "taosr1.model.io.weights",
    "taosr1.sampling.sampler": "taosr1.sampling",
    "taosr1.task.judgements": "taosr1.data.judgements",
    "taosr1.task.rows": "taosr1.runtime.jsonl",
    "taosr1.task.sources": "taosr1.data.sources",
    "taosr1.task.world": "taosr1.synthetic.shop",
}


class OldPaths(MetaPathFinder, Loader):
    """Asked for an old path only after Python itself has not found a module there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {MOVED[spec.name]}", DeprecationWarning, stacklevel=2)
        return importlib.import_module(MOVED[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module at the new path has run already."""


def keep_old_paths() -> None:
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())
