"""Checks of the pictures: damaged, empty, or the same one twice."""

from collections import Counter

import numpy as np

from handpose_jax.data.doctor import duplicates
from handpose_jax.data.doctor.findings import Finding, of_record
from handpose_jax.data.doctor.survey import Survey
from handpose_jax.process import extras


def check_images(records: Survey) -> list[Finding]:
    """Images that cannot be decoded, or show nothing."""
    found = []
    for row, damage in enumerate(records.damage):
        if damage:
            found.append(of_record(records, row, 'image', 'error', 'an image that decodes', damage))
        elif records.contrast[row] == 0:
            seen = 'every pixel has the same colour'
            found.append(of_record(records, row, 'image', 'error', 'a picture', seen))
    return found


def check_duplicates(records: Survey) -> list[Finding]:
    """The same picture in several splits, the same record twice, nearly the same picture."""
    found: list[Finding] = []
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(records.digest):
        if digest:
            rows_of.setdefault(digest, []).append(row)
    leaked: set[bytes] = set()
    for digest, rows in rows_of.items():
        splits = Counter(records.split[row] for row in rows)
        if len(splits) > 1:
            leaked.add(digest)
            last = rows[-1]
            others = [r for r in rows if records.split[r] != records.split[last]]
            seen = f'the same image as {records.split[others[0]]} {records.name[others[0]]}'
            found.append(of_record(records, last, 'leak', 'error', 'an image in one split', seen))
        found += _repeated(records, rows)
    return found + _near_duplicates(records, rows_of, leaked)


def _repeated(records: Survey, rows: list[int]) -> list[Finding]:
    """Records of one image with the same keypoints; other keypoints are another hand's."""
    found = []
    for i, row in enumerate(rows):
        for other in rows[:i]:
            same = records.split[row] == records.split[other]
            if same and _one_place(records, row, other):
                flags = records.is_left[row] == records.is_left[other]
                seen = f'the same image and keypoints as {records.name[other]}'
                seen += '' if flags else ', but flagged as the other hand'
                expected = 'a hand once'
                severity = 'warning' if flags else 'error'
                check = 'repeated record' if flags else 'contradiction'
                found.append(of_record(records, row, check, severity, expected, seen))
                break
    return found


def _one_place(records: Survey, row: int, other: int) -> bool:
    if records.no_hand[row] != records.no_hand[other]:
        return False
    # Where there are no hands, the regions tell records of one image apart.
    places = records.box if records.no_hand[row] else records.keypoints
    return bool(np.abs(places[row] - places[other]).max() < 0.5)


def _near_duplicates(
    records: Survey, rows_of: dict[bytes, list[int]], leaked: set[bytes]
) -> list[Finding]:
    if records.bits is None or records.thumbnails is None:
        seen = f'not looked for: needs imagehash, {extras.how_to_install("imagehash")}'
        return [Finding('near duplicates', 'note', '', '', '', seen)]
    found: list[Finding] = []
    # One record of each image.
    firsts = np.array([rows[0] for digest, rows in rows_of.items() if digest not in leaked], int)
    splits = {
        split: firsts[[records.split[row] == split for row in firsts]]
        for split in dict.fromkeys(records.split)
    }
    looks = {
        split: (records.bits[rows], duplicates.normalise(records.thumbnails[rows]))
        for split, rows in splits.items()
    }
    names = list(splits)
    for i, split in enumerate(names):
        for other in names[:i]:
            partner, alike = duplicates.nearest(*looks[split], *looks[other])
            for k in np.flatnonzero(partner >= 0).tolist():
                twin = int(splits[other][partner[k]])
                seen = f'nearly the image of {other} {records.name[twin]} (r = {alike[k]:.3f})'
                row = int(splits[split][k])
                expected = 'images of other splits are of other scenes'
                found.append(
                    of_record(records, row, 'near leak', 'warning', expected, seen, alike[k])
                )
        partner, _ = duplicates.nearest(*looks[split], *looks[split], skip_same=True)
        twins = int((partner >= 0).sum())
        if twins:
            seen = f'{twins:,} of {len(partner):,} images nearly show another image of the split'
            found.append(Finding('near duplicates', 'note', split, '', '', seen))
    return found
