"""A training through Ray Train, on whatever nodes of a cluster have GPUs; beside `cluster` the only file that knows Ray.

One task of the cluster leads it, so that a Ray of our own and one that is joined are served alike, and what Ray Train prints,
logs and does to signals stays in that task's process. Checkpoints are the trainer's own in the run's folder, of which Ray Train
knows nothing: a training that died goes on from them as it does anywhere.
"""

import io
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayActorError, WorkerCrashedError

from curate.cluster import TASK_CPUS, connect
from curate.errors import CurateError, RunStopped
from curate.files import TEMPORARY
from curate.store import Store
from curate.training import KILLED, train_here
from curate.work import THREADS, failure

FOR_RAY_TRAIN = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
                 "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
"""It sees the end of a training within half a second, has patience with busy machines, and leaves the working directory alone."""
WITHOUT = {"PlacementGroupCleanerCallback"}
"""Of Ray Train's own callbacks: asks a dashboard that is not there, and holds up the end of a training by 12 seconds. Placement
groups end with what made them all the same."""


@dataclass(frozen=True)
class RayTraining:
    """A `curate.training.Training` on Ray, which is started or joined as by `curate.cluster.RayPool` and left when it ends."""

    store: Store
    on: str
    workers: int

    def __call__(self, settings: Mapping[str, Any], out: Path) -> str:
        """See Training. Raises UserError where there is no Ray; RunStopped also for more processes than GPUs, if it has any."""
        place = self.store.root.resolve(), self.store.attempt
        connect(self.on, self.workers)
        try:
            lead = ray.remote(_lead).options(num_cpus=0, max_retries=0, runtime_env={"env_vars": FOR_RAY_TRAIN})
            answer = ray.get(lead.remote(place, settings, out.resolve(), _environment()))
        except (WorkerCrashedError, RayActorError):
            raise RunStopped(KILLED) from None
        finally:
            ray.shutdown()
        if isinstance(answer, BaseException):
            raise answer
        checkpoint, said = answer
        sys.stderr.write(said)
        return str(checkpoint)


def _environment() -> dict[str, str]:
    """What a training finds as it would without Ray: the libraries' threads as this process has them.

    An empty name is an absent one for the libraries, and for Ray, which would say 1 for it, one that is there.
    """
    return {name: os.environ.get(name, "") for name in THREADS}


def _lead(place: tuple[Path, str], settings: Mapping[str, Any], out: Path, environment: Mapping[str, str]) -> Any:
    """Have a training done by Ray Train: (checkpoint, what it said on stderr), or what stopped it."""
    num, has = settings["processes"], ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    if 0 < gpus < num:
        return RunStopped(f"processes: {num} is more than the {gpus} GPUs of the cluster")
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from train.dist import PATIENCE

    class Quick(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in WITHOUT]

    cpus = min(TASK_CPUS, has.get("CPU", 1) / 2 / num)
    scaling = ScalingConfig(num_workers=num, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})},
                            placement_strategy="PACK" if gpus else "SPREAD")
    notes = place[0] / f".ray_train.{place[1]}{TEMPORARY}"      # swept when the run ends
    run = RunConfig(name=out.name, storage_path=str(notes), storage_filesystem=pyarrow.fs.LocalFileSystem(),
                    worker_runtime_env={"env_vars": dict(environment)})
    work = {"place": place, "settings": settings, "out": out}
    try:
        return Quick(_work, train_loop_config=work, scaling_config=scaling, run_config=run,
                     torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds()))).fit().return_value
    except TrainingFailedError as error:
        return _why(error)


def _work(work: Mapping[str, Any]) -> tuple[str, str]:
    """Of one of the processes: its part of the training, in the process group that Ray Train has opened."""
    from train.launch import share_cores

    store = Store(*work["place"])
    store.enlist()      # until this function ends a later attempt waits for it
    share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return train_here(work["settings"], work["out"]), said.getvalue()
    except BaseException as error:  # noqa: BLE001  it is raised again in the driver
        raise failure(error) from None


def _why(error: Exception) -> BaseException:
    """Of what the processes died of the one thing to say: a mistake, else a death (which others then fail of), else a fault."""
    found: list[BaseException] = list(getattr(error, "worker_failures", {}).values())
    mistakes = [e for e in found if isinstance(e, CurateError)]
    if not mistakes and any(not isinstance(e, RuntimeError) for e in found):
        return RunStopped(KILLED)
    return [*mistakes, *found, failure(error)][0]
