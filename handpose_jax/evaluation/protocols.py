"""The evaluation protocols: which crop, which normaliser, which range of thresholds.

A number means nothing without its protocol, so every summary of metrics names one of these.
docs/protocols.md shows them all; its tables are made by `markdown`.
"""

import dataclasses
import difflib
from typing import Literal, NamedTuple

from handpose_jax import hand

ALL_KEYPOINTS: tuple[int, ...] = tuple(range(hand.NUM_KEYPOINTS))

CONFIDENCE: dict[str, str] = {
    'A': "read in the publication, its figures or its authors' code",
    'B': 'measured, or strongly implied',
    'C': 'our choice, with a reason',
    'X': 'lost: nobody here knows it',
}
"""The marks that stand behind each statement of Protocol.facts."""


class Published(NamedTuple):
    """A number that others published, to be printed beside ours; never measured by us.

    Attributes:
        system: network, training data and input size, as its authors name them.
        metric: the key of metrics.KeypointErrors.summary that it is to be compared with.
        value: as published.
        source: the publication.
        remark: what differs from the protocol; '' where nothing is known to.
    """

    system: str
    metric: str
    value: float
    source: str
    remark: str = ''


class Fact(NamedTuple):
    """A statement about a protocol and how sure it is, a key of CONFIDENCE."""

    confidence: str
    text: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the error of a prediction is measured and summed up.

    Attributes:
        name: the key in PROTOCOLS.
        description: one sentence for reports.
        data: the records it is meant for.
        crop_scale: side of the square evaluation crop, in units of `relative_to`.
        normaliser: what the PCK curve divides errors in the photograph by: 'pixel', nothing (its
            thresholds are pixels of the photograph); else `relative_to`.
        relative_to: what PCK@0.2 divides by, and `norm_size` has to hold, in image pixels: 'box',
            the longest side of the record's box (the tight box around the keypoints where the data
            give none); 'head_size', the longest side of the person's head box; 'image', the longest
            side of the image; or 'keypoint_box', the longest side of the tight box around the
            annotated keypoints, which needs no norm_size.
        max_threshold: end of the PCK curve, in units of the normaliser; it starts at 0.
        steps: number of intervals of the curve.
        keypoints: indices of the keypoints that count.
        source: the publication the protocol comes from, or 'ours'.
        hidden: whether annotated keypoints that are hidden behind something count.
        rule: 'trapezoid': PCK is the share of all counted keypoints with an error at or below the
            threshold, AUC its area by trapezoids; 'mmpose': the mean over the keypoints of the
            shares with an error below the threshold, AUC the mean over all thresholds but the last
            (so that a perfect network reaches 1 - 1 / steps).
        extras: measures beside the common ones: 'percent_of_side', 'root_aligned' or
            'over_keypoints', see metrics.METRICS.
        facts: what is known of it and what is not.
        published: numbers of others.
    """

    name: str
    description: str
    data: str
    crop_scale: float
    normaliser: Literal['box', 'head_size', 'image', 'pixel']
    relative_to: Literal['box', 'head_size', 'image', 'keypoint_box']
    max_threshold: float
    steps: int
    keypoints: tuple[int, ...]
    source: str
    hidden: bool = True
    rule: Literal['trapezoid', 'mmpose'] = 'trapezoid'
    extras: tuple[Literal['percent_of_side', 'root_aligned', 'over_keypoints'], ...] = ()
    facts: tuple[Fact, ...] = ()
    published: tuple[Published, ...] = ()

    def thresholds(self) -> tuple[float, ...]:
        """The steps + 1 evenly spaced thresholds of the PCK curve, in units of the normaliser."""
        return tuple(self.max_threshold * i / self.steps for i in range(self.steps + 1))


def _published(
    system: str, source: str, *, remark: str = '', **values: float
) -> tuple[Published, ...]:
    return tuple(
        Published(system, metric.replace('_at_02', '_at_0.2'), value, source, remark)
        for metric, value in values.items()
    )


def _table_1(system: str, auc: float, mean: float, median: float) -> tuple[Published, ...]:
    return _published(
        system,
        'Gouidis et al. 2019, table 1',
        auc=auc,
        epe_mean_224=mean,
        epe_median_224=median,
    )


def _mmpose(system: str, auc: float, epe: float, pck: float | None = None) -> tuple[Published, ...]:
    values = {} if pck is None else {'pck_at_02': pck}
    remark = 'orientation only: crop 1.25 x (CMU: 1.76 x) the annotated box'
    if 'FreiHAND' in system:
        remark = 'orientation only: whole image, random 8:1:1 split of the training part'
    return _published(
        system, "mmpose's model zoo", remark=remark, **values, auc=auc, epe_mean_image=epe
    )


_OVER_KEYPOINTS = (
    "each measure is the mean over the 21 keypoints of that keypoint's own measure (the keys that "
    'end in over_keypoints); the wrist is replaced by the middle between it and the middle knuckle'
)

PROTOCOLS: dict[str, Protocol] = {
    'box': Protocol(
        name='box',
        description='Crop 2.2 x the tight keypoint box; errors relative to that box; 0..0.5.',
        data='any, such as rendered hands and folders of your own',
        # The scale that Simon et al. use where a hand comes without a head size.
        crop_scale=2.2,
        normaliser='box',
        relative_to='box',
        max_threshold=0.5,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='ours, for data without a protocol of its own',
        facts=(
            Fact('A', '2.2 is the scale of Simon et al. 2017 for hands without a head size'),
            Fact('C', 'normaliser, range and steps'),
        ),
    ),
    'cmu': Protocol(
        name='cmu',
        description='Crop 1.54 head sizes; PCKh, errors relative to the head size; 0..1.',
        data="CMU hands, manual_test, 846 hands: dataset 'cmu', split 'test'",
        # A hand is taken to measure 0.7 head sizes, and the crop to be 2.2 hands wide.
        crop_scale=2.2 * 0.7,
        normaliser='head_size',
        relative_to='head_size',
        max_threshold=1.0,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='Simon et al. 2017 (crop, PCKh); Gouidis et al. 2019, section 4 (AUC, EPE)',
        facts=(
            Fact('A', 'crop, normaliser, and that a keypoint counts where it is annotated'),
            Fact('A', 'AUC of PCKh over 0..1; mean and median EPE'),
            Fact(
                'B',
                'EPE is in pixels of the 224 crop: this reproduces all five rows of table 1 within '
                '0.005',
            ),
            Fact('C', '100 steps; means over all keypoints of all hands together'),
            Fact('X', "the paper's batch size and epochs, so its rows are targets, not recipes"),
        ),
        published=(
            *_table_1('CMU, 112', 0.917, 11.75, 7.34),
            *_table_1('CMU, 224', 0.919, 10.88, 6.95),
            *_table_1('CMU+RHD', 0.901, 13.60, 9.11),
            *_table_1('CMU+RHD+SHP', 0.924, 10.40, 6.40),
            *_table_1('ResNet/CMU', 0.917, 11.14, 6.54),
        ),
    ),
    'rhd': Protocol(
        name='rhd',
        description='Crop 2.2 x the tight keypoint box; errors in image pixels, with and without '
        'the wrist as root; 0..30 px; visible keypoints only.',
        data="RHD, evaluation part, 2,728 images: dataset 'rhd', split 'test'",
        crop_scale=2.2,
        normaliser='pixel',
        relative_to='box',
        max_threshold=30.0,
        # The 20 thresholds of Zimmermann and Brox.
        steps=19,
        keypoints=ALL_KEYPOINTS,
        source='Zimmermann & Brox 2017 (thresholds, visible keypoints); Gouidis et al. 2019, '
        'section 4 (range, root alignment)',
        hidden=False,
        extras=('root_aligned', 'over_keypoints'),
        facts=(
            Fact('A', 'AUC by trapezoid over 0..30 px of the 320 px image; visible keypoints only'),
            Fact('A', 'the dominant hand of each image'),
            Fact('A', "20 thresholds, by Zimmermann and Brox's evaluation code"),
            Fact('A', f'in that code {_OVER_KEYPOINTS}'),
            Fact('C', 'crop'),
            Fact(
                'C',
                'root alignment subtracts the error of the wrist from those of all keypoints of '
                'the hand; the wrist itself counts, with error 0; hands whose wrist is not '
                'counted drop out',
            ),
            Fact('X', 'the numbers of Gouidis et al., and how many steps their curve has'),
        ),
        published=_published(
            'Zimmermann & Brox, PoseNet, crops by the truth',
            'Zimmermann & Brox 2017, table 1',
            remark='palm in place of the wrist; other crop',
            epe_mean_image_over_keypoints=9.135,
            epe_median_image_over_keypoints=5.001,
            auc_over_keypoints=0.724,
        ),
    ),
    'dexter_object': Protocol(
        name='dexter_object',
        description='Crop 1.25 x the box of the hand; errors of the five fingertips in image '
        'pixels; 0..30 px.',
        data="Dexter+Object, all six sequences: dataset 'dexter_object'",
        crop_scale=1.25,
        normaliser='pixel',
        relative_to='box',
        max_threshold=30.0,
        steps=100,
        keypoints=hand.FINGERTIPS,
        source='Gouidis et al. 2019, section 4; data of Sridhar et al. 2016',
        facts=(
            Fact('A', 'fingertips only; the given or detected box, its sides x 1.25; 0..30 px'),
            Fact('A', 'the calibration of the data is known to be bad: expect a systematic offset'),
            Fact('C', '100 steps; the box where no file of boxes is given'),
            Fact('X', "the paper's boxes and its numbers"),
        ),
    ),
    'tzionas': Protocol(
        name='tzionas',
        description='Crop 2.2 x the box of the hand; errors in image pixels; 0..15 px.',
        data='Tzionas et al.: a folder, as datasets/tzionas/README.md tells',
        crop_scale=2.2,
        normaliser='pixel',
        relative_to='box',
        max_threshold=15.0,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='Gouidis et al. 2019, section 4 (range); data of Tzionas et al. 2016',
        facts=(
            Fact('A', '0..15 px'),
            Fact('C', 'crop, 100 steps, and that all annotated keypoints count'),
            Fact('X', "the data's own format, which keypoints it annotates, the paper's numbers"),
        ),
    ),
    'freihand_tutorial': Protocol(
        name='freihand_tutorial',
        description='The whole image; errors relative to its side; 0..0.3.',
        data='FreiHAND, raw training images 31,000..32,559: the test part of the tutorial',
        crop_scale=1.0,
        normaliser='image',
        relative_to='image',
        # The tutorial has no curve, only the mean error in % of the side; the range is ours.
        max_threshold=0.3,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='Chernytska 2021 (crop, normaliser, mean error in % of the side)',
        extras=('percent_of_side',),
        facts=(
            Fact('A', "crop, split, and the mean over an image's keypoints, then over images"),
            Fact('A', '4.5% of the side is 6 px at 128 and 10 px at 224'),
            Fact('C', 'PCK and AUC, which the tutorial has not'),
        ),
        published=_published('U-Net, 128', 'Chernytska 2021', epe_percent_of_side=4.5),
    ),
    'freihand': Protocol(
        name='freihand',
        description='Crop 2.2 x the tight keypoint box; errors in image pixels; 0..30 px.',
        data='FreiHAND, evaluation part, 3,960 images, by the published annotations',
        crop_scale=2.2,
        normaliser='pixel',
        relative_to='box',
        max_threshold=30.0,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='ours; data of Zimmermann et al. 2019',
        facts=(
            Fact('A', '3,960 images, whose annotations came later than the data set'),
            Fact('C', 'crop, range and steps: as for the other data in pixels'),
            Fact('X', 'any published number for this crop and range'),
        ),
    ),
    'mmpose': Protocol(
        name='mmpose',
        description='PCK@0.2 relative to the tight keypoint box; AUC over 0..30 px and EPE in '
        "image pixels, by mmpose's rules.",
        data='any; for comparison with published tables',
        crop_scale=1.25,
        normaliser='pixel',
        relative_to='keypoint_box',
        max_threshold=30.0,
        steps=20,
        keypoints=ALL_KEYPOINTS,
        source='mmpose, evaluation code and model zoo (keypoint_eval.py)',
        hidden=False,
        rule='mmpose',
        facts=(
            Fact('A', 'AUC: 20 thresholds, 0, 1.5, .. 28.5 px, and the mean of PCK over them'),
            Fact('A', 'so a perfect network reaches 0.95; an error equal to a threshold is a miss'),
            Fact('A', 'PCK is the mean over keypoints of their shares; EPE pools all keypoints'),
            Fact('A', 'crop 1.25 x the annotated box (CMU: 1.76 x; FreiHAND: by the whole image)'),
            Fact('A', 'for CMU its tables give PCKh@0.7 in place of PCK@0.2'),
            Fact('B', 'only keypoints marked as visible count'),
            Fact('C', 'the annotated box taken to be the tight box around the keypoints'),
            Fact(
                'X',
                'which boxes the published annotation files hold; for FreiHAND it may be the whole '
                'image, which makes PCK@0.2 much easier',
            ),
        ),
        published=(
            *_mmpose('CMU, MobileNetV2, 256', 0.694, 9.70),
            *_mmpose('CMU, ResNet-50, 256', 0.713, 9.00),
            *_mmpose('CMU, HRNetv2-w18+DARK, 256', 0.745, 7.77),
            *_mmpose('RHD, MobileNetV2, 256', 0.883, 2.79, 0.985),
            *_mmpose('RHD, HRNetv2-w18+DARK, 256', 0.903, 2.18, 0.992),
            *_mmpose('FreiHAND, ResNet-50, 224', 0.868, 3.27, 0.999),
        ),
    ),
}


def get_protocol(name: str) -> Protocol:
    """Looks a protocol up by name.

    Raises:
        ValueError: for an unknown name; lists the known ones and suggests the nearest.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1)
    suggestion = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
        f'protocol must be one of {", ".join(sorted(PROTOCOLS))}, got {name!r}{suggestion}'
    )


_UNITS = {
    'box': 'x box side',
    'keypoint_box': 'x tight keypoint box side',
    'head_size': 'x head size',
    'image': 'x image side',
    'pixel': 'px of the image',
}


def markdown() -> str:
    """The tables of docs/protocols.md: all protocols, then each by itself."""
    lines = [
        '| protocol | crop, side | PCK curve | PCK@0.2 relative to | keypoints | more |',
        '|---|---|---|---|---|---|',
    ]
    for protocol in PROTOCOLS.values():
        count = len(protocol.keypoints)
        counted = 'all' if count == hand.NUM_KEYPOINTS else f'{count}: {list(protocol.keypoints)}'
        extras = ', '.join(extra.replace('_', ' ') for extra in protocol.extras)
        lines.append(
            f'| `{protocol.name}` | {protocol.crop_scale:g} {_UNITS[protocol.relative_to]} '
            f'| 0..{protocol.max_threshold:g} {_UNITS[protocol.normaliser]}, {protocol.steps} '
            f'steps, {protocol.rule} | {protocol.relative_to.replace("_", " ")} | {counted}, '
            f'{"annotated" if protocol.hidden else "visible only"} | {extras} |'
        )
    for protocol in PROTOCOLS.values():
        lines += ['', f'### {protocol.name}', '', protocol.description, '']
        lines += [f'- Data: {protocol.data}.', f'- Source: {protocol.source}.']
        lines += [f'- **{fact.confidence}**: {fact.text}.' for fact in protocol.facts]
        if not protocol.published:
            lines += ['', 'No published number is known.']
            continue
        lines += ['', '| published by others | metric | value | source | remark |']
        lines += ['|---|---|---|---|---|']
        lines += [
            f'| {row.system} | `{row.metric}` | {row.value:g} | {row.source} | {row.remark} |'
            for row in protocol.published
        ]
    return '\n'.join(lines) + '\n'
