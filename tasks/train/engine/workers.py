"""Where jobs run: in this process, or on Ray actors. Results come in the order of the jobs, whoever did them."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from tasks import tree
from tasks.config import Refused
from tasks.partition.federation import Federation
from tasks.train.engine.program import Blueprint, Job, Result
from tasks.tree import Packed, Tree


class Workers(Protocol):
    """Runs jobs. A context manager: whatever was started is stopped at the end."""

    def run(self, shared: Tree, jobs: Sequence[Job]) -> Iterator[Result]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def hire(blueprint: Blueprint) -> Workers:
    """The workers that the plan asks for."""
    return RayWorkers(blueprint) if blueprint.plan.workers else InProcess(blueprint)


class InProcess:
    """One job after another, in this process."""

    def __init__(self, blueprint: Blueprint):
        self.program = blueprint.program()

    def run(self, shared: Tree, jobs: Sequence[Job]) -> Iterator[Result]:
        return (self.program.run(shared, job) for job in jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Parcel(NamedTuple):
    """A named tuple whose trees are packed, so that they cross to another process as flat arrays."""

    kind: type
    values: tuple[Any, ...]


def wrap(value: NamedTuple) -> Parcel:
    """``value`` ready to travel."""
    return Parcel(type(value), tuple(tree.pack(item) if isinstance(item, dict) else item for item in value))


def unwrap(parcel: Parcel) -> Any:
    """The inverse of :func:`wrap`."""
    return parcel.kind(*(tree.unpack(item) if isinstance(item, Packed) else item for item in parcel.values))


class Actor:
    """One Ray worker: builds its program once, then runs the jobs it is given.

    It keeps nothing between jobs, so one that died can be replaced by a fresh one at any moment."""

    def __init__(self, blueprint: Blueprint, data: Federation | None):
        import torch

        torch.set_num_threads(1)
        try:
            self.program = blueprint.program(data)
        except Exception as error:
            # Not every error can be made again on the other side from what travels of it; this one can.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def run(self, shared: Packed, job: Parcel) -> Parcel:
        start = time.perf_counter()
        broadcast, work = tree.unpack(shared), unwrap(job)
        return wrap(self.program.run(broadcast, work, time.perf_counter() - start))


class RayWorkers:
    """A pool of Ray actors, one a core or a GPU, on this machine or on the cluster at ``RAY_ADDRESS``.

    The broadcast is put into the object store once an exchange; the data once a run, if the cluster has machines that
    do not see the partition's folder. A job whose actor died is run again on another, and a new actor joins the pool as
    soon as it is up; if its machine is gone too, the pool goes on without. After a death the idle actors get no job
    before they have answered, so that none is passed from one dead actor to the next. A job that three actors died
    of ends the run, and so does an actor whose program cannot be built, or a pool of which none comes up.
    """

    DEATHS = 3
    PATIENCE = 30.0
    """Seconds without an answer after which it is asked whether there is still anybody to give one."""

    def __init__(self, blueprint: Blueprint):
        self.blueprint = blueprint

    def __enter__(self) -> Self:
        import ray

        count, gpus = self.blueprint.plan.workers, 1 if self.blueprint.plan.device == "cuda" else 0
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(**_cluster(count), logging_level="warning", log_to_driver=False)
        have = ray.cluster_resources()
        if have.get("CPU", 0) < count or have.get("GPU", 0) < gpus:
            found = f"{have.get('CPU', 0):.0f} cores and {have.get('GPU', 0):.0f} GPUs"
            where, mend = "params.yaml: train.engine.workers", "Ask for fewer, or join machines to the cluster"
            raise Refused(where, count, f"the Ray cluster has {found}", mend)
        share = gpus * min(1.0, have.get("GPU", 0) / count)
        self.remote = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Actor)
        self.plan = ray.put(self.blueprint)
        several = len([node for node in ray.nodes() if node["Alive"]]) > 1
        self.data = ray.put(Federation.open(self.blueprint.partition).in_memory()) if several else None
        self.idle: list[Any] = []
        self.joining: dict[Any, Any] = {}
        self.stillborn = 0
        for _ in range(count):
            self._hire()
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        for actor in [*self.idle, *self.joining.values()]:
            ray.kill(actor)
        if self.started:
            ray.shutdown()

    def run(self, shared: Tree, jobs: Sequence[Job]) -> Iterator[Result]:
        import ray
        from ray.exceptions import ObjectLostError, RayActorError

        broadcast = ray.put(tree.pack(shared))
        waiting, deaths = list(enumerate(jobs))[::-1], [0] * len(jobs)
        running: dict[Any, tuple[int, Any]] = {}
        done: dict[int, Result] = {}
        for wanted in range(len(jobs)):
            while True:
                # Before a result is passed on too, so that nobody waits while the server adds up.
                while waiting and self.idle:
                    number, job = waiting.pop()
                    actor = self.idle.pop()
                    running[actor.run.remote(broadcast, wrap(job))] = (number, actor)
                if wanted in done:
                    break
                ready = self._next([*running, *self.joining])
                if ready in self.joining:
                    self._join(ready)
                    continue
                number, actor = running.pop(ready)
                try:
                    done[number] = unwrap(ray.get(ready))
                    self.idle.append(actor)
                except (RayActorError, ObjectLostError) as error:
                    deaths[number] += 1
                    waiting.append((number, jobs[number]))
                    if deaths[number] == self.DEATHS:
                        problem = f"{self.DEATHS} workers died over the same clients ({error})"
                        mend = "Is there enough memory? Try fewer workers, or 0 to see the error itself"
                        raise Refused("params.yaml: train.engine.workers", None, problem, mend) from error
                    print("train: a worker died; its clients are run again on another")
                    ray.kill(actor)
                    self._hire()
                    self._roll_call()
            yield done.pop(wanted)

    def _hire(self) -> None:
        """Asks for one more actor, which joins when it is up."""
        self._ask(self.remote.remote(self.plan, self.data))

    def _ask(self, actor: Any) -> None:
        """Lets ``actor`` join as soon as it answers."""
        self.joining[actor.__ray_ready__.remote()] = actor

    def _roll_call(self) -> None:
        """Asks the idle actors whether they are there: what one died of, a lost machine, may have taken others too."""
        while self.idle:
            self._ask(self.idle.pop())

    def _join(self, ready: Any) -> None:
        """Takes in the actor that has answered; hires another if it is dead.

        Raises
        ------
        Refused
            If its program cannot be built, or none of many in a row came up.
        """
        import ray
        from ray.exceptions import RayActorError

        actor = self.joining.pop(ready)
        try:
            ray.get(ready)
            self.idle.append(actor)
            self.stillborn = 0
        except RayActorError as error:
            self.stillborn += 1
            if error.actor_init_failed or self.stillborn == self.DEATHS * self.blueprint.plan.workers:
                reason = str(error).strip().splitlines()[-1]
                where, mend = "params.yaml: train.engine.workers", "Use 0 to see the error itself"
                raise Refused(where, None, f"a worker cannot be started ({reason})", mend) from error
            ray.kill(actor)
            self._hire()

    def _next(self, pending: list[Any]) -> Any:
        """The first of ``pending`` to be ready; refuses to wait for ever where no machine is left to do it."""
        import ray

        while True:
            ready, _ = ray.wait(pending, num_returns=1, timeout=self.PATIENCE)
            if ready:
                return ready[0]
            if not ray.cluster_resources().get("CPU", 0):
                mend = "Start the cluster again; the run goes on from its last checkpoint"
                raise Refused("Ray", None, "the cluster has no machine left", mend)


def _cluster(count: int) -> dict[str, Any]:
    """How Ray is started: on this machine for ``count`` workers, or joined at ``RAY_ADDRESS``, where the machines get
    the code of this folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        left_out = [".git", ".venv", ".dvc", ".fedloom", "artifacts", "mlartifacts", "mlflow.db", "reports", "data"]
        return {"address": address, "runtime_env": {"working_dir": ".", "excludes": left_out}}
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # "local", or Ray would join whatever cluster it finds running on this machine.
    return {"address": "local", "num_cpus": count, "include_dashboard": False}
