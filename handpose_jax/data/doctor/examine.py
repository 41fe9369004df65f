"""Runs all checks on a data set: examine(survey.take({'train': source, ...}))."""

import dataclasses
from collections.abc import Callable

import numpy as np
import threadpoolctl

from handpose_jax.data.doctor import anatomy, hand_checks, image_checks, record_checks
from handpose_jax.data.doctor.findings import FEW, Finding, split_rows
from handpose_jax.data.doctor.survey import Survey

# Records of a split that its order is judged by.
_SAMPLED = 400

CHECKS: dict[str, Callable[[Survey], list[Finding]]] = {
    'images': image_checks.check_images,
    'duplicates': image_checks.check_duplicates,
    'visibility': record_checks.check_visibility,
    'places': record_checks.check_places,
    'anatomy': hand_checks.check_anatomy,
    'three dimensions': hand_checks.check_three_dimensions,
    'winding': hand_checks.check_winding,
}

_OF_PICTURES = ('images', 'duplicates')
"""Checks that see the pictures without a hand too."""


def examine(records: Survey) -> list[Finding]:
    """Runs all checks.

    Args:
        records: of all splits that are to be compared with each other.

    Returns:
        Findings in no order; see findings.to_text and to_json.
    """
    # BLAS threads wait for each other longer than these small matrices take.
    with threadpoolctl.threadpool_limits(1):
        found = _without_hands(records)
        hands, wrong = _put_in_order(records.select(~records.no_hand))
        found += wrong
        for name, check in CHECKS.items():
            found += check(records if name in _OF_PICTURES else hands)
    return found


def _without_hands(records: Survey) -> list[Finding]:
    found = []
    for split, rows in split_rows(records):
        count = int(records.no_hand[rows].sum())
        if count:
            seen = f'{count:,} of {len(rows):,} records say that their picture shows no hand'
            found.append(Finding('no hand', 'note', split, '', '', seen))
    return found


def _put_in_order(records: Survey) -> tuple[Survey, list[Finding]]:
    """Finds splits whose keypoints are all in another order, and reads them in that one."""
    found: list[Finding] = []
    keypoints, annotated, visible = (
        values.copy() for values in (records.keypoints, records.annotated, records.visible)
    )
    deep = None if records.keypoints_3d is None else records.keypoints_3d.copy()
    for split, rows in split_rows(records):
        rows = rows[anatomy.countable(annotated[rows])]
        if len(rows) < FEW:
            continue
        some = np.random.default_rng(0).permutation(rows)[:_SAMPLED]
        model = anatomy.default(partial=not annotated[some].all())
        gains = model.gains(keypoints[some], annotated[some], anatomy.IS_ORDER)
        shares = np.where(anatomy.IS_ORDER, (gains > 0).mean(axis=0), 0)
        worst = int(np.where(shares > 0.5, np.median(gains, axis=0), -np.inf).argmax())
        if shares[worst] <= 0.5:
            continue
        hypothesis = anatomy.HYPOTHESES[worst]
        expected = (
            'the order of handpose_jax/hand.py; out[i] = source[p[i]], p = '
            f'{list(hypothesis.order)} would make it so'
        )
        seen = (
            f'{shares[worst]:.0%} of the records look more like hands in the order: '
            f'{hypothesis.text}; the other checks assume it'
        )
        score = float(np.median(gains[:, worst]))
        found.append(Finding('order', 'error', split, '', expected, seen, score))
        mine = np.array([name == split for name in records.split])
        order = np.array(hypothesis.order)
        for values in (keypoints, annotated, visible, *([] if deep is None else [deep])):
            values[mine] = values[mine][:, order]
    changed = dataclasses.replace(
        records, keypoints=keypoints, annotated=annotated, visible=visible, keypoints_3d=deep
    )
    return changed, found
