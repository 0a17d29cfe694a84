"""Tasks on a Dask cluster: connecting to it, checking its workers, and calling a function there many times.

Dask does the work: it runs a task again elsewhere when a worker dies, and gives up on one that kills its workers again
and again. (joblib's backend for Dask waits for ever for such a task, and one that fails ends all others.)
"""

from __future__ import annotations

import contextlib
import pickle
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from features._common.console import logger
from features._common.leftovers import writer_name
from features.config import ComputeConfig
from features.errors import BadInputs, ConfigError, FramebankError

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")
PACKAGES = ("framebank", "tensorflow", "keras", "h5py", "numpy", "scikit-learn", "opencv-python-headless", "av")
HINT = "install the same versions there, and mount the same folders at the same paths"
CONNECT_SECONDS = 10
PATIENCE = 60  # s until a file that another machine has written must be seen in a network file system

Function = tuple[Callable[..., Any], tuple[Any, ...]]  # with its arguments


@dataclass(frozen=True)
class PickledFunction:
    """A `Function` that is unpickled where it is called, in the driver's working directory, and short in logs."""

    data: bytes = field(repr=False)

    @classmethod
    def of(cls, function: Function) -> PickledFunction:
        return cls(pickle.dumps(function))

    def __call__(self) -> Any:
        function, arguments = pickle.loads(self.data)  # noqa: S301 — from the driver, as all that Dask sends
        return function(*arguments)


_passed: set[str] = set()  # tokens of the checks that this process, a worker, has passed


@dataclass(frozen=True)
class WorkerCheck:
    """What a worker must have in common with the driver before it begins."""

    token: Path  # a file in the folder that results are written to
    folder: Path  # the driver's working directory, which paths are relative to
    versions: Mapping[str, str] = field(repr=False)  # of the packages that decide what comes out
    probe: PickledFunction  # reads a file which all must see
    expected: str  # what it returns to the driver

    def fault(self) -> str | None:
        """What differs in this process; None if nothing does."""
        if self.token.name in _passed:
            return None
        for name, expected in self.versions.items():
            if (installed := _version(name)) != expected:
                return f"has {name} {installed}; expected {expected}, as the driver has"
        if not self.folder.is_dir():
            return f"has no folder {self.folder}, which the driver runs in"
        with contextlib.chdir(self.folder):
            if not appears(self.token):
                return f"does not see the driver's files in {self.token.parent}"
            try:
                result = self.probe()
            except (OSError, FramebankError) as e:
                return f"cannot read what the driver reads: {e}"
        if result != self.expected:
            return f"sees other files than the driver, or decodes them differently: {result}; expected {self.expected}"
        _passed.add(self.token.name)
        return None


class Cluster:
    """A Dask cluster whose workers have passed a check; get one from `connect`."""

    def __init__(self, client: Client, check: WorkerCheck) -> None:
        self._client, self._check = client, check

    @property
    def threads(self) -> int:
        """Number of tasks that run at a time, now."""
        return sum(self._client.nthreads().values())

    def call(self, name: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a worker, and return its result; see `run` for what is raised."""
        ((_, result),) = self.run(name, [(function, arguments)])
        if isinstance(result, Exception):
            raise FramebankError(f"{name}: the workers that tried it died", got=result, hint="see the workers' logs")
        return cast("Result", result)

    def run(self, name: str, tasks: Iterable[Function]) -> Iterator[tuple[int, Any]]:
        """Yield each task's index and result, as they end. The result of one that killed its workers is a KilledWorker.

        There are only as many tasks at a time as workers, which leaves others to those that join.

        Args:
            name: what Dask's dashboard calls the tasks.

        Raises:
            FramebankError: a worker did not pass the check, or the connection is lost. Other exceptions are the tasks'.
        """
        from distributed import CancelledError, KilledWorker, as_completed

        run, waiting, numbered = uuid4().hex[:8], as_completed(loop=self._client.loop), enumerate(tasks)
        indices: dict[Any, int] = {}
        try:
            while True:
                while len(indices) < max(1, self.threads) and (task := next(numbered, None)) is not None:
                    i, function = task
                    key = f"{name}-{run}-{i}"
                    future = self._client.submit(
                        run_task, self._check, PickledFunction.of(function), key=key, pure=False
                    )
                    indices[future] = i
                    waiting.add(future)
                if not indices:
                    return
                future = next(waiting)
                index = indices.pop(future)
                try:
                    result: Any = future.result()
                except KilledWorker as e:
                    result = e
                except CancelledError:
                    raise FramebankError(
                        "the connection to the Dask scheduler was lost; finished work is saved",
                        hint="start the scheduler and run the same command again",
                    ) from None
                yield index, result
        finally:
            self._client.cancel(list(indices))


@contextmanager
def connect(compute: ComputeConfig, folder: Path, probe: Function) -> Iterator[Cluster]:
    """Connect to the scheduler, wait for the workers, and check them.

    Args:
        folder: where workers write their results.
        probe: a function that reads a file which all must see, and its arguments; it must return the same everywhere.

    Raises:
        ConfigError: Dask is not installed, or there is no scheduler.
        BadInputs: workers that differ from this process, which would not give the same result.
    """
    if find_spec("distributed") is None:
        raise ConfigError("Dask is not installed", hint='pip install "framebank[cluster]"')
    folder.mkdir(parents=True, exist_ok=True)
    token = folder.absolute() / f".driver.{writer_name()}.tmp"
    function, arguments = probe
    versions = {name: _version(name) for name in PACKAGES}
    check = WorkerCheck(token, Path.cwd(), versions, PickledFunction.of(probe), function(*arguments))
    token.touch()
    try:
        with _client(compute) as client:
            needed = max(1, compute.workers)
            if (count := len(client.nthreads())) < needed:
                logger.info(f"{compute.scheduler}: waiting for workers, {count} of {needed} are there.")
                client.wait_for_workers(needed)
            logger.info(f"{compute.scheduler}: {len(client.nthreads())} workers; dashboard at {client.dashboard_link}")
            answers = client.run(WorkerCheck.fault, check, on_error="return")
            gone = OSError | None  # OSError: a worker died meanwhile; those that come are checked with their first task
            faults = [_worker_fault(w, fault) for w, fault in answers.items() if not isinstance(fault, gone)]
            if faults:
                raise BadInputs(f"{len(faults)} of {len(answers)} workers differ from this machine", faults, hint=HINT)
            yield Cluster(client, check)
    finally:
        token.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is used
            folder.rmdir()


def run_task(check: WorkerCheck, function: PickledFunction) -> Any:
    """Call a function in a worker, in the driver's working directory; one that joined late is checked first."""
    import dask.sizeof

    if (fault := check.fault()) is not None:
        raise ConfigError(_worker_fault(worker_address(), fault), hint=HINT)
    # Dask's own threads draw from Python's generator twice a second, and Keras draws the seeds of its layers from it
    dask.sizeof.random = random.Random()
    with contextlib.chdir(check.folder):
        return function()


def describe_deaths(error: Any) -> str:
    """How many workers a task has killed, by its KilledWorker."""
    return "a worker" if error.allowed_failures == 0 else f"{error.allowed_failures + 1} workers"


def worker_address() -> str:
    """The address of the worker that this process is."""
    from distributed import get_worker

    return str(get_worker().address)


def _worker_fault(worker: str, fault: object) -> str:
    """The line about a worker; a fault that is an exception is often a package that is missing there."""
    text = fault if isinstance(fault, str) else f"does not run framebank: {fault}"
    return f"worker {worker} {text}"


@contextmanager
def _client(compute: ComputeConfig) -> Iterator[Client]:
    from distributed import Client

    address = compute.scheduler
    if not address:
        raise ConfigError("no Dask scheduler named", hint="--compute.scheduler tcp://HOST:8786")
    is_file = "://" not in address
    try:
        if is_file and not Path(address).is_file():  # for which Dask would wait
            raise FileNotFoundError("there is no such scheduler file")
        where = {"scheduler_file": address} if is_file else {"address": address}
        client = Client(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{address}: no Dask scheduler", got=e, hint="dask scheduler, see docs/cluster.md") from None
    with client:
        yield client


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def appears(path: Path) -> bool:
    """Whether there is a file, which a network file system may show some seconds after it was written."""
    end = time.monotonic() + (PATIENCE if path.parent.is_dir() else 0)
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
