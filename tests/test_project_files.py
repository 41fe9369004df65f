"""The project's pages: what they link to and the files that they name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ('README.md', 'CONTRIBUTING.md', 'docs/**/*.md', 'datasets/**/README.md')
    for path in ROOT.glob(pattern)
)
# The changelog is left out: it may name files that are gone.

_LINK = re.compile(r'\]\(([^)\s]+)\)')
_PATH = re.compile(
    r'(?<![\w/.-])((?:handpose_jax|configs|datasets|benchmarks|tests|docs)/[\w./-]*'
    r'\.(?:py|json|md|svg|png))(?!\w)'
)
_INSIDE = re.compile(
    r'`((?:data|evaluation|export|models|process|synthetic|training)/[\w./-]+\.py)`'
)
_MODULE = re.compile(r'python -m (handpose_jax[\w.]*)')
# Placeholders of examples: their readers write these files.
_EXAMPLES = {'configs/x.py', 'datasets/my_hands/my_hands_dataset_builder.py'}


def test_the_pages_are_really_read():
    assert {'README.md', 'docs/architecture.md', 'datasets/cmu/README.md'} <= set(PAGES)


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_names_is_there(page):
    path = ROOT / page
    text = path.read_text(encoding='utf-8')
    links = {link.split('#')[0] for link in _LINK.findall(text) if ':' not in link}
    missing = sorted(link for link in links if not (path.parent / link).exists())
    named = {name for name in _PATH.findall(text) if 'NAME' not in name} - _EXAMPLES
    missing += sorted(name for name in named if not (ROOT / name).exists())
    inside = sorted(set(_INSIDE.findall(text)))
    missing += [name for name in inside if not (ROOT / 'handpose_jax' / name).exists()]
    for module in sorted(set(_MODULE.findall(text))):
        place = ROOT / module.replace('.', '/')
        if not (place.with_suffix('.py').exists() or (place / '__main__.py').exists()):
            missing.append(f'python -m {module}')
    assert not missing, f'{page} names what is not there: {missing}'


def test_the_layout_names_every_module():
    text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    words = set(re.findall(r'\w+', text[: text.index('## ')]))
    # These two folders are told as a whole.
    modules = [
        path
        for path in sorted((ROOT / 'handpose_jax').rglob('*.py'))
        if path.parent.name not in ('doctor', 'report') and not path.stem.startswith('__')
    ]
    assert not [str(path.relative_to(ROOT)) for path in modules if path.stem not in words]
