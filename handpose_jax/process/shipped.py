"""What travels with the package: configs and the scripts of data sets, and trained weights."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def folder(name: str) -> Path:
    """The folder 'configs' or 'datasets', as setup.py puts it into a wheel, or of the checkout.

    Args:
        name: of the folder.
    """
    inside = _PACKAGE / '_shipped' / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def weights_names() -> list[str]:
    """The names of the weights that come with the package, see handpose_jax/weights/README.md."""
    return sorted(file.stem for file in (_PACKAGE / 'weights').glob('*.safetensors'))


def weights(name: str) -> str:
    """The file of the package's weights of a name; any other path as it is.

    Args:
        name: one of weights_names(), or a path; a file or folder of that name comes first.
    """
    if name in weights_names() and not Path(name).exists():
        return str(_PACKAGE / 'weights' / f'{name}.safetensors')
    return name
