"""Where the configs and the scripts of data sets are: in the checkout, or inside the wheel."""

from pathlib import Path


def folder(name: str) -> Path:
    """The folder 'configs' or 'datasets', as setup.py puts it into a wheel, or of the checkout.

    Args:
        name: of the folder.
    """
    package = Path(__file__).parents[1]
    inside = package / '_shipped' / name
    return inside if inside.is_dir() else package.parent / name
