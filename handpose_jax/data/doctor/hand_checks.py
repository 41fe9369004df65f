"""Checks of the hands: order of the keypoints, keypoints off the hand, left and right, bones."""

import numpy as np
from jaxtyping import Float, Int

from handpose_jax import hand
from handpose_jax.data.doctor import anatomy, anatomy_3d
from handpose_jax.data.doctor.findings import FEW, Finding, of_record, split_rows
from handpose_jax.data.doctor.survey import Survey

ORDER_GAIN = 9.0
"""Another order is reported if it makes a hand likelier by more than this, natural logarithm.

Measured (benchmarks/doctor.py): of 2,000 posed hands in the right order none reach it.
"""

PLACE_GAIN = 10.0
WRIST_GAIN = 20.0
"""The same for a keypoint being anywhere rather than where it is. Annotators agree least on the
wrist."""

SIDE = 0.2
"""How far on the wrong side of the palm (anatomy_3d.palm_side) fingers must be."""

PROJECTION = 2.0
"""Pixels between a keypoint and its projection that rounding does not explain."""

# A bone or hand is out of proportion beyond the usual range times this: annotators differ.
_STRETCH = 1.35
# Hands whose likelihoods are computed together: what fits into a processor's cache.
_PORTION = 1000

_BONES = np.array(hand.BONES)
_NAMES = hand.KEYPOINT_NAMES


def check_anatomy(records: Survey) -> list[Finding]:
    """Keypoints, fingers or whole hands in a wrong order; keypoints off the hand; no hands."""
    found: list[Finding] = []
    complete = np.asarray(records.annotated.all(axis=1))
    enough = np.asarray(anatomy.countable(records.annotated))
    for split, rows in split_rows(records):
        reordered = 0
        for partial in (False, True):
            some = rows[enough[rows] & (complete[rows] != partial)]
            if len(some):
                new, others = _examine_hands(records, some, anatomy.default(partial))
                found += new
                reordered += others
        found += _mixed_orders(split, reordered, len(rows))
    return found


def _examine_hands(
    records: Survey, rows: Int[np.ndarray, 'n'], model: anatomy.Anatomy
) -> tuple[list[Finding], int]:
    """Findings about some hands of a split, and how many of them have all keypoints reordered."""
    found: list[Finding] = []
    reordered = 0
    density = model.scaled_density(records.keypoints[rows], records.annotated[rows])
    suspects = rows[density < model.usual[2]]
    gains = np.concatenate(
        [
            model.gains(records.keypoints[some], records.annotated[some])
            for some in np.split(suspects, range(_PORTION, len(suspects), _PORTION))
        ]
    )
    of_order, order_gain = anatomy.best(gains, ~anatomy.IS_PLACE)
    of_place, place_gain = anatomy.best(gains - place_limits(), anatomy.IS_PLACE)
    for k, row in enumerate(suspects.tolist()):
        if order_gain[k] - ORDER_GAIN > max(0.0, place_gain[k]):
            hypothesis = anatomy.HYPOTHESES[of_order[k]]
            reordered += hypothesis.kind == 'order'
            found.append(_misordered(records, row, hypothesis, order_gain[k]))
        elif place_gain[k] > 0:
            hypothesis = anatomy.HYPOTHESES[of_place[k]]
            found.append(_misplaced(records, row, hypothesis, gains[k, of_place[k]]))
    told = {one.record for one in found}
    limit = _shape_limit(density, float(model.usual[0]))
    for k in np.flatnonzero(density < limit).tolist():
        if records.name[rows[k]] not in told:
            found.append(_shapeless(records, int(rows[k]), model, limit - density[k]))
    return found, reordered


def _misordered(records: Survey, row: int, hypothesis: anatomy.Hypothesis, gain: float) -> Finding:
    whole = hypothesis.kind == 'order'
    condition = f'the order is: {hypothesis.text}' if whole else hypothesis.text
    expected = 'wrist, thumb to little finger, each from base to tip'
    seen = f'more like a hand if {condition} (log likelihood ratio {gain:.1f})'
    return of_record(records, row, 'order of a record', 'error', expected, seen, gain)


def _misplaced(records: Survey, row: int, hypothesis: anatomy.Hypothesis, gain: float) -> Finding:
    expected = 'where the other keypoints leave room for it'
    seen = f'{hypothesis.text} is hardly part of this hand (log likelihood ratio {gain:.1f})'
    return of_record(records, row, 'keypoint off the hand', 'warning', expected, seen, gain)


def place_limits() -> Float[np.ndarray, 'q']:
    """PLACE_GAIN or WRIST_GAIN for each of anatomy.HYPOTHESES."""
    return np.array(
        [WRIST_GAIN if h.misplaced == hand.WRIST else PLACE_GAIN for h in anatomy.HYPOTHESES]
    )


def _shape_limit(densities: Float[np.ndarray, 'n'], usual: float) -> float:
    """Below this a hand is odd: among posed hands, and in its own set too."""
    if len(densities) < FEW:
        return usual
    middle = float(np.median(densities))
    # The lower half is taken: the upper one is cut off where a hand is as usual as can be.
    spread = 1.4826 * float(np.median(middle - densities[densities <= middle]))
    return min(usual, middle - 5 * spread)


def _shapeless(records: Survey, row: int, model: anatomy.Anatomy, score: float) -> Finding:
    one = slice(row, row + 1)
    keypoints, annotated = records.keypoints[one], records.annotated[one]
    parts = model.part_densities(keypoints, annotated)[0] - model.usual_parts
    part = list(anatomy.PARTS)[int(parts.argmin())]
    lengths = anatomy.bone_lengths(keypoints, annotated)[0]
    known = annotated[0, _BONES[:, 0]] & annotated[0, _BONES[:, 1]]
    low, high = model.usual_bones
    beyond = np.where(known, np.maximum(lengths / high, low / np.maximum(lengths, 1e-6)), 0)
    bone = int(beyond.argmax())
    a, b = (_NAMES[k] for k in hand.BONES[bone])
    expected = f'a hand; that bone is seen at {low[bone]:.2f} to {high[bone]:.2f} of its length'
    seen = f'unlike any hand, most of all the {part}; {a} to {b} is {lengths[bone]:.2f}'
    return of_record(records, row, 'shape', 'warning', expected, seen, score)


def _mixed_orders(split: str, reordered: int, count: int) -> list[Finding]:
    if reordered < max(3, 0.01 * count):
        return []
    expected = 'one order throughout; to mirror a hand, no keypoints are exchanged'
    seen = (
        f'{reordered / count:.0%} of the records have another order than the rest '
        '("order of a record"): mirrored with a permutation, or from another source?'
    )
    return [Finding('order', 'error', split, '', expected, seen)]


def check_three_dimensions(records: Survey) -> list[Finding]:
    """Left and right, bones, unit and camera, where there are 3D keypoints."""
    if records.keypoints_3d is None or records.camera is None:
        return []
    found: list[Finding] = []
    points = records.keypoints_3d
    usual = anatomy_3d.usual()
    unit = anatomy_3d.hand_units(points)
    side = anatomy_3d.palm_side(points) * np.where(records.is_left, -1, 1)
    ratios = anatomy_3d.bone_ratios(points)
    ratios = np.maximum(ratios / usual.ratios[1], usual.ratios[0] / np.maximum(ratios, 1e-6))
    errors = anatomy_3d.projection_errors(points, records.camera, records.keypoints)
    errors = np.where(records.annotated, errors, 0)
    for split, rows in split_rows(records):
        wrong = side[rows] < -SIDE
        expected, check = 'fingers that bend towards the palm', ('handedness', 'error')
        if len(rows) >= FEW and wrong.mean() > 0.5:
            seen = (
                f'in {wrong.mean():.0%} of the records the 3D keypoints are of the other hand '
                'than the flag says: flags exchanged, or 3D mirrored (a left-handed frame?)'
            )
            found.append(Finding(*check, split, '', expected, seen))
        else:
            for row in rows[wrong].tolist():
                flag, other = ('left', 'right') if records.is_left[row] else ('right', 'left')
                seen = f'flagged {flag}, but in 3D a {other} hand'
                found.append(of_record(records, row, *check, expected, seen, -side[row]))
        middle = float(np.median(unit[rows]))
        low, high = usual.units / _STRETCH, usual.units * _STRETCH
        if not low[0] <= middle <= high[1]:
            seen = f'a bone is {middle:.3g} long on average'
            expected = f'metres: {low[0]:.3f} to {high[1]:.3f}'
            found.append(Finding('unit', 'error', split, '', expected, seen))
    for row in np.flatnonzero((ratios > _STRETCH).any(axis=1)).tolist():
        bone = int(ratios[row].argmax())
        a, b = (_NAMES[k] for k in hand.BONES[bone])
        seen = f'{a} to {b} is out of proportion by a factor of {ratios[row, bone]:.2f}'
        expected = 'bones in proportion'
        found.append(
            of_record(records, row, 'bones in 3D', 'warning', expected, seen, ratios[row, bone])
        )
    for row in np.flatnonzero(errors.max(axis=1) > PROJECTION).tolist():
        keypoint = int(errors[row].argmax())
        seen = f'{_NAMES[keypoint]} is {errors[row, keypoint]:.1f} px from its projection'
        expected = f'camera and 3D keypoints that give the 2D ones to {PROJECTION} px'
        found.append(
            of_record(records, row, 'projection', 'error', expected, seen, errors[row, keypoint])
        )
    return found


def check_winding(records: Survey) -> list[Finding]:
    """Left and right in two dimensions: only whether left hands are seen like mirrored right ones.

    The palm of a right hand and the back of a left one look alike in their keypoints. So no record
    can be judged, and no set whose flags are all exchanged.
    """
    found: list[Finding] = []
    if records.keypoints_3d is not None:
        return found
    wrist, index, little = hand.WRIST, hand.FINGERS['index'][0], hand.FINGERS['little'][0]
    needed = np.flatnonzero(records.annotated[:, [wrist, index, little]].all(axis=1))
    a = records.keypoints[:, index] - records.keypoints[:, wrist]
    b = records.keypoints[:, little] - records.keypoints[:, wrist]
    clockwise = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] > 0
    for split, rows in split_rows(records):
        lefts = int(records.is_left[rows].sum())
        counts = f'{len(rows) - lefts:,} right and {lefts:,} left hands'
        rows = np.intersect1d(rows, needed)
        is_left = records.is_left[rows]
        left, right = clockwise[rows[is_left]], clockwise[rows[~is_left]]
        if min(len(left), len(right)) < 30:
            seen = f'{counts}; from 2D keypoints alone flags cannot be checked'
            found.append(Finding('left and right', 'note', split, '', '', seen))
            continue
        p, q = float(right.mean()), float(left.mean())
        seen = f'index to little finger runs clockwise in {p:.0%} of right, {q:.0%} of left hands'
        deviation = np.sqrt(0.25 / len(left) + 0.25 / len(right))
        as_mirrored, as_same = abs(p - (1 - q)) / deviation, abs(p - q) / deviation
        if as_mirrored > 4 and as_same < as_mirrored / 2:
            expected = 'mirrored views: the two add up to 100%'
            seen += '; are the left hands mirrored already, or the flags void?'
            found.append(Finding('left and right', 'warning', split, '', expected, seen))
        else:
            seen = f'{counts}; {seen}; single flags cannot be checked from 2D keypoints'
            found.append(Finding('left and right', 'note', split, '', '', seen))
    return found
