"""Every command that the pages, the configs and the benchmarks document, run as it stands there.

A command is run in one of three ways; one that fits none of them fails by name:

really      on made-up hands, or with a tiny trained network in the place of W
started     where the work takes minutes or a machine of its own: the program itself parses all
            flags and loads the config with all overrides, and stops before the work
not ours    OTHERS: other programs, each with the reason

What stands in a line of text, between backticks, counts if it has arguments; without any it is only
a name.
"""

import ast
import concurrent.futures
import contextlib
import json
import queue
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags
from prepare import load_builder

from handpose_jax import cli, config, evaluate, export, models, train
from handpose_jax import main as configured
from handpose_jax.data import prepared, sources
from handpose_jax.evaluation import protocols
from handpose_jax.evaluation.report import __main__ as report
from handpose_jax.process import distributed
from handpose_jax.training import optimizers

pytestmark = [
    # ml_collections loads config files by it.
    pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
    # Users have no run-time type checks, with which the data doctor takes many times as long.
    pytest.mark.usefixtures('unchecked'),
]

ROOT = Path(__file__).parent.parent
DATASETS = ROOT / 'datasets'

PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted(DATASETS.rglob('README.md')),
]
SCRIPTS = {name: sorted((ROOT / name).glob('*.py')) for name in ('configs', 'benchmarks')}
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
OURS = re.compile(r'\s*([A-Z_]+=\S+ )*(python|handpose|pytest|pip|git|gcloud|srun|export|adb) ')

OTHERS = {
    'pip': 'installs packages from an index',
    'pre-commit': 'installs hooks into the checkout',
    'source': 'is a word of the shell, after python -m venv',
    'export': 'is a word of the shell',
    'unzip': 'unpacks what pip downloads',
    'du': 'measures a folder',
    'bash .ci/run': 'runs this, in an environment of its own',
    'pytest': 'is what runs this',
    'python -m pytest': 'is what runs this',
    'python -m venv': "is Python's own",
    'python tests/models/test_models.py': 'replaces the golden files of the checkout',
}
# What stands before a command of ours, on machines that are not here.
ELSEWHERE = 'gcloud', 'srun'
SHELL = 'for', 'done', 'wait'

# Its pictures take seconds each.
RENDERED = 'synthetic_hands'


class Stopped(BaseException):
    """Raised where the work of a command would begin; nobody catches it on the way."""


# --- what is documented ---------------------------------------------------------------------------


def commands(text):
    """The simple commands of a few lines of shell, as lists of words."""
    for line in text.replace('\\\n', ' ').splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=';&|')
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ';']:
            if not set(word) <= set(';&|'):
                words.append(word)
                continue
            if words[:1] == ['do']:
                del words[0]
            if words and words[0] in ELSEWHERE:
                yield from elsewhere(words)
            elif words and words[0] not in SHELL:
                yield words
            words = []


def elsewhere(words):
    """The command of ours that others start on their machines."""
    inner = [word for word in words if word.startswith('--command=')]
    if inner:
        yield from commands(inner[0].partition('=')[2])
    else:
        yield words[1:]


def documented(path):
    """The commands of a page, or of a module's docstring, in their order, each once."""
    text = path.read_text()
    if path.suffix == '.py':
        text = ast.get_docstring(ast.parse(text)) or ''
    found = []

    def block(match):
        language, content = match.groups()
        lines = content.splitlines()
        if language in ('sh', 'bash') or (not language and any(map(OURS.match, lines))):
            found.append((match.start(), content))
        # Keeps the places of what follows.
        return ' ' * len(match.group())

    rest = FENCE.sub(block, text)
    for match in re.finditer(r'^ {4,}(\S(?:.*\\\n)*.*)$', rest, re.MULTILINE):
        if OURS.match(match.group(1)):
            found.append((match.start(), match.group(1)))
    for match in re.finditer(r'`([^`]+)`', rest):
        words = match.group(1).split()
        # With a verb and nothing but names behind it `handpose` is told about, not run.
        is_run = any(word.startswith('-') for word in words) or words[0] != 'handpose'
        if OURS.match(match.group(1)) and is_run and len(words) > 2 + (words[1] == '-m'):
            found.append((match.start(), ' '.join(words)))
    every = [words for _, content in sorted(found) for words in commands(content)]
    return [list(words) for words in dict.fromkeys(map(tuple, every))]


DOCUMENTED = {
    **{path.relative_to(ROOT).as_posix(): documented(path) for path in PAGES},
    **{
        f'{name}/*.py': [
            list(words)
            for words in dict.fromkeys(tuple(w) for path in paths for w in documented(path))
        ]
        for name, paths in SCRIPTS.items()
    },
}


def test_commands_are_found_in_every_form(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        'Run `python a.py --x 1`, or `handpose browse`.\n\n'
        '```sh\npip install x && python b.py W  # why\n'
        'for W in 1 2; do handpose evaluate --workdir $W; done\n```\n\n'
        '    HANDPOSE_ASSETS=DIR python c.py "a b=W" \\\n        --y\n\n'
        '   ```\n   gcloud ssh NAME --command="\\\n     python d.py --z"\n'
        '   srun python e.py\n   ```\n'
        '```python\npython = 1\n```\n'
    )
    assert documented(page) == [
        ['python', 'a.py', '--x', '1'],
        ['pip', 'install', 'x'],
        ['python', 'b.py', 'W'],
        ['handpose', 'evaluate', '--workdir', '$W'],
        ['HANDPOSE_ASSETS=DIR', 'python', 'c.py', 'a b=W', '--y'],
        ['python', 'd.py', '--z'],
        ['python', 'e.py'],
    ]


# --- what they are run on -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The workdir of a training of a few steps, evaluated on enough hands for a calibration."""
    workdir = tmp_path_factory.mktemp('trained') / 'W'
    settings = config.load(ROOT / 'configs' / 'quickstart.py:smoke')
    settings.update_from_flattened_dict({'data.count': 600, 'eval_batch_size': 60, 'num_steps': 2})
    train.train(settings, str(workdir))
    return workdir


@pytest.fixture(scope='module')
def seen():
    """Evaluations and reports that were made: each takes seconds, and another of the same kind
    shows nothing new, so that only its flags are parsed.
    """
    return {}


class NoManager(contextlib.nullcontext):
    """Stands for a manager in the threads of one process."""

    Queue = queue.Queue

    def __init__(self, **_):
        super().__init__()

    def start(self, *_):
        pass


class Place:
    """A folder in which the commands of a page run one after the other."""

    def __init__(self, folder, trained, seen, patch):
        self.folder, self.trained, self.seen, self.patch = folder, trained, seen, patch
        self.downloads = set()  # names of data sets, and the folders that hold them
        for name in ('configs', 'benchmarks', 'docs'):
            (folder / name).symlink_to(ROOT / name)
        # Builders of other hands are put there.
        (folder / 'datasets').mkdir()
        for path in DATASETS.iterdir():
            (folder / 'datasets' / path.name).symlink_to(path)
        patch.chdir(folder)
        patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
        patch.syspath_prepend(str(ROOT / 'benchmarks'))
        # To start processes takes seconds; tests/datasets/test_datasets.py prepares in several.
        patch.setattr(
            prepared.concurrent.futures,
            'ProcessPoolExecutor',
            lambda *_, **__: concurrent.futures.ThreadPoolExecutor(1),
        )
        patch.setattr(prepared.multiprocessing.managers, 'SyncManager', NoManager)

    def run(self, words):
        """Runs a command; false if none of the ways fits it."""
        names = [' '.join(words[:count]) for count in (1, 2, 3)]
        if any(name in OTHERS for name in names):
            return True
        while re.match('[A-Z_]+=', words[0]):
            self.patch.setenv(*words.pop(0).split('=', 1))
        words = [{'$W': 'W', '$i': '0'}.get(word, word) for word in words]
        start = ' '.join(words[:2])
        if start == 'python -m':
            way, rest = MODULES.get(words[2]), words[3:]
        elif start.startswith('python benchmarks/') and (self.folder / words[1]).is_file():
            way, rest = started, words[1:]
        else:
            way, rest = WAYS.get(start), words[2:]
        if way is None:
            return False
        way(self, rest)
        return True

    def script(self, name, words):
        """Runs a script as if it was started."""
        self.patch.setattr(sys, 'argv', [name, *words])
        finished(lambda: runpy.run_path(name, run_name='__main__'))

    def workdir(self, name):
        """A trained network in the place of W."""
        if not (self.folder / name).exists():
            shutil.copytree(self.trained, self.folder / name)

    def is_first(self, verb, words, workdirs):
        """Whether a command stands here for the first time, other than with other workdirs."""
        key = verb, *(word for word in words if word not in workdirs)
        self.seen[key] = self.seen.get(key, 0) + 1
        return self.seen[key] == 1

    def stand_in(self, name):
        """A prepared data set where there is none."""
        if not (self.folder / name).exists():
            writer('folder').write(self.folder / f'{name}_made_up')
            self.script(
                'datasets/prepare.py',
                ['folder', '--manual_dir', f'{name}_made_up', '--data_dir', name],
            )


def finished(command):
    """Runs what may return, or leave as a command that succeeds."""
    code = None
    try:
        command()
    except SystemExit as end:
        code = end.code
    finally:
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)
    assert code in (None, 0), code


def value_of(option, words):
    for number, word in enumerate(words):
        if word == option:
            return words[number + 1]
        if word.startswith(f'{option}='):
            return word.partition('=')[2]
    return None


def writer(name):
    return load_builder(DATASETS / name / f'{name}_dummy_data.py')


# --- the ways -------------------------------------------------------------------------------------


def prepare(place, words):
    name, manual_dir = words[0], value_of('--manual_dir', words)
    if name == RENDERED and '--help' not in words:
        prepare_rendered(place, words)
        return
    if manual_dir and (name, manual_dir) not in place.downloads:
        make_up(place, name, manual_dir, words)
    if name == 'my_hands':
        make_own_builder(place.folder)
    place.script('datasets/prepare.py', words)
    if '--help' not in words:
        data_dir = value_of('--data_dir', words)
        cached = Path('cache/handpose_jax') / (value_of('--name', words) or name)
        assert prepared.is_prepared(place.folder / (data_dir or cached))


def prepare_rendered(place, words):
    """Rendering takes seconds a picture: what would be rendered is caught."""
    builder = load_builder(DATASETS / RENDERED / f'{RENDERED}_dataset_builder.py')
    caught = []
    place.patch.setattr(builder, 'prepare', caught.append)
    place.script('datasets/prepare.py', words)
    (arguments,) = caught
    assert str(arguments.count) == value_of('--count', words)
    assert builder.scene_options(arguments).size == int(value_of('--size', words) or 224)
    if arguments.data_dir:
        place.stand_in(arguments.data_dir)


def make_up(place, name, manual_dir, words):
    """The downloads of a data set, made up."""
    place.downloads.add((name, manual_dir))
    folder, module = place.folder / manual_dir, writer(name)
    if '--annotations' in words:
        for file in ('train', 'test'):
            pictures = folder / file.capitalize() / 'source'
            module.write_hands(pictures)
            (pictures / 'hands.json').rename(folder / f'{file}.json')
        return
    truth = module.write(folder)
    if name == 'dexter_object':
        names = [name for name, frame in truth.items() if frame.annotated.any()]
        rows = [f'{name.replace("/", "/color/")}.bmp,10,20,100,50' for name in names]
        (place.folder / 'boxes.csv').write_text('\n'.join(['img_name,x,y,w,h', *rows]))


def make_own_builder(folder):
    """The builder that datasets/README.md has as an example, and photographs for it."""
    (builder,) = re.findall(
        r'```python\n(""".*?)```', (DATASETS / 'README.md').read_text(), re.DOTALL
    )
    path = folder / 'datasets' / 'my_hands' / 'my_hands_dataset_builder.py'
    path.parent.mkdir()
    path.write_text(builder)
    (folder / 'PHOTOS').mkdir()
    for index, sample in enumerate(sources.SketchSource(count=12, split='train')):
        cv2.imwrite(str(folder / 'PHOTOS' / f'{index:03d}.jpg'), sample['image'][..., ::-1])
        np.save(folder / 'PHOTOS' / f'{index:03d}.npy', sample['keypoints'])


def browse(place, words):
    place.stand_in(words[0])
    place.script('datasets/browse.py', words)
    # Made-up hands may be beyond suspicion.
    for option in ('--out', '--report'):
        file = value_of(option, words)
        assert file is None or (place.folder / file).stat().st_size


def cut_handless(place, words):
    folder = place.folder / words[0]
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / 'a.png'), np.random.default_rng(0).integers(0, 255, (300, 400, 3)))
    about = {'source': value_of('--source', words), 'split': 'val'}
    record = {'file': 'a.png', 'hands': [{'box': [180, 130, 220, 170]}], **about}
    (folder / 'annotations.json').write_text(json.dumps([record]))
    place.script('datasets/cut_handless.py', words)
    assert sources.FolderSource(place.folder / value_of('--out', words))[0]['no_hand']


def make_dummy(place, words):
    shutil.rmtree(place.folder / words[1], ignore_errors=True)
    place.script('datasets/make_dummy.py', words)
    assert any((place.folder / words[1]).iterdir())
    place.downloads.add((words[0], words[1]))


def train_or_measure(place, words, run=None):
    run = run or (lambda words: configured.run(['handpose', *words]))
    mode = value_of('--mode', words) or 'train'
    words = [word.replace('NAME.py', 'quickstart.py') for word in words]
    words = ['configs/quickstart.py' if word == 'C' else word for word in words]
    caught, workdir = [], value_of('--workdir', words)
    if mode == 'evaluate':
        place.workdir(workdir)
        if not place.is_first('evaluate', words, [workdir]):
            place.patch.setattr(evaluate, 'evaluate', stop)
            mode = 'measured before'
    if mode == 'evaluate':
        before = (place.folder / workdir / 'evaluation.npz').stat().st_mtime_ns
    place.patch.setattr(distributed, 'initialise', lambda **told: None)
    place.patch.setattr(train, 'train', lambda *given, **told: caught.append(given))
    place.patch.setattr(export, 'export', stop)
    place.patch.setattr(sys, 'argv', ['handpose', *words])
    if mode in ('export', 'measured before'):
        with pytest.raises(Stopped):
            finished(lambda: run(words))
        return
    finished(lambda: run(words))
    if mode == 'evaluate':
        written = [path.stat().st_mtime_ns for path in place.folder.glob(f'{workdir}/**/*.npz')]
        assert max(written) > before
        return
    ((given, target),) = caught
    assert target == (workdir or given.workdir)
    check_training(given, words)


def stop(*given, **told):
    raise Stopped(given, told)


def check_training(given, words):
    """Holds a config to the overrides, and to what a training looks at before it opens the data."""
    for word in words:
        name, found, value = word.partition('=')
        if not name.startswith('--config.'):
            continue
        assert found, word
        setting = given
        for field in name.removeprefix('--config.').split('.'):
            setting = setting[field]
        wanted = value if isinstance(setting, str) else ast.literal_eval(value)
        assert setting == wanted, word
    config.check(given)
    models.build(**given.model.to_dict())
    optimizers.build(num_steps=given.num_steps, **given.optimizer.to_dict())
    protocols.get_protocol(given.protocol)
    for block in (given.data, *given.data.parts.values()):
        assert block.name in sources.SOURCES
        # Nothing that a command sets is left to another source.
        kept = config.source_settings(block)
        for word in words:
            found = re.fullmatch(r'--config\.data\.(\w+)=.*', word)
            assert not found or found.group(1) in kept, word


def started(place, words):
    """Lets a benchmark parse its command line, and no more."""
    place.patch.setattr('argparse.ArgumentParser.parse_args', parse_and_stop)
    with pytest.raises(Stopped):
        place.script(words[0], words[1:])


def parse_and_stop(parser, args=None, namespace=None):
    found, unknown = parser.parse_known_args(args, namespace)
    assert not unknown, unknown
    raise Stopped(found)


def handpose(verb, *, prepares):
    def run(place, words):
        prepares(place, words)
        place.patch.setattr(sys, 'argv', ['handpose', verb, *words])
        finished(lambda: cli.main([verb, *words]))

    return run


def measured(place, words):
    place.workdir(value_of('--workdir', words))


def photographed(place, words):
    measured(place, words)
    source = sources.SketchSource(count=1, split='train')
    photograph = cv2.resize(source[0]['image'], (320, 300))
    cv2.imwrite(str(place.folder / 'photo.jpg'), photograph[..., ::-1])


def handpose_export(place, words):
    place.patch.setattr('argparse.ArgumentParser.parse_args', parse_and_stop)
    with pytest.raises(Stopped):
        cli.main(['export', *words])


def handpose_train(place, words):
    train_or_measure(place, words, lambda words: cli.main(['train', *words]))


def handpose_evaluate(place, words):
    # The mode is said by the verb; it is given here for what looks at the words.
    train_or_measure(
        place, ['--mode=evaluate', *words], lambda words: cli.main(['evaluate', *words[1:]])
    )


def report_on(run):
    def way(place, words):
        workdirs = words[: words.index('--out')]
        for workdir in workdirs:
            place.workdir(workdir)
        out = value_of('--out', words)
        if place.is_first('report', words, [*workdirs, out]):
            finished(lambda: run(words))
            assert (place.folder / out / 'report.html').stat().st_size
        else:
            place.patch.setattr('argparse.ArgumentParser.parse_args', parse_and_stop)
            with pytest.raises(Stopped):
                run(words)

    return way


WAYS = {
    'python datasets/prepare.py': prepare,
    'handpose prepare': prepare,
    'python datasets/browse.py': browse,
    'handpose browse': browse,
    'python datasets/make_dummy.py': make_dummy,
    'python datasets/cut_handless.py': cut_handless,
    'handpose train': handpose_train,
    'handpose evaluate': handpose_evaluate,
    'handpose calibrate': handpose('calibrate', prepares=measured),
    'handpose predict': handpose('predict', prepares=photographed),
    'handpose weights': handpose('weights', prepares=measured),
    'handpose report': report_on(lambda words: cli.main(['report', *words])),
    'handpose export': handpose_export,
}
MODULES = {
    'handpose_jax.main': train_or_measure,
    'handpose_jax.evaluation.report': report_on(report.main),
}


@pytest.mark.parametrize('page', [page for page, found in DOCUMENTED.items() if found])
def test_commands(page, trained, seen, tmp_path, monkeypatch):
    for number, words in enumerate(DOCUMENTED[page]):
        with monkeypatch.context() as patch:
            if number == 0:
                place = Place(tmp_path, trained, seen, monkeypatch)
            place.patch = patch
            said = shlex.join(words)
            try:
                fits = place.run(list(words))
            except Exception as error:
                pytest.fail(f'{page}: {said}: {type(error).__name__}: {error}')
            assert fits, f'{page}: {said}: no way of running it is known here'


# Those that render few pictures, and with nothing of the user's own.
RENDERS = {
    ' '.join(words): words[2:]
    for found in DOCUMENTED.values()
    for words in found
    if words[1:3] in (['datasets/prepare.py', RENDERED], ['prepare', RENDERED])
    and int(value_of('--count', words) or 1000) <= 12
    and '--rig' not in words
}


@pytest.mark.long
@pytest.mark.parametrize('command', RENDERS)
def test_pictures_are_rendered(command, tmp_path, monkeypatch):
    words = RENDERS[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['prepare.py', *words])
    finished(lambda: runpy.run_path(str(DATASETS / 'prepare.py'), run_name='__main__'))
    count = int(value_of('--count', words))
    if folder := value_of('--rhd', words):
        assert len(list(Path(folder, 'training', 'color').iterdir())) == count
    else:
        source = prepared.PreparedSource(value_of('--data_dir', words), split='train')
        assert len(source) == count
