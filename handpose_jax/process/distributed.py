"""More than one device: one mesh, batches spread over it, and what processes must agree on.

Each process of a run reads its own part of every batch and holds the whole state. Without
`initialise` there is one process, and everything here works the same way on its devices.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

_AXIS = 'data'


def initialise(*, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run; to be called in each before JAX is used for anything else.

    On TPU pods, Slurm, Open MPI and Kubernetes JAX finds the others by itself. Elsewhere both
    arguments are needed, and the environment variable JAX_COORDINATOR_ADDRESS (HOST:PORT of
    process 0, the same in all). Returns when all processes are there.

    Args:
        num_processes: how many there are; None where JAX can tell.
        process_id: which one this is, 0 to num_processes - 1; None where JAX can tell.

    Raises:
        ValueError: if one of the three is missing, or process_id is out of range.
        RuntimeError: if JAX was used before, or the others do not come.
    """
    # Its handler of SIGTERM would take the place of interruption.StopRequest's; AnyProcess does
    # the same for both signals.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(num_processes=num_processes, process_id=process_id)
    except ValueError as error:
        raise ValueError(
            f'--distributed: {error} Where JAX does not know the cluster, set '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT and give --num_processes and --process_id; got '
            f'{os.environ.get("JAX_COORDINATOR_ADDRESS")!r}, {num_processes!r} and {process_id!r}'
        ) from error


def leave_if_several(message: str) -> None:
    """Ends a process that failed at once if it is one of several; else it does nothing.

    An ordinary exit would wait for the others, which wait for this process's part of a step. They
    end too, by JAX's watch over the connection.

    Args:
        message: printed on stderr before.
    """
    if jax.distributed.is_initialized():
        print(message, file=sys.stderr, flush=True)
        os._exit(1)


def is_main_process() -> bool:
    """Whether this process is the one that writes what all share: config, metrics, pictures."""
    return jax.process_index() == 0


def data_mesh() -> Mesh:
    """All devices of all processes in one axis, 'data', those of a process beside one another.

    In this order a batch of several processes holds its examples in the order of one process.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of the state: the whole of it on each device."""
    return NamedSharding(mesh, PartitionSpec())


def inference_sharding() -> Sharding:
    """Where variables for inference go: the first device; all, where several processes share."""
    if jax.process_count() > 1:
        return replicated(data_mesh())
    return SingleDeviceSharding(jax.devices()[0])


def process_batch_size(batch_size: int, mesh: Mesh, *, field: str) -> int:
    """This process's share of a batch.

    Args:
        batch_size: examples over all processes.
        mesh: of the run.
        field: the config's name of batch_size, for the message.

    Raises:
        ValueError: if the devices would not get equal parts.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f'{field}: expected a multiple of the {mesh.size} devices of this run '
            f'({jax.process_count()} processes), got {batch_size}; each device takes an equal part'
        )
    return batch_size // mesh.size * len(mesh.local_devices)


def to_devices(batch: Any, mesh: Mesh) -> dict[str, jax.Array]:
    """Spreads this process's part of a batch over its devices, along the first axis.

    Args:
        batch: name to array, as from data/pipeline.py.
        mesh: of the run.
    """
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays, equal in all processes, whole on every device. The given ones may be in use."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would compare every array over all processes first.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Global arrays as whole NumPy arrays, the same in every process; all must call it."""
    if jax.process_count() > 1:
        tree = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def largest(value: float, mesh: Mesh) -> float:
    """The largest of the numbers that the processes bring, the same in each; all must call it."""
    if jax.process_count() == 1:
        return value
    values = np.full(len(mesh.local_devices), value, np.float32)
    most = jax.jit(jnp.max, out_shardings=replicated(mesh))
    return float(most(to_devices({'value': values}, mesh)['value']))


def on_each_device(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Lets each device work on its part of a batch, without a word to the others.

    Args:
        function: of arrays that are whole on every device, and of a batch, along the first axis, to
            another batch.
        mesh: of the run.

    Returns:
        The same function of global arrays, to be called inside jax.jit.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(_AXIS)),
        out_specs=PartitionSpec(_AXIS),
    )


def on_one_device(function: Callable[..., Any], replicated: Any, batch: Any) -> Any:
    """Calls a function of JAX on a device of this process alone; no other process need call it.

    Args:
        function: of the two others; jitted here.
        replicated: global arrays, whole on every device.
        batch: this process's part, NumPy.

    Returns:
        NumPy arrays.
    """
    local = jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)
    return jax.device_get(jax.jit(function)(local, batch))


def _same(tree: Any) -> Any:
    return tree


class AnyProcess:
    """Whether a flag is up in any process, known to all of them at the same step.

    Every process calls it once a step. The flags meet in a reduction behind the step's own work,
    and what is returned is the result of the call before, so that no device waits for a host: a
    flag counts one step late. In a single process it counts at once and costs nothing.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Compiles nothing and waits for nobody yet.

        Args:
            mesh: of the run.
        """
        self._mesh = mesh
        self._maximum = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, flag: bool) -> bool:
        """Tells the others this process's flag.

        Args:
            flag: must stay up once it is.

        Returns:
            Whether one was up at the call before; in a single process, the flag.
        """
        if jax.process_count() == 1:
            return flag
        flags = np.full(len(self._mesh.local_devices), flag, np.int32)
        before, self._before = (
            self._before,
            self._maximum(to_devices({'flag': flags}, self._mesh)['flag']),
        )
        return before is not None and bool(before)
