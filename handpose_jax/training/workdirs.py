"""Reads what a workdir holds, which is all that an evaluation or a prediction needs of it.

W/config.json                the configuration, complete
W/checkpoints/<step>/        see training/checkpoints.py, which writes them
"""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handpose_jax.process import distributed, storage

CONFIG_FILE = 'config.json'
CHECKPOINTS = 'checkpoints'


def load_config(workdir: str) -> ConfigDict:
    """Reads the config of a workdir.

    Raises:
        ValueError: if there is none, or it is not a config.
    """
    path = storage.folder(workdir) / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f'workdir {workdir}: no {CONFIG_FILE}, so nothing was trained here; '
            'give --workdir the folder of a training run'
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: expected a JSON object, got {error}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected a JSON object, got {type(values).__name__}')
    config = ConfigDict(values)
    config.lock()
    return config


def absolute(workdir: str) -> Any:
    """The folder of a workdir as Orbax wants it: absolute, or the address of a bucket."""
    folder = storage.folder(workdir)
    return folder if storage.is_bucket(workdir) else folder.absolute()


def load_variables(workdir: str, template: Any) -> tuple[int, dict[str, Any]]:
    """Reads what inference needs from a workdir's newest checkpoint.

    Args:
        workdir: of a training run.
        template: the network's variables or their shapes: {'params', 'batch_stats'}.

    Returns:
        The step, and {'params', 'batch_stats'} with the averaged parameters where the run kept
        some.

    Raises:
        ValueError: if there is no checkpoint.
    """
    folder = absolute(workdir) / CHECKPOINTS
    if not folder.is_dir():
        raise ValueError(f'workdir {workdir}: no {CHECKPOINTS}/; train there first')
    # The place is said here: the devices it was saved from may not be there.
    place = distributed.inference_sharding()

    def shapes(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
        )

    # Not by a CheckpointManager: opened to write, it would need a folder that can be written;
    # opened with read_only, it warns that the folder is read only, even where it is not.
    latest = ocp.path.step.latest_step_metadata(folder, ocp.path.step.standard_name_format())
    if latest is None:
        raise ValueError(f'workdir {workdir}: {CHECKPOINTS}/ holds no complete checkpoint')
    has_ema = bool(load_config(workdir).ema)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        saved = checkpointer.restore(
            latest.path,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(
                    shapes(
                        {
                            'step': jax.ShapeDtypeStruct((), 'int32'),
                            'params': template['params'],
                            'batch_stats': template['batch_stats'],
                            'ema': template['params'] if has_ema else None,
                        }
                    )
                )
            ),
        ).variables
    params = saved['ema'] if has_ema else saved['params']
    return latest.step, {'params': params, 'batch_stats': saved['batch_stats']}
