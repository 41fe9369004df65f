"""The network learns a handful of photographs by heart; in a file of its own, for a free worker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_end_to_end import write_folder

from handpose_jax.config import load
from handpose_jax.training import checkpoints

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_overfits_eight_photographs(tmp_path):
    """Network, targets, loss, optimizer and decoding together can learn: 8 images to under 2 px."""
    folder = tmp_path / 'hands'
    assets = os.environ.get('HANDPOSE_ASSETS')
    if assets:
        _copy_eight_photographs(Path(assets) / 'real_hands', folder)
    else:
        write_folder(folder, 8)
    config = load(ROOT / 'configs' / 'real_hands.py')
    config.update_from_flattened_dict(
        {
            'size': 96,
            'batch_size': 8,
            'eval_batch_size': 8,
            'num_steps': 250,
            'eval_every': 1000,
            'checkpoint_every': 1000,
            'ema': 0.9,
            'data.root': str(folder),
            'optimizer.learning_rate': 3e-3,
            'optimizer.warmup_steps': 20,
            'model.width': 0.35,
            'model.bn_momentum': 0.9,
        }
    )
    with config.unlocked():
        config.model.decoder_widths = {'residual': 256, 'reduce': 128, 'separable': 128}
        config.augmentation = {'rotation': 0.0, 'translation': 0.0, 'scale': (1.0, 1.0)}
    # In a process of its own: this one compiles without optimization, see conftest.py.
    checkpoints.save_config(str(tmp_path / 'w'), config)
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    script = (
        'import sys; from handpose_jax import train; from handpose_jax.training import workdirs; '
        'train.train(workdirs.load_config(sys.argv[1]), sys.argv[1])'
    )
    subprocess.run([sys.executable, '-c', script, tmp_path / 'w'], env=environment, check=True)
    summary = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
    assert summary['hands'] == 8
    assert summary['epe_mean_224'] < 2.0


def _copy_eight_photographs(source: Path, folder: Path) -> None:
    folder.mkdir()
    records = json.loads((source / 'annotations.json').read_text())[:: 3399 // 8][:8]
    for number, record in enumerate(records):
        name = f'{number}{Path(record["file"]).suffix}'
        (folder / name).write_bytes((source / record['file']).read_bytes())
        record.update(file=name)
    both = [{**record, 'split': split} for record in records for split in ('train', 'val')]
    (folder / 'annotations.json').write_text(json.dumps(both))
