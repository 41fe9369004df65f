"""Dexter+Object's converter, against made-up hands whose truth is known."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from made import convert, examples, load

from handpose_jax import hand
from handpose_jax.data.quarantine import BadRecord

# As the calibration of the data set has them.
COLOUR = np.array([[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])
COLOUR_FROM_DEPTH = np.array(
    [
        [0.9999, 0.0034, 0.0161, 19.0473],
        [-0.0033, 1.0, -0.0079, -1.8514],
        [-0.0162, 0.0079, 0.9998, -4.7501],
    ]
)
TIPS = [hand.KEYPOINT_NAMES.index(f'{finger}_tip') for finger in hand.FINGERS]


builder, dummy = load('dexter_object')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a made-up Dexter+Object, and what is really on its pictures."""
    folder = tmp_path_factory.mktemp('dexter')
    truth = dummy.write(folder, seed=1, frames={'Grasp2': 5})
    return folder / dummy.FOLDER / 'data', truth


@pytest.fixture
def copy(made, tmp_path):
    """A folder of one's own to damage; its pictures are links."""

    def link(source, target):
        if target.endswith('.txt'):
            return shutil.copy(source, target)
        return Path(target).symlink_to(source)

    return Path(shutil.copytree(made[0], tmp_path / 'data', copy_function=link))


def make(folder, **options):
    return examples(builder.splits(folder, **options)['test'])


def used(truth):
    """Names of the pictures that have a fingertip."""
    return [name for name, frame in truth.items() if frame.annotated.any()]


def test_only_fingertips_are_annotated(made):
    found = make(made[0])
    assert len(found) == len(used(made[1])) == 14
    for example in found:
        seen = example['annotated']
        assert np.flatnonzero(seen).tolist() == [k for k in TIPS if seen[k]]


def test_the_first_line_is_projected_as_published(made):
    """From the text itself: x to the left, y up, millimetres, into the colour camera, by hand."""
    folder, _ = made
    line = (folder / 'Rigid/annotations/Rigid3D.txt').read_text().split('\n')[0]
    example = make(folder)[7 + 2 - 1]
    assert example['image_id'] == 'Rigid/Color_0001'
    for keypoint, entry in zip(TIPS, line.split(';')[:5], strict=True):
        x, y, z = map(float, entry.split(','))
        point = COLOUR_FROM_DEPTH @ [-x, -y, z, 1]
        u = COLOUR[0, 0] * point[0] / point[2] + COLOUR[0, 2]
        v = COLOUR[1, 1] * point[1] / point[2] + COLOUR[1, 2]
        np.testing.assert_allclose(example['keypoints'][keypoint], [u, v], rtol=0, atol=1e-3)


def test_the_dummy_has_what_the_archive_has(made):
    folder, truth = made
    assert sorted(path.name for path in folder.iterdir()) == sorted(builder.SEQUENCES)
    place = folder / 'Grasp2'
    assert {str(path.relative_to(place)) for path in place.rglob('*.*')} == {
        'annotations/Grasp22D.txt',
        'annotations/Grasp23D.txt',
        *(f'color/Color_{number:04d}.bmp' for number in range(1, 6)),
        *(f'depth/Depth_{number:04d}.png' for number in range(1, 6)),
    }
    for dimensions in (2, 3):
        lines = (place / f'annotations/Grasp2{dimensions}D.txt').read_text().splitlines()
        assert len(lines) == 5
        # Five fingertips and three corners of the box.
        entry = ', '.join([r'-?\d+\.\d+'] * dimensions)
        assert all(re.fullmatch(rf'({entry}; ){{8}}', line) for line in lines)
    tips = [frame.annotated.sum() for name, frame in truth.items() if name.startswith('Grasp2')]
    assert tips == [5, 4, 1, 0, 5]
    assert lines[3].count('32001') == 5
    picture = cv2.imread(str(place / 'color/Color_0001.bmp'))
    assert picture.shape == (480, 640, 3)
    depth = cv2.imread(str(place / 'depth/Depth_0001.png'), cv2.IMREAD_UNCHANGED)
    assert depth.shape == (240, 320)
    assert depth.dtype == np.uint16


def test_boxes_hold_the_fingertips_and_are_no_smaller_than_a_hand(made):
    for example in make(made[0]):
        x0, y0, x1, y1 = example['box']
        tips = example['keypoints'][example['annotated']]
        assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-3)
        middle = (tips.min(axis=0) + tips.max(axis=0)) / 2
        np.testing.assert_allclose([(x0 + x1) / 2, (y0 + y1) / 2], middle, atol=1e-3)
        distance = np.median(example['keypoints_3d'][example['annotated'], 2])
        smallest = 0.15 * (COLOUR[0, 0] + COLOUR[1, 1]) / 2 / distance
        side = max(smallest, np.ptp(tips, axis=0).max())
        assert x1 - x0 == pytest.approx(side, abs=1e-3)
        assert example['norm_size'] == pytest.approx(side, abs=1e-3)


def write_boxes(folder, truth, header='img_name,x,y,w,h'):
    path = folder / 'boxes.csv'
    rows = [
        f'{name.replace("/", "/color/")}.bmp,{10.5 + int(name[-4:])},20,100,50.25'
        for name in used(truth)
    ]
    path.write_text('\n'.join([header, *rows]) + '\n')
    return path


def test_boxes_may_be_given(made, tmp_path):
    folder, truth = made
    for example in make(folder, boxes=str(write_boxes(tmp_path, truth))):
        number = int(example['image_id'][-4:])
        np.testing.assert_allclose(example['box'], [10.5 + number, 20, 110.5 + number, 70.25])
        assert example['norm_size'] == 100


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('11.5,20,100', '11.5,wide,100', r"line 2, field 'y': expected a number, got 'wide'"),
        ('Grasp1/color/Color_0002', 'Grasp1/color/Color_0001', "field 'img_name'.*once"),
        (',h', ',height', r"line 2, field 'h'"),
        ('Rigid/color/Color_0001', 'Rigid/color/Color_9999', 'a box for each annotated picture'),
    ],
)
def test_bad_boxes_are_refused(made, tmp_path, old, new, message):
    path = write_boxes(tmp_path, made[1])
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        make(made[0], boxes=str(path))
    assert str(path) in str(caught.value)


def test_boxes_that_are_missing_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r'--boxes .*missing\.csv: cannot be read'):
        builder.splits(made[0], boxes=str(tmp_path / 'missing.csv'))


def test_the_report_says_what_was_left_out_and_the_offset(made):
    report = builder.read(str(made[0])).report.splitlines()
    assert len(report) == 6
    assert 'Grasp2: 4 pictures used of 5, for which there are 5 lines; 15 fingertips' in report[1]
    for line in report:
        offset = re.search(r'project to \(([-+.\d]+), ([-+.\d]+)\) px', line)
        assert [abs(float(value)) for value in offset.groups()] == [0, 0]
        assert line.endswith('0 to more than 20 px away')


def edit(folder, sequence, dimensions, change):
    path = folder / sequence / 'annotations' / f'{sequence}{dimensions}D.txt'
    path.write_text(change(path.read_text()))
    return path


def move_left(text):
    """2D annotations 7 pixels further left."""
    points = [[entry.split(', ') for entry in line.split('; ')[:8]] for line in text.splitlines()]
    return '\n'.join('; '.join(f'{float(x) - 7}, {y}' for x, y in line) for line in points)


def test_a_systematic_offset_is_reported(copy):
    edit(copy, 'Pinch', 2, move_left)
    report = builder.read(str(copy)).report.replace('-0.0', '+0.0')
    assert re.search(r'Pinch: .* project to \(\+7\.0, \+0\.0\) px', report)
    assert report.count('project to (+0.0, +0.0) px') == 5


def test_another_frame_of_the_3d_annotations_is_noticed(copy):
    """Such as x to the right and y down, as other files have them."""
    edit(
        copy,
        'Rotate',
        3,
        lambda text: re.sub(
            r'(-?)([\d.]+), (-?)([\d.]+), ([\d.]+);',
            lambda m: f'{"" if m[1] else "-"}{m[2]}, {"" if m[3] else "-"}{m[4]}, {m[5]};',
            text,
        ),
    )
    with pytest.raises(ValueError, match=r'Rotate2D\.txt: expected fingertips where.*px away'):
        builder.splits(copy)


def test_without_annotations_in_2d_it_says_so(copy):
    (copy / 'Rigid/annotations/Rigid2D.txt').unlink()
    assert 'not compared with Rigid2D.txt' in builder.read(str(copy)).report


FAULTS = {
    'a number that is none': (
        lambda text: re.sub(r'-?\d+\.\d+', 'nan', text, count=1),
        r"Rigid3D\.txt: record line 1, field 'thumb tip': expected 3 numbers.*nan",
    ),
    'a number too few': (
        lambda text: re.sub(r'; -?\d+\.\d+,', '; ', text, count=1),
        r"line 1, field 'index tip': expected 3 numbers",
    ),
    'a finger too few': (
        lambda text: '\n'.join([text.split('\n')[0], '1, 2, 3; 4, 5, 6;']),
        r"line 2, field 'points': expected 5 fingertips or more.*got 3 in '1, 2, 3; 4, 5, 6;'",
    ),
    'an empty line': (lambda text: '\n' + text, "line 1, field 'points'"),
    'no text': (lambda text: '\N{SNOWMAN}' + text, 'expected text, got other bytes'),
    'lines that 2D has not': (
        lambda text: text + text,
        'expected 4 lines, as there are in 3D, got 2',
    ),
    'nothing': (lambda text: '', "line 1, field 'points'"),
}


@pytest.mark.parametrize('name', FAULTS)
def test_damaged_annotations_are_refused_by_line_and_finger(copy, name):
    change, message = FAULTS[name]
    edit(copy, 'Rigid', 3, change)
    with pytest.raises(ValueError, match=message):
        builder.splits(copy)


def test_a_fingertip_behind_the_camera_is_a_bad_record(copy):
    edit(copy, 'Grasp1', 3, lambda text: re.sub(r', \d+\.\d+;', ', 1.5;', text, count=1))
    with pytest.raises(BadRecord, match=r"Grasp13D\.txt: record line 1, field 'z'"):
        make(copy)


def test_missing_files_are_named(copy):
    (copy / 'Occlusion/color/Color_0001.bmp').unlink()
    with pytest.raises(BadRecord, match=r'Occlusion/Color_0001.*No such file'):
        make(copy)
    builder.read.cache_clear()
    (copy / 'Occlusion/annotations/Occlusion3D.txt').unlink()
    with pytest.raises(ValueError, match=r'Occlusion3D\.txt: cannot be read.*handtracker'):
        builder.splits(copy)
    shutil.rmtree(copy / 'Grasp1/color')
    with pytest.raises(ValueError, match=r'Grasp1/color: expected pictures, Color_0001\.bmp'):
        builder.splits(copy)


def test_lines_without_a_picture_are_left_out_and_counted(copy):
    (copy / 'Occlusion/color/Color_0002.bmp').unlink()
    found = builder.read(str(copy))
    assert [frame.number for frame in found.frames if frame.sequence == 'Occlusion'] == [1]
    assert 'Occlusion: 1 pictures used of 1, for which there are 2 lines' in found.report


@pytest.mark.parametrize('given', ['..', '../..', '../zip'])
def test_the_download_is_found_and_the_offset_printed(made, tmp_path, capsys, given):
    folder = made[0] / given
    if given == '../zip':
        folder = tmp_path
        shutil.make_archive(str(tmp_path / 'dexter+object'), 'zip', made[0].parent.parent)
    splits, told = convert(builder, folder, tmp_path / 'D')
    assert splits['test'].records == 14
    assert told['with_3d']
    assert capsys.readouterr().out.count('px of where they were marked') == 6
