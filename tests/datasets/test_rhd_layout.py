"""RHD: what is written is read back, every keypoint lands by its name, and damage is named."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import DATASETS
from PIL import Image
from prepare import load_builder

from handpose_jax import hand
from handpose_jax.synthetic import generate
from handpose_jax.synthetic.scene import labels, options, views

rhd_layout = load_builder(DATASETS / 'rhd' / 'rhd_layout.py')

SIZE = 40

# As the description that comes with the data set lists them: wrist, then each finger from its tip
# to the palm; left hand, then right hand. Written out, so that the code's table is not its own
# witness.
RHD_ROWS = (
    *('wrist', 'thumb_tip', 'thumb_ip', 'thumb_mcp', 'thumb_cmc'),
    *('index_tip', 'index_dip', 'index_pip', 'index_mcp'),
    *('middle_tip', 'middle_dip', 'middle_pip', 'middle_mcp'),
    *('ring_tip', 'ring_dip', 'ring_pip', 'ring_mcp'),
    *('little_tip', 'little_dip', 'little_pip', 'little_mcp'),
)

FINGERS_IN_ORDER = ('wrist', 'thumb', 'index', 'middle', 'ring', 'little')
PARTS_IN_ORDER = ('wrist', 'cmc', 'mcp', 'pip', 'ip', 'dip', 'tip')


def place(name: str, side: str) -> tuple[float, float]:
    """A pixel that spells a keypoint's name: x its finger, and its hand, y its part."""
    finger, _, part = name.partition('_')
    return (
        2.0 + FINGERS_IN_ORDER.index(finger) + (20 if side == 'right' else 0),
        3.0 + PARTS_IN_ORDER.index(part or 'wrist'),
    )


def rendered(seed: int, is_left: bool) -> generate.RenderedHand:
    """A hand as the renderer gives it: noise for a picture, and a true camera."""
    rng = np.random.default_rng(seed)
    camera = np.array([[61.23456789, 0, 18.7], [0, 62.3, 21.1 + seed / 7], [0, 0, 1]])
    points = rng.uniform([-0.2, -0.2, 0.4], [0.2, 0.2, 0.9], (21, 3)).astype(np.float32)
    seen = points.astype(np.float64) @ camera.T
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[5:20, 8:22] = labels.HAND
    mask[20:, 8:16] = labels.FOREARM
    return generate.RenderedHand(
        image=rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
        keypoints=(seen[:, :2] / seen[:, 2:]).astype(np.float32),
        visible=rng.random(21) < 0.7,
        keypoints_3d=points,
        is_left=is_left,
        mask=mask,
        camera=camera,
    )


def named_record(**changes: Any) -> dict[Any, Any]:
    """A record of both hands, laid out by names as the data set's description has it."""
    uv_vis, xyz = np.zeros((42, 3)), np.zeros((42, 3))
    for offset, side in ((0, 'left'), (21, 'right')):
        for row, name in enumerate(RHD_ROWS):
            x, y = place(name, side)
            uv_vis[offset + row] = x, y, 1
            xyz[offset + row] = x / 100, y / 100, 0.5
    record = {
        'uv_vis': uv_vis.astype(np.float32),
        'xyz': xyz.astype(np.float32),
        'K': np.array([[50, 0, 20], [0, 50, 20], [0, 0, 1]], np.float32),
    }
    return {**record, **changes}


def write_folder(
    folder: Path, content: Any, *, mask: np.ndarray | None = None, numbers: tuple[int, ...] = (0,)
) -> Path:
    """A split 'training' of any content: the bytes of a pickle, or what to pickle."""
    split = folder / 'training'
    for name in ('color', 'mask'):
        (split / name).mkdir(parents=True, exist_ok=True)
    if mask is None:
        mask = half_mask(left=10, right=20)
    for number in numbers:
        Image.new('RGB', (SIZE, SIZE)).save(split / 'color' / f'{number:05d}.png')
        Image.fromarray(mask).save(split / 'mask' / f'{number:05d}.png')
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    (split / 'anno_training.pickle').write_bytes(data)
    return folder


def half_mask(left: int, right: int) -> np.ndarray:
    """A mask with so many pixels of each hand, of several parts, a person and background."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[-3:] = 1
    mask[0, :left] = np.arange(left) % 16 + 2
    mask[1, :right] = np.arange(right) % 16 + 18
    return mask


def load(folder: Path, content: Any) -> Any:
    return rhd_layout.RhdAnnotations(write_folder(folder, content), 'training')


def test_what_is_written_is_read_back_to_the_same_values(tmp_path):
    samples = [rendered(seed, is_left=seed % 2 == 0) for seed in range(4)]
    assert rhd_layout.write_rhd(tmp_path, 'evaluation', iter(samples)) == 4
    read = rhd_layout.RhdAnnotations(tmp_path, 'evaluation')
    assert len(read) == 4
    for index, (sample, back) in enumerate(zip(samples, read, strict=True)):
        assert back.keypoints.dtype == back.keypoints_3d.dtype == np.float32
        np.testing.assert_array_equal(back.keypoints, sample.keypoints)
        np.testing.assert_array_equal(back.keypoints_3d, sample.keypoints_3d)
        np.testing.assert_array_equal(back.visible, sample.visible)
        np.testing.assert_array_equal(back.camera, sample.camera)
        assert back.is_left == sample.is_left
        assert back.image_id == read.image_id(index) == f'evaluation/{index:05d}'
        np.testing.assert_array_equal(np.asarray(Image.open(back.image_path)), sample.image)
        shown = sample.keypoints[sample.visible]
        np.testing.assert_array_equal(back.box, [*shown.min(axis=0), *shown.max(axis=0)])
        seen = back.keypoints_3d.astype(np.float64) @ back.camera.T
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], back.keypoints, atol=1e-3)


def test_rendered_scenes_come_back_to_the_same_values(tmp_path):
    scene_options = options.SceneOptions(size=96, samples=1)
    samples = [generate.generate(scene_options, 11, number) for number in range(4)]
    assert len({sample.is_left for sample in samples}) == 2
    rhd_layout.write_rhd(tmp_path, 'evaluation', iter(samples))
    read = rhd_layout.RhdAnnotations(tmp_path, 'evaluation')
    assert len(read) == len(samples)
    for sample, back in zip(samples, read, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(back.image_path)), sample.image)
        np.testing.assert_array_equal(back.keypoints, sample.keypoints)
        np.testing.assert_array_equal(back.visible, sample.visible)
        np.testing.assert_array_equal(back.keypoints_3d, sample.keypoints_3d)
        np.testing.assert_array_equal(back.camera, sample.camera)
        assert back.is_left == sample.is_left
        # What is projected from what was read is what was read.
        projected = views.project(np.asarray(back.camera, float), back.keypoints_3d.astype(float))
        np.testing.assert_allclose(projected, back.keypoints, atol=1e-3)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_written_rows_and_masks_are_where_the_description_has_them(tmp_path, side):
    points = np.array([place(name, side) for name in hand.KEYPOINT_NAMES], np.float32)
    sample = rendered(0, is_left=side == 'left')._replace(
        keypoints=points,
        keypoints_3d=np.column_stack([points / 100, np.full(21, 0.5)]).astype(np.float32),
        visible=np.array(['tip' in name for name in hand.KEYPOINT_NAMES]),
    )
    rhd_layout.write_rhd(tmp_path, 'training', [sample])
    with (tmp_path / 'training' / 'anno_training.pickle').open('rb') as file:
        records = pickle.load(file)
    assert list(records) == [0]
    offset, other = (0, 21) if side == 'left' else (21, 0)
    for row, name in enumerate(RHD_ROWS):
        x, y = place(name, side)
        np.testing.assert_array_equal(records[0]['uv_vis'][offset + row], [x, y, 'tip' in name])
        np.testing.assert_allclose(records[0]['xyz'][offset + row], [x / 100, y / 100, 0.5])
    assert not records[0]['uv_vis'][other : other + 21].any()
    assert not records[0]['xyz'][other : other + 21].any()
    mask = np.asarray(Image.open(tmp_path / 'training' / 'mask' / '00000.png'))
    assert mask.shape == (SIZE, SIZE)
    is_left_hand, is_right_hand = (mask > 1) & (mask < 18), mask > 17
    expected = sample.mask == labels.HAND
    np.testing.assert_array_equal(is_left_hand, expected if side == 'left' else ~(mask >= 0))
    np.testing.assert_array_equal(is_right_hand, expected if side == 'right' else ~(mask >= 0))
    np.testing.assert_array_equal(mask == 1, sample.mask == labels.FOREARM)


@pytest.mark.parametrize(('left', 'right', 'side'), [(12, 11, 'left'), (11, 12, 'right')])
def test_the_hand_with_more_pixels_is_read_by_name(tmp_path, left, right, side):
    folder = write_folder(tmp_path, {7: named_record()}, mask=half_mask(left, right), numbers=(7,))
    (read,) = rhd_layout.RhdAnnotations(folder, 'training')
    assert read.is_left == (side == 'left')
    for name, point, point_3d in zip(
        hand.KEYPOINT_NAMES, read.keypoints, read.keypoints_3d, strict=True
    ):
        assert tuple(point) == place(name, side), name
        np.testing.assert_allclose(point_3d[:2] * 100, place(name, side), rtol=1e-6)
    assert read.image_id == 'training/00007'
    assert read.image_path == tmp_path / 'training' / 'color' / '00007.png'


def test_a_hand_without_pixels_is_chosen_by_what_is_visible(tmp_path):
    record = named_record()
    record['uv_vis'][21:, 2] = 0
    folder = write_folder(tmp_path, {0: record}, mask=half_mask(0, 0))
    assert rhd_layout.RhdAnnotations(folder, 'training')[0].is_left
    # Hidden entirely: present, but neither seen nor visible; its box is that of all keypoints.
    hidden = named_record()
    hidden['uv_vis'][:21] = 0
    hidden['uv_vis'][21:, 2] = 0
    read = rhd_layout.RhdAnnotations(
        write_folder(tmp_path, {0: hidden}, mask=half_mask(0, 0)), 'training'
    )[0]
    assert not read.is_left
    assert not read.visible.any()
    np.testing.assert_array_equal(
        read.box, [*read.keypoints.min(axis=0), *read.keypoints.max(axis=0)]
    )


def test_a_mask_that_shows_a_hand_without_keypoints_is_refused(tmp_path):
    record = named_record()
    record['uv_vis'][21:] = 0
    folder = write_folder(tmp_path, {0: record}, mask=half_mask(1, 2))
    with pytest.raises(ValueError, match=r"record 0, field 'uv_vis'.*right hand.*2 pixels"):
        rhd_layout.RhdAnnotations(folder, 'training')[0]


def test_records_are_in_the_order_of_their_numbers(tmp_path):
    numbers = (30, 4, 100000)
    content = {number: named_record() for number in numbers}
    read = rhd_layout.RhdAnnotations(write_folder(tmp_path, content, numbers=numbers), 'training')
    assert [sample.image_id for sample in read] == [
        'training/00004',
        'training/00030',
        'training/100000',
    ]


# --- annotation files -----------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('kind', ['<f4', '>f4', '<f8', '>f8'])
def test_pickles_of_every_protocol_and_byte_order_give_the_same_values(tmp_path, protocol, kind):
    record = {name: value.astype(kind) for name, value in named_record().items()}
    read = load(tmp_path, pickle.dumps({0: record}, protocol=protocol))[0]
    expected = load(tmp_path, {0: named_record()})[0]
    np.testing.assert_array_equal(read.keypoints, expected.keypoints)
    np.testing.assert_array_equal(read.keypoints_3d, expected.keypoints_3d)
    np.testing.assert_array_equal(read.camera, expected.camera)
    assert read.camera.dtype == np.float64


def test_other_values_beside_the_arrays_are_ignored(tmp_path):
    extra = {'text': 'ü', 'list': [1, None], 'scalar': np.float32(0.5), 'array': np.arange(300)}
    assert len(load(tmp_path, {0: named_record(**extra)})[0].keypoints) == 21


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def test_annotations_that_would_run_something_are_refused_and_do_not(tmp_path):
    trace = tmp_path / 'trace'
    record = named_record(K=Calls(os.system, f'touch {trace}'))
    with pytest.raises(
        ValueError,
        match=r"anno_training\.pickle: expected a pickle .*: it asks for '(posix|nt)\.system'",
    ):
        load(tmp_path, {0: record})
    assert not trace.exists()


# Tuples and lists of 2 to the 80th values, and a list that holds itself.
@pytest.mark.parametrize(
    ('bomb', 'kind'),
    [
        (b')q\x00' + b'h\x00\x86q\x00' * 80, 'tuple'),
        (b'](]q\x00' + b'(h\x00h\x00lq\x00' * 80 + b'e', 'list'),
        (b']q\x00h\x00a', 'list'),
    ],
)
def test_doubled_and_endless_values_are_named_and_not_walked(tmp_path, bomb, kind):
    with pytest.raises(ValueError, match=f'dictionary of records, got a value of type {kind}'):
        load(tmp_path, bomb + b'.')
    read = load(tmp_path, b'}K\x00' + bomb + b's.')
    with pytest.raises(ValueError, match=f'record 0, expected a dictionary .* type {kind}'):
        read[0]
    read = load(tmp_path, b'}K\x00}U\x06uv_vis' + bomb + b'ss.')
    with pytest.raises(ValueError, match=f"'uv_vis': .* type {kind}"):
        read[0]


def test_the_size_of_the_file_is_capped(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, {0: named_record()})
    monkeypatch.setattr(rhd_layout, '_MAX_BYTES', 100)
    with pytest.raises(ValueError, match=r'anno_training\.pickle: expected at most 100 bytes'):
        rhd_layout.RhdAnnotations(folder, 'training')


# --- damaged records ------------------------------------------------------------------------------


def changed(name: str, index: Any, value: float) -> dict[str, np.ndarray]:
    array = named_record()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'uv_vis': np.zeros((42, 2), np.float32)},
            r"'uv_vis': expected .*\(42, 3\), got .*\(42, 2\)",
        ),
        ({'xyz': np.zeros((21, 3), np.float32)}, r"'xyz': expected .*\(42, 3\), got .*\(21, 3\)"),
        (
            {'K': np.eye(3, dtype=int)},
            r"'K': expected a float32 or float64 .*got an array of int64",
        ),
        ({'K': np.eye(3, dtype=np.float16)}, r"'K': .*got an array of float16"),
        ({'K': np.eye(3).tolist()}, r"'K': .*got a value of type list"),
        ({'xyz': None}, r"'xyz': .*got None"),
        (
            changed('uv_vis', (5, 1), np.nan),
            r"'uv_vis': expected finite values, got nan at \(5, 1\)",
        ),
        (changed('xyz', (41, 2), np.inf), r"'xyz': expected finite values, got inf at \(41, 2\)"),
        (changed('uv_vis', (0, 0), 2e6), r"'uv_vis': expected at most 1e\+06 px, got 2e\+06"),
        (changed('xyz', (0, 0), -5e3), r"'xyz': expected at most 1000 m, got 5000"),
        (
            changed('uv_vis', (9, 2), 0.5),
            r"'uv_vis': expected a visibility of 0 or 1, got 0.5 in row 9",
        ),
        (changed('xyz', (3, 2), -0.5), r"'xyz': .*before the camera .*z = -0.5 m in row 3"),
        (changed('K', (0, 0), -50), r"'K': expected \[\[fx s cx\]"),
        (changed('K', (1, 1), 0), r"'K': expected"),
        (changed('K', (2, 2), 0), r"'K': expected"),
        (changed('K', (2, 0), 1), r"'K': expected"),
        (changed('K', (1, 0), 1), r"'K': expected"),
        (changed('K', (0, 2), 1000), r"'K': expected .*near the 40 x 40 image"),
        (changed('K', (0, 1), 99), r"'K': expected"),
        ({'uv_vis': np.ones((42, 3))}, r"'uv_vis': expected keypoints at more than one place"),
    ],
)
def test_damaged_fields_are_named(tmp_path, changes, message):
    check_damage(tmp_path, named_record(**changes), f'field {message}')


def test_missing_fields_and_strange_records_are_named(tmp_path):
    record = named_record()
    del record['K']
    check_damage(tmp_path, record, "field 'K': .*it is missing")
    check_damage(tmp_path, [1, 2], 'expected a dictionary .*type list')


def check_damage(folder, record, message):
    """The same is said of the annotations, and of the copy that is made of them and then read."""
    write_folder(folder, {0: record, 1: named_record()}, numbers=(0, 1))
    for cache in (None, folder / 'c.npz', folder / 'c.npz'):
        read = rhd_layout.RhdAnnotations(folder, 'training', cache=cache)
        with pytest.raises(ValueError, match=rf'anno_training\.pickle: record 0, {message}'):
            read[0]
        assert read[1].image_id == 'training/00001'


@pytest.mark.parametrize('content', [{}, [], None, 3, 'text', {'0': {}}])
def test_what_is_no_dictionary_of_records_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r'anno_training\.pickle: expected .*records'):
        load(tmp_path, content)


def test_missing_and_wrong_images_are_named(tmp_path):
    folder = write_folder(tmp_path, {0: named_record()})
    read = rhd_layout.RhdAnnotations(folder, 'training')
    mask = folder / 'training' / 'mask' / '00000.png'
    Image.new('RGB', (SIZE, SIZE), (2, 3, 4)).save(mask)
    with pytest.raises(ValueError, match=r'mask.00000\.png: expected a mask in grey levels'):
        read[0]
    Image.new('L', (SIZE, SIZE), 255).save(mask)
    with pytest.raises(ValueError, match=r'mask.00000\.png: .*values 0\.\.33, got 255'):
        read[0]
    mask.unlink()
    with pytest.raises(ValueError, match=r'mask.00000\.png: no such image file'):
        read[0]
    (folder / 'training' / 'color' / '00000.png').unlink()
    with pytest.raises(ValueError, match=r'record 0: expected its image .*color.00000\.png'):
        read[0]


def test_splits_and_folders_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"splits of RHD are .*got 'test'"):
        rhd_layout.RhdAnnotations(tmp_path, 'test')
    with pytest.raises(ValueError, match=r"splits of RHD are .*got 'test'"):
        rhd_layout.write_rhd(tmp_path, 'test', [])
    with pytest.raises(ValueError, match=r'anno_evaluation\.pickle: no such annotation file'):
        rhd_layout.RhdAnnotations(tmp_path, 'evaluation')
    rhd_layout.write_rhd(tmp_path, 'training', [rendered(0, is_left=True)])
    with pytest.raises(ValueError, match='expected a new or empty folder'):
        rhd_layout.write_rhd(tmp_path, 'training', [rendered(0, is_left=True)])


def test_an_unfinished_split_has_no_annotations(tmp_path):
    def samples():
        yield rendered(0, is_left=True)
        raise RuntimeError('the renderer stopped')

    with pytest.raises(RuntimeError, match='stopped'):
        rhd_layout.write_rhd(tmp_path, 'training', samples())
    with pytest.raises(ValueError, match='no such annotation file'):
        rhd_layout.RhdAnnotations(tmp_path, 'training')


# --- real pictures --------------------------------------------------------------------------------


def test_the_order_holds_on_samples_of_the_real_data_set(assets, tmp_path):
    """Three published images, annotated in RHD's own order but in another container."""
    folder = assets / 'hands' / 'samples' / 'rhd'
    content = json.loads((folder / 'test_rhd.json').read_text())
    records, numbers, sides = {}, [], []
    for entry, picture in zip(content['annotations'], content['images'], strict=True):
        rows = slice(0, 21) if entry['hand_type'] == 'left' else slice(21, 42)
        uv_vis, xyz = np.zeros((42, 3), np.float32), np.zeros((42, 3), np.float32)
        uv_vis[rows] = entry['keypoints']
        xyz[rows] = np.array(entry['joint_cam']) / 1000
        camera = np.eye(3, dtype=np.float32)
        camera[[0, 1], [0, 1]] = picture['cam_param']['focal']
        camera[:2, 2] = picture['cam_param']['princpt']
        records[picture['id']] = {'uv_vis': uv_vis, 'xyz': xyz, 'K': camera}
        numbers.append(picture['id'])
        sides.append(entry['hand_type'])
    path = write_folder(
        tmp_path, records, mask=np.zeros((320, 320), np.uint8), numbers=tuple(numbers)
    )
    read = list(rhd_layout.RhdAnnotations(path, 'training'))
    assert [sample.is_left for sample in read] == [side == 'left' for side in sides]
    for sample in read:
        # The published values have four significant digits: up to 0.05 px each way and more by xyz.
        seen = sample.keypoints_3d.astype(np.float64) @ sample.camera.T
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], sample.keypoints, atol=0.1)
        lengths = np.array(
            [
                np.linalg.norm(sample.keypoints_3d[child] - sample.keypoints_3d[parent])
                for parent, child in hand.BONES
            ]
        ).reshape(5, 4)
        # The bone of the palm is the longest of its finger, and no bone spans the hand: in any
        # wrong order along a finger, the wrist would join a tip or a middle joint.
        assert (lengths[1:].argmax(axis=1) == 0).all()
        assert (lengths.max(axis=1) < 0.12).all()
