"""Common mistakes on the command line: a few lines, no traceback, what is wrong and the remedy."""

import re
import sys
from pathlib import Path

import pytest
from absl import flags

from handpose_jax import cli

# ml_collections loads config files by it.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')

ROOT = Path(__file__).parent.parent
SMOKE = f'--config={ROOT}/configs/quickstart.py:smoke'


@pytest.fixture
def said_by(capsys, monkeypatch):
    """What a command that must fail prints."""

    def run(*words):
        # ml_collections looks there too.
        monkeypatch.setattr(sys, 'argv', ['handpose', *map(str, words)])
        return said(capsys)

    return run


def said(capsys):
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)
    assert caught.value.code not in (0, None)
    printed = capsys.readouterr().err
    told = caught.value.code if isinstance(caught.value.code, str) else printed
    assert len(told.strip().splitlines()) <= 5, told
    assert 'Traceback' not in printed + told
    return told


SETTINGS = [
    ('--config.lr=0.1', 'config.lr: .*no such setting'),
    ('--config.optimizer.learning_rat=3', 'Did you mean "learning_rate"'),
    ('--config.size=abc', 'config.size=abc'),
    ('--config.size=65', 'size'),
    ('--config.size=-64', 'size'),
    ('--config.batch_size=0', 'batch_size'),
    ('--config.eval_batch_size=0', 'eval_batch_size'),
    ('--config.num_steps=-1', 'num_steps'),
    ('--config.log_every=0', 'log_every'),
    ('--config.eval_every=0', 'eval_every'),
    ('--config.checkpoint_every=0', 'checkpoint_every'),
    ('--config.seed=-1', 'seed'),
    ('--config.sigma=0', 'sigma'),
    ('--config.ema=2', 'ema'),
    ('--config.loss=nothing', 'loss'),
    ('--config.model.dtype=bf16', 'dtype.*bfloat16'),
    ('--config.model.name=nothing', 'mobilenet_v2'),
    ('--config.model.width=0', 'width'),
    ('--config.optimizer.name=nothing', 'adamw'),
    ('--config.optimizer.schedule_name=nothing', 'cosine'),
    ('--config.data.name=nothing', 'folder'),
    ('--config.protocol=nothing', 'box'),
    ('--config.decode.method=nothing', 'peak'),
    ('--config.early_stopping.metric=nothing', 'metric.*epe_mean_224'),
    ('--config.pipeline.num_threads=-1', 'num_threads'),
    ('--config.pipeline.place=disk', 'place.*device'),
    ('--config.pipeline.stored_side=9', 'stored_side'),
    ('--config.augmentation.scale=(2.,1.)', 'scale'),
    ('--config.init_from=/nowhere/weights.npz', '/nowhere/weights.npz'),
]


@pytest.mark.parametrize(('flag', 'message'), SETTINGS)
def test_a_wrong_setting(tmp_path, said_by, flag, message):
    told = said_by('train', SMOKE, f'--workdir={tmp_path / "w"}', flag)
    assert re.search(message, told), told
    assert not (tmp_path / 'w').exists()
