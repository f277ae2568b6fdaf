"""`EfficiencyCallback` for Lightning Fabric, which keeps the loop in the user's hands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from effprof.callbacks.hooks import HookedLoop, WatchedLoader
from effprof.measure.placement import Placement

Batch = TypeVar("Batch")


class EfficiencyCallback:
    """Measures MFU, throughput, memory and where the time goes, of a loop that Fabric runs.

    ::

        fabric = Fabric(callbacks=[EfficiencyCallback()])
        model, optimizer = fabric.setup(model, optimizer)

    From the first `fabric.setup` of a model on, its calls and the optimizers' steps are seen by hooks; further models
    that are set up count by their optimizers' steps only where they share parameters with the first. For the wait for
    batches, iterate over `callback.watch(loader)`.

    Args:
        run_dir: where to write; `effprof_runs/<id>` below the working directory by default.
        settings: further arguments of `effprof.measure.profiler.StepProfiler`.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        self._settings = {"run_dir": run_dir, **settings}
        self._loop: HookedLoop | None = None

    @property
    def run_dir(self) -> str | None:
        """The run's directory, once a model was set up."""
        return self._loop.run_dir if self._loop is not None else None

    def watch(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """The loader, with the time in it counted as input wait; as it is before a model was set up."""
        return loader if self._loop is None else WatchedLoader(loader, self._loop)

    def close(self) -> None:
        """Finish the log; the end of the process does so as well."""
        if self._loop is not None:
            self._loop.close()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """For loops that say `fabric.call("on_train_end")`."""
        self.close()

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Fabric calls this behind each `setup` of a model."""
        if self._loop is not None:
            return
        try:
            self._loop = HookedLoop(
                module,
                module=getattr(module, "module", None),
                device=fabric.device,
                framework="lightning-fabric",
                framework_version=_version(),
                placement=_placement(fabric),
                config={"precision": str(fabric._precision.precision), "strategy": type(fabric.strategy).__name__},
                context=fabric.autocast,
                **self._settings,
            )
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            warnings.warn(f"effprof: measuring failed and is off, training goes on ({what})", stacklevel=2)


def _version() -> str:
    for name in ("lightning_fabric", "lightning"):
        if name in sys.modules:
            return str(getattr(sys.modules[name], "__version__", ""))
    return ""


def _placement(fabric: Any) -> Placement:
    """All of Fabric's ranks are data parallel, but under a strategy with a mesh of its own."""
    sampler = getattr(fabric.strategy, "distributed_sampler_kwargs", None) or {}
    size = int(sampler.get("num_replicas", fabric.world_size))
    return Placement(
        rank=fabric.global_rank,
        local_rank=fabric.local_rank,
        node=fabric.node_rank,
        nodes=int(getattr(fabric.strategy, "num_nodes", 1) or 1),
        world_size=fabric.world_size,
        data_parallel_rank=int(sampler.get("rank", fabric.global_rank)),
        data_parallel_size=size,
    )
