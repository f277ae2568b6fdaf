"""Puts the callbacks into Trainers of a command that names none: the inside of `effprof run`.

`prepare` makes a folder with a `sitecustomize.py`, which Python imports at its start where the folder is on PYTHONPATH,
in every process of the command. That calls `install`: nothing is imported until the command itself imports a Trainer;
then the class's constructor adds the callback. A `sitecustomize` of the environment's own runs as well. What was made
and recorded is written into the folder, one file a process.
"""

from __future__ import annotations

import atexit
import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import Any

VARIABLE = "EFFPROF_ATTACH"
SETTINGS, MISSING = "settings.json", "missing"

_START = """import os, sys
folder = os.path.dirname(os.path.abspath(__file__))
try:
    from effprof.callbacks.inject import install
except ImportError as error:
    with open(os.path.join(folder, "missing"), "w") as file:
        file.write(f"{sys.executable}: {error}")
else:
    install(folder)
"""


def prepare(folder: Path, settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Make the folder, and the environment in which a command is measured.

    Args:
        folder: an empty directory that outlives the command.
        settings: arguments of the callbacks; values that JSON knows.
        environment: the environment to build on.
    """
    (folder / "sitecustomize.py").write_text(_START)
    (folder / SETTINGS).write_text(json.dumps(dict(settings)))
    path = environment.get("PYTHONPATH")
    return {
        **environment,
        VARIABLE: str(folder),
        "PYTHONPATH": os.pathsep.join([str(folder), *([path] if path else [])]),
    }


def outcome(folder: Path) -> tuple[int, list[str], str]:
    """What a command that ended has left: Trainers with a callback, run directories, why effprof was not there."""
    trainers = 0
    runs: dict[str, None] = {}
    for file in sorted(folder.glob("process-*.json")):
        told = json.loads(file.read_text())
        trainers += told["trainers"]
        runs |= dict.fromkeys(told["runs"])
    missing = folder / MISSING
    return trainers, list(runs), missing.read_text() if missing.exists() else ""


def install(folder: str) -> None:
    """Watch for the import of a Trainer, in this process."""
    settings = json.loads((Path(folder) / SETTINGS).read_text())
    made: list[Any] = []

    def tell() -> None:
        if made:
            runs = [str(each.run_dir) for each in made if each.run_dir is not None]
            told = {"trainers": len(made), "runs": runs}
            (Path(folder) / f"process-{os.getpid()}.json").write_text(json.dumps(told))

    atexit.register(tell)
    patches = {
        "pytorch_lightning.trainer.trainer": _patch_lightning,
        "lightning.pytorch.trainer.trainer": _patch_lightning,
        "transformers.trainer": _patch_transformers,
    }
    sys.meta_path.insert(
        0, _Finder({name: functools.partial(patch, settings=settings, made=made) for name, patch in patches.items()})
    )
    _run_own_sitecustomize(folder)


class _Finder(MetaPathFinder):
    """Finds what the others find, and has some modules patched once they are executed."""

    def __init__(self, patches: Mapping[str, Callable[[Any], None]]) -> None:
        self._patches = dict(patches)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, patch)
        return spec


class _PatchingLoader(Loader):
    def __init__(self, loader: Any, patch: Callable[[Any], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _patch_lightning(module: Any, settings: Mapping[str, Any], made: list[Any]) -> None:
    original = module.Trainer.__init__

    @functools.wraps(original)
    def construct(trainer: Any, *arguments: Any, **keywords: Any) -> None:
        from effprof.callbacks.lightning import EfficiencyCallback

        given = keywords.get("callbacks") or []
        callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
        own = [each for each in callbacks if isinstance(each, EfficiencyCallback)]
        made.append(own[0] if own else EfficiencyCallback(**settings))
        if not own:
            callbacks.append(made[-1])
        original(trainer, *arguments, **{**keywords, "callbacks": callbacks})

    module.Trainer.__init__ = construct


def _patch_transformers(module: Any, settings: Mapping[str, Any], made: list[Any]) -> None:
    original = module.Trainer.__init__

    @functools.wraps(original)
    def construct(trainer: Any, *arguments: Any, **keywords: Any) -> None:
        original(trainer, *arguments, **keywords)
        from effprof.callbacks.huggingface import EfficiencyCallback

        own = [each for each in trainer.callback_handler.callbacks if isinstance(each, EfficiencyCallback)]
        made.append(own[0] if own else EfficiencyCallback(**settings))
        if not own:
            trainer.add_callback(made[-1])

    module.Trainer.__init__ = construct


def _run_own_sitecustomize(folder: str) -> None:
    """The module of this name that would have been imported without ours."""
    others = [each for each in sys.path if os.path.abspath(each) != os.path.abspath(folder)]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
