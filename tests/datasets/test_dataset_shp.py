"""SHP's converter, against made-up hands whose truth is known."""

import re
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from made import convert, examples, load

from handpose_jax import hand
from handpose_jax.data.quarantine import BadRecord

# As the README of the data set lists the 21 joints.
SHP_JOINTS = (
    'palm',
    *(
        f'{finger}_{joint}'
        for finger in ('little', 'ring', 'middle', 'index', 'thumb')
        for joint in ('mcp', 'pip', 'dip', 'tip')
    ),
)
# What SHP calls the four joints of the thumb.
THUMB = {'thumb_cmc': 'thumb_mcp', 'thumb_mcp': 'thumb_pip', 'thumb_ip': 'thumb_dip'}

# As the README of the data set has them.
BB_MATRIX = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
SK_MATRIX = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
BASELINE = 120.054
ROTATION = np.array([0.00531, -0.01196, 0.00301])
TRANSLATION = np.array([-24.0381, -0.4563, -1.2326])
# One of each of the others.
FRAMES = {'B1Random': 2, 'B2Counting': 3, 'B3Random': 2, 'B4Random': 2}
CAMERAS = ('BB_left', 'BB_right', 'SK')


builder, dummy = load('shp')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a made-up SHP, and what is really on its pictures."""
    folder = tmp_path_factory.mktemp('shp')
    return folder, dummy.write(folder, seed=1, frames=FRAMES)


@pytest.fixture
def copy(made, tmp_path):
    """A folder of one's own to damage; its images are links."""
    folder = tmp_path / 'copy'
    shutil.copytree(made[0], folder, copy_function=link)
    return folder


def link(source, target):
    # Labels are small, and get damaged in place.
    return (
        shutil.copy(source, target) if target.endswith('.mat') else Path(target).symlink_to(source)
    )


@pytest.fixture(scope='module')
def splits(made):
    return builder.splits(made[0], cameras=CAMERAS, test_cameras=CAMERAS)


def labels(folder, sequence, camera):
    """One hand in each row, in our order, by name; palm centres in place of wrists."""
    array = scipy.io.loadmat(folder / 'labels' / f'{sequence}_{camera[:2]}.mat')['handPara']
    names = ['palm', *(THUMB.get(name, name) for name in hand.KEYPOINT_NAMES[1:])]
    return np.stack([array[:, SHP_JOINTS.index(name), :].T for name in names], axis=1)


def project(points, camera):
    """By OpenCV: the pose of a camera maps labelled points into its frame."""
    if camera == 'SK':
        inverse, _ = cv2.Rodrigues(-ROTATION)
        pose = -ROTATION, -inverse @ TRANSLATION, SK_MATRIX
    else:
        offset = -BASELINE if camera == 'BB_right' else 0.0
        pose = np.zeros(3), np.array([offset, 0.0, 0.0]), BB_MATRIX
    projected, _ = cv2.projectPoints(points[:, None], *pose, None)
    return projected[:, 0]


def test_every_keypoint_is_where_opencv_sees_the_labels_of_every_camera(made, splits):
    folder, truth = made
    assert {name: split.records for name, split in splits.items()} == {'train': 42, 'test': 9}
    for example in [*examples(splits['train']), *examples(splits['test'])]:
        sequence, camera, frame = re.fullmatch(r'(\w+)/(\w+)_(\d+)', example['image_id']).groups()
        projected = project(labels(folder, sequence, camera)[int(frame)], camera)
        np.testing.assert_allclose(example['keypoints'][1:], projected[1:], rtol=0, atol=1e-3)
        # The dummy's palm centres are such that the extrapolation finds the wrist.
        points = truth[example['image_id']].keypoints_3d
        np.testing.assert_allclose(example['keypoints_3d'], points, rtol=0, atol=1e-6)
        matrix = SK_MATRIX if camera == 'SK' else BB_MATRIX
        np.testing.assert_allclose(example['camera'], matrix, rtol=1e-6)
        box = [*projected[1:].min(axis=0), *projected[1:].max(axis=0)]
        np.testing.assert_allclose(example['box'], box, rtol=0, atol=1e-3)


def test_the_hands_tell_the_usual_mistakes_apart(made):
    """The test above would notice: every wrong turn moves keypoints by pixels."""
    folder, truth = made
    hands = labels(folder, 'B1Counting', 'SK')[0][1:]
    right = truth['B1Counting/SK_0'].keypoints[1:]
    rotation, _ = cv2.Rodrigues(ROTATION)
    wrong = {
        'no rotation': (np.zeros(3), -TRANSLATION),
        'rotation instead of its inverse': (ROTATION, -rotation @ TRANSLATION),
        'translation not rotated': (-ROTATION, -TRANSLATION),
        'no change of frame': (np.zeros(3), np.zeros(3)),
        'as if from colour to depth': (ROTATION, TRANSLATION),
    }
    for name, pose in wrong.items():
        projected, _ = cv2.projectPoints(hands[:, None], *pose, SK_MATRIX, None)
        distance = np.linalg.norm(projected[:, 0] - right, axis=1)
        assert distance.max() > 0.05, name
    left, other = (truth[f'B1Counting/{camera}_0'].keypoints for camera in CAMERAS[:2])
    assert (left[:, 0] - other[:, 0]).min() > 50


def test_the_wrist_is_extrapolated_on_request(made):
    folder, _ = made
    found = builder.splits(folder, cameras=CAMERAS, wrist='extrapolated')['train']
    for index, camera in enumerate(CAMERAS):
        example = found.make(index)
        points = labels(folder, 'B2Counting', camera)[0]
        palm, ring = points[0], points[hand.KEYPOINT_NAMES.index('ring_mcp')]
        points[0] = ring + 2 * (palm - ring)
        np.testing.assert_allclose(example['keypoints'], project(points, camera), atol=1e-3)
        assert example['annotated'].all()


def test_a_masked_wrist_has_finite_numbers(splits):
    example = splits['train'].make(0)
    x0, y0, x1, y1 = example['box']
    x, y = example['keypoints'][0]
    assert x0 <= x <= x1
    assert y0 <= y <= y1
    assert np.isfinite(example['keypoints_3d']).all()


def test_the_dummy_has_what_the_archive_has(made):
    folder, truth = made
    assert {path.name for path in folder.iterdir()} == {'images', 'labels'}
    sequences = [f'B{n}{kind}' for n in range(1, 7) for kind in ('Counting', 'Random')]
    assert sorted(path.name for path in (folder / 'images').iterdir()) == sequences
    assert sorted(path.name for path in (folder / 'labels').iterdir()) == [
        f'{sequence}_{device}.mat' for sequence in sequences for device in ('BB', 'SK')
    ]
    prefixes = ('BB_left', 'BB_right', 'SK_color', 'SK_depth')
    assert {path.name for path in (folder / 'images/B3Random').iterdir()} == {
        f'{prefix}_{frame}.png' for prefix in prefixes for frame in range(2)
    }
    for device in ('BB', 'SK'):
        ((name, shape, kind),) = scipy.io.whosmat(folder / f'labels/B3Random_{device}.mat')
        assert (name, shape, kind) == ('handPara', (3, 21, 2), 'double')
    for prefix in prefixes:
        picture = cv2.imread(str(folder / f'images/B3Random/{prefix}_1.png'), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (480, 640, 3)
    blue, green, red = picture[0, 0].tolist()
    distance = 1000 * truth['B3Random/SK_1'].keypoints_3d[:, 2].mean()
    assert blue == 0
    assert red + 256 * green == pytest.approx(distance, abs=1)


def test_the_hands_are_left_ones(made):
    """Seen from its back with the fingers up, the little finger of a left hand is on the left."""
    folder, _ = made
    told = 0
    for sequence in dummy.SEQUENCES:
        for points in labels(folder, sequence, 'SK'):
            place = {name: points[index] for index, name in enumerate(hand.KEYPOINT_NAMES)}
            along = place['middle_mcp'] - points[0]
            across = place['little_mcp'] - place['index_mcp']
            # Fingers bend towards the palm; straight ones tell nothing.
            bend = place['middle_tip'] + place['ring_tip'] - 2 * place['middle_mcp']
            normal = np.cross(along, across)
            cosine = normal @ bend / np.linalg.norm(normal) / np.linalg.norm(bend)
            if abs(cosine) > 0.3:
                told += 1
                # x right, y down, z forward: along is -y, across is -x, and their product -z,
                # towards us, while the fingers bend away from us.
                assert cosine < 0
    assert told > 4


@pytest.mark.parametrize(
    ('cameras', 'test_cameras', 'counts'),
    [
        (('BB_left',), ('BB_left',), (15_000, 3_000)),
        (('BB_left', 'BB_right'), ('BB_left',), (30_000, 3_000)),
        (('SK', 'SK'), ('BB_left', 'BB_right'), (15_000, 6_000)),
    ],
)
def test_the_splits_are_named_and_counted_as_published(made, cameras, test_cameras, counts):
    found = builder.splits(made[0], cameras=cameras, test_cameras=test_cameras)
    assert (found['train'].published, found['test'].published) == counts
    assert found['train'].records == 14 * len(set(cameras))
    assert found['test'].records == 3 * len(set(test_cameras))
    assert found['test'].evaluation
    assert not found['train'].evaluation


def test_the_options_reach_the_splits(made, tmp_path):
    found, _ = convert(builder, made[0], tmp_path / 'D')
    assert {name: split.records for name, split in found.items()} == {'train': 28, 'test': 3}
    chosen = ['--cameras', 'SK', '--test_cameras', 'SK', '--wrist', 'extrapolated']
    found, told = convert(builder, made[0], tmp_path / 'D', *chosen)
    assert found['train'].records == 14
    assert found['test'].make(0)['annotated'].all()
    settings = {'cameras': ['SK'], 'test_cameras': ['SK'], 'wrist': 'extrapolated'}
    assert told['settings'] == settings
    assert told['with_3d']


def edit(folder, sequence, device, change):
    path = folder / 'labels' / f'{sequence}_{device}.mat'
    array = scipy.io.loadmat(path)['handPara']
    scipy.io.savemat(path, {'handPara': change(array)})
    return path


def put(array, index, value):
    array[index] = value
    return array


def test_a_missing_or_other_image_names_itself(copy):
    image = copy / 'images/B2Counting/BB_right_1.png'
    image.unlink()
    other = copy / 'images/B2Counting/BB_left_1.png'
    other.unlink()
    cv2.imwrite(str(other), np.zeros((240, 320, 3), np.uint8))
    train = builder.splits(copy)['train']
    train.make(0)
    with pytest.raises(BadRecord, match=r'B2Counting/BB_right_1.*BB_right_1\.png.*No such file'):
        train.make(3)
    with pytest.raises(BadRecord, match=r'B2Counting/BB_left_1.*640 x 480.*320 x 240'):
        train.make(2)


def test_a_hand_behind_the_camera_is_a_bad_record(copy):
    edit(copy, 'B2Counting', 'BB', lambda array: put(array, (2, 7, 0), -500.0))
    train = builder.splits(copy)['train']
    with pytest.raises(BadRecord, match=r"B2Counting_BB\.mat.*'handPara'.*z > 0.*for joint 7"):
        train.make(0)
    train.make(2)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda array: put(array, (0, 3, 1), np.nan), r'finite numbers, got 1 .* at \(1, 4, 2\)'),
        (lambda array: array[:, :20], 'expected the shape 3 x 21 x any, got 3 x 20 x 2'),
        (lambda array: array.transpose(1, 0, 2), 'expected the shape 3 x 21 x any, got 21 x 3'),
        (lambda array: {'x': 1.0}, 'got one of class struct'),
    ],
)
def test_labels_that_are_bad_as_a_whole_stop_everything(copy, change, message):
    path = edit(copy, 'B4Random', 'BB', change)
    with pytest.raises(ValueError, match=message) as caught:
        builder.splits(copy)
    assert str(caught.value).startswith(f"{path}: variable 'handPara': ")


def test_cameras_of_other_lengths_are_refused(copy):
    edit(copy, 'B1Random', 'SK', lambda array: array[:, :, :1])
    builder.splits(copy)
    with pytest.raises(ValueError, match=r'B1Random: .* 2 in .*B1Random_BB\.mat, 1 in .*_SK\.mat'):
        builder.splits(copy, test_cameras=CAMERAS)


def test_what_is_missing_is_named(copy, tmp_path):
    shutil.rmtree(copy / 'images/B5Counting')
    with pytest.raises(ValueError, match=r'B5Counting.*github'):
        builder.splits(copy)
    (copy / 'labels/B2Random_SK.mat').unlink()
    with pytest.raises(ValueError, match=r'B2Random_SK\.mat: no such file'):
        builder.splits(copy, cameras=['SK'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'labels.*github'):
        builder.splits(tmp_path / 'empty')


def test_other_ways_of_laying_it_out_are_found(made, copy, splits):
    """Sequences beside the labels, and as they come: each in an archive."""
    for path in sorted((copy / 'images').iterdir())[2:]:
        path.rename(copy / path.name)
    for path in sorted((copy / 'images').iterdir()):
        with zipfile.ZipFile(copy / 'images' / f'{path.name}.zip', 'w') as archive:
            for image in path.iterdir():
                archive.write(image, f'{path.name}/{image.name}')
        shutil.rmtree(path)
    with zipfile.ZipFile(copy / 'labels.zip', 'w') as archive:
        for path in (copy / 'labels').iterdir():
            archive.write(path, path.name)
    shutil.rmtree(copy / 'labels')
    found = builder.splits(copy, cameras=CAMERAS, test_cameras=CAMERAS)
    for split in found:
        assert found[split].records == splits[split].records
        example, wanted = found[split].make(7), splits[split].make(7)
        assert example['image'] == wanted['image']
        np.testing.assert_array_equal(example['keypoints'], wanted['keypoints'])
