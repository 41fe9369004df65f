"""What a run's config says, read in one place."""

from typing import Any

from ml_collections import ConfigDict

_WHOLE_BOX = 1.0


def evaluation_data(config: ConfigDict) -> dict[str, Any]:
    """The data set that a run is measured on, as keyword arguments of data.sources.load_source.

    A network trained on a mixture is measured on one data set, config.eval_data; every other on
    what it is trained on. The split is not among them: config.eval_split says it.
    """
    data = config.eval_data if 'eval_data' in config else config.data
    settings: dict[str, Any] = data.to_dict()
    return settings


def crop_scale(config: ConfigDict) -> float:
    """Side of the crops that a run is measured on, over the longest side of the hand's box.

    Returns:
        1.0 for networks that are shown whole images (data.crop = 'image').
    """
    data = evaluation_data(config)
    return _WHOLE_BOX if data.get('crop') == 'image' else float(data['crop_scale'])
