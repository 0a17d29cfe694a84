"""Fine-tuning on several machines: one process on each, whose gradients TensorFlow sums after every step.

Every process runs the same command, with the addresses of all in `TF_CONFIG`, as for any program that uses TensorFlow's
`MultiWorkerMirroredStrategy`. They begin with the same weights, each computes the gradients of its part of a batch, and
all take the same step. Keras' `fit` cannot do that (in 3.15 it fails with a ValueError about PerReplica), so the loop
over an epoch's steps is here. The first worker alone writes files.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from features._common.console import logger
from features._common.types import Tensor
from features.errors import ConfigError
from stage2_temporal.data.batches import Batches

HINT = 'TF_CONFIG=\'{"cluster": {"worker": ["HOST1:PORT", "HOST2:PORT"]}, "task": {"type": "worker", "index": 0}}\''

Loss = Callable[[Any, Any], Any]  # targets and predictions → one number per example


class Workers:
    """The processes that train together, of which this is the one with the index `index`; see `join_workers`."""

    def __init__(self, index: int, strategy: tf.distribute.Strategy) -> None:
        self.index, self.count, self._strategy = index, strategy.num_replicas_in_sync, strategy
        self._sum = tf.function(self._sum_everywhere, autograph=False)

    @property
    def writes(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of all processes' tensors; every process must call it."""
        return list(self._sum(list(tensors)))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum([tf.ones(())])

    def _sum_everywhere(self, tensors: list[Tensor]) -> Any:
        def reduced(*values: Tensor) -> Any:
            here = [tf.identity(value) for value in values]  # on the replica's device
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return self._strategy.run(reduced, args=tuple(tensors))


def join_workers() -> Workers | None:
    """Join the processes that `TF_CONFIG` names; None without it, or if it names only one.

    It has to be called before TensorFlow computes anything, and returns when all processes are there.

    Raises:
        ConfigError: `TF_CONFIG` is wrong, or a process has several GPUs.
    """
    text = os.environ.get("TF_CONFIG")
    workers, index = parse_config(text) if text else ([], 0)
    if len(workers) < 2:
        return None
    logger.info(f"worker {index} of {len(workers)}: waiting for the others")
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as e:
        raise ConfigError(f"worker {index}: cannot join the others", got=" ".join(str(e).split())[:300]) from None
    if strategy.num_replicas_in_sync != len(workers):
        gpus = strategy.num_replicas_in_sync / len(workers)
        hint = "start a process for each GPU, with its number in CUDA_VISIBLE_DEVICES"
        raise ConfigError("fine-tuning on several machines", expected="one GPU per process", got=gpus, hint=hint)
    return Workers(index, strategy)


def parse_config(text: str) -> tuple[list[str], int]:
    """The addresses of the workers in `TF_CONFIG`, and which of them this process is; a ConfigError if it is wrong."""
    try:
        value = json.loads(text)
        cluster, task = value["cluster"], value["task"]
        workers, index = cluster["worker"], task["index"]
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError("TF_CONFIG: not as TensorFlow expects it", got=e, hint=HINT) from None
    if set(cluster) != {"worker"} or task.get("type") != "worker":
        got = f"{', '.join(cluster)}; this is a {task.get('type')}"
        raise ConfigError("TF_CONFIG", expected="workers only, this process among them", got=got, hint=HINT)
    if not isinstance(workers, list) or type(index) is not int or not 0 <= index < len(workers):
        raise ConfigError("TF_CONFIG", expected="an index of one of the workers", got=index, hint=HINT)
    return workers, index


def train_together(
    workers: Workers, learner: keras.Model, batches: Batches, loss: Loss, metric: Loss, update: Callable[[], Any]
) -> tuple[float, float]:
    """Train for an epoch, each process on its part of every batch.

    Args:
        learner: the model, with its optimiser; it has the same weights in every process.
        batches: the same ones in every process.
        loss: is minimised, on average over the examples of a batch.
        metric: is averaged over the epoch.
        update: is called after every step.

    Returns:
        Loss and metric, averaged over all examples of the epoch.
    """
    optimiser, variables = learner.optimizer, learner.trainable_variables

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def gradients(inputs: Any, targets: Tensor, examples: Tensor) -> Any:
        with tf.GradientTape() as tape:
            predicted = learner(inputs, training=True)
            total = tf.reduce_sum(loss(targets, predicted))
            scaled = optimiser.scale_loss(total / examples)
        computed = tape.gradient(
            scaled, [v.value for v in variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return computed, total, tf.reduce_sum(metric(targets, predicted))

    batches.part = (workers.index, workers.count)
    totals = [0.0, 0.0, 0.0]  # loss, metric, examples
    try:
        for loaded, examples in _loaded(batches, workers):
            if loaded is None:  # the last batch may have fewer examples than there are processes
                computed, sums = [tf.zeros_like(v.value) for v in variables], [tf.zeros(()), tf.zeros(())]
            else:
                inputs, targets = loaded
                computed, *sums = gradients(_tensors(inputs), tf.constant(targets), tf.constant(float(examples)))
            *summed, total_loss, total_metric = workers.sum([*computed, *sums])
            optimiser.apply(summed, variables)
            for i, value in enumerate((total_loss, total_metric, examples)):
                totals[i] += float(value)
            update()
    finally:
        batches.part = (0, 1)
    return totals[0] / totals[2], totals[1] / totals[2]


def _loaded(batches: Batches, workers: Workers) -> Iterator[tuple[tuple[Any, Any] | None, int]]:
    """Yield this process' part of each batch, if any, and the batch's number of examples; threads load them ahead."""
    pending: deque[tuple[Future[Any], int]] = deque()
    threads = max(1, batches.workers)

    def load(index: int) -> tuple[Any, Any] | None:
        if workers.index >= batches.size(index):
            return None
        inputs, targets = batches[index]
        return inputs, targets

    with ThreadPoolExecutor(threads) as pool:
        for i in range(len(batches)):
            pending.append((pool.submit(load, i), batches.size(i)))
            if len(pending) > threads:
                future, size = pending.popleft()
                yield future.result(), size
        while pending:
            future, size = pending.popleft()
            yield future.result(), size


def _tensors(inputs: Any) -> Any:
    """A model's inputs as tensors."""
    if isinstance(inputs, Mapping):
        return {name: tf.constant(values) for name, values in inputs.items()}
    return tf.constant(inputs)
