"""Hands in COCO's kind of JSON: made-up ones whose truth is known, and real samples."""

import itertools
import json
import re

import numpy as np
import pytest
from made import check, load, parse

from handpose_jax import hand, visualize
from handpose_jax.data import images
from handpose_jax.data.quarantine import BadRecord

builder, dummy = load('coco_wholebody')


@pytest.fixture(scope='module')
def wholebody(tmp_path_factory):
    """COCO-WholeBody made up, and what is really on its pictures."""
    folder = tmp_path_factory.mktemp('coco')
    return folder, dummy.write(folder, seed=1)


def published(folder):
    return builder.parts(folder, [], ['.'], ['train'])


def single(folder, cache, file='hands.json', pictures=None, **options):
    """The function that makes the records of one file of hands."""
    part = builder.Part('train', folder / file, pictures or folder)
    splits = builder.splits([part], options=builder.Options(**options), cache=cache)
    return splits['train']


# --- COCO-WholeBody -------------------------------------------------------------------------------


def test_hands_without_keypoints_are_left_out_and_told(wholebody, tmp_path, capsys):
    folder, truth = wholebody
    builder.splits(published(folder), options=builder.Options(), cache=tmp_path)
    assert {true.is_left for true in truth.values()} == {True, False}
    assert 'train_v1.0.json: 2 hands without keypoints are left out' in capsys.readouterr().out


def test_the_dummy_has_what_the_published_files_have(wholebody):
    folder, truth = wholebody
    path = folder / 'annotations' / 'coco_wholebody_train_v1.0.json'
    content = json.loads(path.read_text())
    assert set(content) == {'info', 'licenses', 'images', 'annotations', 'categories'}
    persons = [a for a in content['annotations'] if not a['iscrowd']]
    assert len(persons) < len(content['annotations'])
    for person in persons:
        assert [len(person[f'{part}_kpts']) for part in ('foot', 'face')] == [18, 204]
        assert len(person['lefthand_kpts']) == len(person['righthand_kpts']) == 63
        assert len(person['keypoints']) == 51
    flags = {v for person in persons for v in person['lefthand_kpts'][2::3]}
    assert flags == {0.0, 0.14, 1.0}
    assert sum(one.split == 'train' for one in truth.values()) == 4


def test_boxes_of_the_file_are_corner_and_size(wholebody, tmp_path):
    folder, truth = wholebody
    options = builder.Options(boxes='file')
    make = builder.splits(published(folder), options=options, cache=tmp_path)['train'].make
    for index, true in enumerate(one for one in truth.values() if one.split == 'train'):
        check(make(index), true._replace(box=true.extra['box']))


def test_other_options_are_another_data_set(wholebody, tmp_path):
    builder.prepare(parse(builder, wholebody[0], tmp_path / 'D'))
    with pytest.raises(ValueError, match=r"made with other settings:\n  boxes: 'keypoints' -> "):
        builder.prepare(parse(builder, wholebody[0], tmp_path / 'D', '--boxes', 'file'))


# --- files of hands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('order', 'triples'),
    [('identity', False), ('identity', True), ('rhd', True), ('shp', False), ('interhand', False)],
)
def test_every_order_comes_out_as_ours(tmp_path, order, triples):
    p = builder.ORDERS[order]
    assert sorted(p) == list(range(21))
    truth = dummy.write_hands(tmp_path, records=2, order=p, triples=triples, extras=['hand_type'])
    split = single(tmp_path, tmp_path / 'c', order=order)
    assert split.records == len(truth)
    for index, true in enumerate(truth.values()):
        if order == 'shp':
            # The palm's centre is no wrist.
            true.annotated[hand.WRIST] = False
        check(split.make(index), true)


def test_orders_are_as_their_data_sets_describe_them():
    fingers = {name: list(finger) for name, finger in hand.FINGERS.items()}
    described = {
        'identity': [0, *itertools.chain(*fingers.values())],
        'rhd': [0, *itertools.chain(*(finger[::-1] for finger in fingers.values()))],
        'shp': [0, *itertools.chain(*(list(fingers.values())[::-1]))],
        'interhand': [*itertools.chain(*(finger[::-1] for finger in fingers.values())), 0],
    }
    assert set(described) == set(builder.ORDERS)
    for name, ours in described.items():
        # What stands at their place i is our keypoint ours[i].
        assert [ours[i] for i in builder.ORDERS[name]] == list(range(21)), name


@pytest.mark.parametrize('extra', ['hand_type', 'category'])
def test_handedness_is_as_annotated(tmp_path, extra):
    truth = dummy.write_hands(tmp_path, extras=[extra])
    split = single(tmp_path, tmp_path / 'c', handedness='left')
    assert [split.make(i)['is_left'] for i in range(4)] == [true.is_left for true in truth.values()]


def test_handedness_that_is_not_annotated_must_be_said(tmp_path):
    truth = dummy.write_hands(tmp_path)
    with pytest.raises(ValueError, match=r"record 50, field 'hand_type': .*--handedness"):
        single(tmp_path, tmp_path / 'c')
    for said, expected in (
        ('left', [True] * 4),
        ('right', [False] * 4),
        ('file_name', [true.is_left for true in truth.values()]),
    ):
        split = single(tmp_path, tmp_path / 'c', handedness=said)
        assert [split.make(i)['is_left'] for i in range(4)] == expected


def test_the_size_of_the_head_normalises_and_may_give_the_box(tmp_path):
    truth = dummy.write_hands(tmp_path, extras=['hand_type', 'head_size'])
    plain = single(tmp_path, tmp_path / 'c')
    from_head = single(tmp_path, tmp_path / 'c', boxes='head')
    for index, true in enumerate(truth.values()):
        check(plain.make(index), true)
        example, box = from_head.make(index), true.extra['box']
        middle = (box[:2] + box[2:]) / 2
        np.testing.assert_allclose((example['box'][:2] + example['box'][2:]) / 2, middle, rtol=1e-6)
        # The crop of 2.2 times this is 1.54 times the head.
        sides = 2.2 * (example['box'][2:] - example['box'][:2])
        np.testing.assert_allclose(sides, 1.54 * true.norm_size, rtol=1e-5)


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def hands(tmp_path_factory):
    """A folder of hands, not to be changed."""
    folder = tmp_path_factory.mktemp('hands')
    dummy.write_hands(folder, extras=['hand_type'])
    return folder


def edited(hands, folder, edit):
    """Puts changed annotations of these hands into a folder."""
    content = json.loads((hands / 'hands.json').read_text())
    edit(content)
    (folder / 'hands.json').write_text(json.dumps(content))


def annotation(**changes):
    return lambda content: content['annotations'][1].update(changes)


@pytest.mark.parametrize(
    ('edit', 'options', 'message'),
    [
        (annotation(keypoints=[1.0] * 51), {}, r"'keypoints': expected 63 numbers, got .*51 of"),
        (annotation(keypoints=None), {}, r"'keypoints': expected 63 numbers.*got nothing"),
        (annotation(keypoints=['a'] * 63), {}, r"'keypoints': expected 63 numbers, got \['a'"),
        (annotation(bbox=[1, 2, 3]), {}, r"'bbox': expected 4 numbers, got \[1, 2, 3\]"),
        (annotation(bbox=[1, 2, 0, 4]), {'boxes': 'file'}, "'box': expected x0 < x1"),
        (annotation(bbox=None), {'boxes': 'file'}, "'bbox': expected a box.*got nothing"),
        (annotation(), {'boxes': 'head'}, "'head_size': expected it and center.*got nothing"),
        (annotation(hand_type='interacting'), {}, "'hand_type': expected 'left' or 'right', got '"),
        (annotation(image_id=5), {}, "'image_id': expected the id of an image, got 5"),
        (annotation(image_id=[5]), {}, r"'image_id': expected the id of an image, got \[5\]"),
        (
            lambda content: content['images'][1].update(width=161),
            {},
            r"'image': expected 161 x 120 pixels as annotated, got 160 x 120",
        ),
        (
            lambda content: content['images'][1].update(file_name='gone.png'),
            {},
            r"'image': expected the image file .*gone\.png, got No such file",
        ),
    ],
)
def test_damaged_records_are_named_and_leave_the_others_alone(
    hands, tmp_path, edit, options, message
):
    edited(hands, tmp_path, edit)
    make = single(tmp_path, tmp_path / 'c', pictures=hands, **options).make
    with pytest.raises(BadRecord, match=rf'hands\.json: record 51, field {message}'):
        make(1)
    if options.get('boxes') != 'head':
        assert make(0)['image_id'] == '0000_r.png#50'


def test_damaged_persons_are_named(wholebody, tmp_path):
    content = json.loads((wholebody[0] / 'annotations/coco_wholebody_val_v1.0.json').read_text())
    content['annotations'][0]['lefthand_valid'] = 'yes'
    del content['annotations'][0]['righthand_kpts']
    (tmp_path / 'p.json').write_text(json.dumps(content))
    split = single(tmp_path, tmp_path / 'c', 'p.json', wholebody[0] / 'val2017')
    with pytest.raises(BadRecord, match=r"400000/right, field 'righthand_kpts': .*got nothing"):
        split.make(0)
    with pytest.raises(BadRecord, match=r"400000/left, field 'lefthand_valid': .*got 'yes'"):
        split.make(1)


def test_an_id_is_of_one_image(hands, tmp_path):
    """A second image of the same id would move the hands of all after it to other pictures."""

    def repeat(content, **changes):
        content['images'].insert(1, {**content['images'][0], **changes})

    edited(hands, tmp_path, repeat)
    whole = single(hands, tmp_path / 'a')
    twice = single(tmp_path, tmp_path / 'b', pictures=hands)
    assert twice.records == whole.records
    for index in range(whole.records):
        assert twice.make(index)['image'] == whole.make(index)['image']
    edited(hands, tmp_path, lambda content: repeat(content, file_name='other.png'))
    message = r"image 1, field 'id': expected one that no other image has, got .* is that of "
    with pytest.raises(ValueError, match=message):
        single(tmp_path, tmp_path / 'c', pictures=hands)
    edited(hands, tmp_path, lambda content: content['images'][0].update(id=True))
    with pytest.raises(ValueError, match=r"image 0, field 'id': expected a number or text, got Tr"):
        single(tmp_path, tmp_path / 'd', pictures=hands)


@pytest.mark.parametrize('name', ['/etc/passwd', '../x.png', 'a/../../x.png', 'C:\\x.png', '', 3])
def test_file_names_that_lead_elsewhere_are_refused(hands, tmp_path, name):
    edited(hands, tmp_path, lambda content: content['images'][2].update(file_name=name))
    with pytest.raises(ValueError, match=r"image 2, field 'file_name': expected a path relative"):
        single(tmp_path, tmp_path / 'c')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'premature EOF'),
        ('[]', 'it is no object'),
        ('3', 'it is no object'),
        ('{"images": []}', 'but annotations are missing'),
        ('{"images": {}, "annotations": []}', "'images' is no list"),
        ('{"images": 3, "annotations": []}', "'images' is no list"),
        ('{"images": [], "annotations": [], "images": []}', "'images' stands in it twice"),
        ('{"categories": [{"id": 1}', 'premature EOF'),
        ('{"images": [], "annotations": []} {', 'trailing garbage'),
        ('{"images": [{"id": NaN}]}', 'numbers like NaN and Infinity, which JSON does not have'),
        ('{"images": [{"id": -Infinity}]}', 'a digit is required'),
        ('{"images": [{"id": 1e999}]}', 'overflow'),
        ('{"images": [{"id": "\udcff"}]}', 'invalid bytes in UTF8'),
        ('{"images": ' + '[' * 100_000, 'nested too deeply'),
        ('{"other": ' + '[' * 100_000, 'nested too deeply'),
        ('{"images": [[' + '1,' * 2**20, 'never ends'),
        ('{"images": [], "annotations": []}', 'the list of images is empty'),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', 'expected hands'),
    ],
)
def test_files_that_are_bad_as_a_whole_are_named(tmp_path, text, message):
    (tmp_path / 'hands.json').write_text(text, encoding='utf-8', errors='surrogateescape')
    with pytest.raises(ValueError, match=rf'hands\.json: .*{re.escape(message)}'):
        single(tmp_path, tmp_path / 'c')


def test_options_must_go_together(tmp_path):
    with pytest.raises(ValueError, match=r'expected annotations/coco_wholebody_train_v1\.0\.json'):
        published(tmp_path)
    with pytest.raises(ValueError, match='expected --annotations beside them'):
        builder.parts(tmp_path, [], ['.'], ['val'])
    with pytest.raises(ValueError, match='got 2 annotations, 1 images and 1 splits'):
        builder.parts(tmp_path, ['a', 'b'], ['i'], ['train'])
    with pytest.raises(ValueError, match=r"expected different names, got \['x', 'x'\]"):
        builder.parts(tmp_path, ['a', 'b'], ['i'], ['x', 'x'])
    with pytest.raises(ValueError, match=r"--split: expected a name .*got '\.\./x'"):
        builder.parts(tmp_path, ['a'], ['i'], ['../x'])
    both = builder.parts(tmp_path, ['a', 'b'], ['i'], ['x', 'y'])
    assert [part.images for part in both] == [tmp_path / 'i'] * 2


def test_the_table_follows_the_file(hands, tmp_path):
    cache = tmp_path / 'c'
    edited(hands, tmp_path, lambda content: None)
    assert single(tmp_path, cache).records == 4
    edited(hands, tmp_path, lambda content: content['annotations'].pop())
    assert single(tmp_path, cache).records == 3
    (cache / 'train.npz').write_bytes(b'broken')
    builder._table.cache_clear()
    assert single(tmp_path, cache).records == 3


def test_lists_are_read_in_the_order_of_the_file_and_nothing_else(tmp_path):
    content = {
        'info': {'text': '"]}, [{', 'n': 1.5, 'images': [1]},
        'annotations': [[0.25 * i, -i, None] for i in range(9)] + [3, 12345678, -1.5e-7, None],
        'n': 12345,
        'images': [{'id': i, 'name': 'ü"]}', 'annotations': [{}, []]} for i in range(9)],
    }
    expected = [(n, i, v) for n in ('annotations', 'images') for i, v in enumerate(content[n])]
    for indent in (None, 2):
        path = tmp_path / 'x.json'
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding='utf-8')
        assert list(builder._elements(path)) == expected


# --- real pictures --------------------------------------------------------------------------------

SAMPLES = {
    'freihand': ('identity', 'right'),
    # It does not tell; nothing here depends on it.
    'onehand10k': ('identity', 'right'),
    'panoptic': ('identity', 'file_name'),
    'rhd': ('rhd', ''),
    'interhand2.6m': ('interhand', ''),
}


def write_interhand(folder, path):
    """The samples of InterHand as a file of hands, and their 3D keypoints, in its own order."""
    data, camera, world = (
        json.loads((folder / f'test_interhand2.6m_{name}.json').read_text())
        for name in ('data', 'camera', 'joint_3d')
    )
    pictures = {picture['id']: picture for picture in data['images']}
    annotations, places = [], []
    for entry in data['annotations']:
        picture = pictures[entry['image_id']]
        capture, name = str(picture['capture']), picture['camera']
        values = {key: np.array(value[name]) for key, value in camera[capture].items()}
        points = np.array(world[capture][str(picture['frame_idx'])]['world_coord'])
        seen = (points - values['campos']) @ values['camrot'].T
        image = seen[:, :2] / seen[:, 2:] * values['focal'] + values['princpt']
        valid = np.ravel(entry['joint_valid'])
        for side, rows in (('right', slice(0, 21)), ('left', slice(21, 42))):
            if valid[rows].any():
                triples = np.column_stack([image[rows], valid[rows]])
                annotations.append(
                    {
                        'id': len(annotations),
                        'image_id': entry['image_id'],
                        'keypoints': triples.ravel().tolist(),
                        'hand_type': side,
                    }
                )
                places.append(seen[rows])
    path.write_text(json.dumps({'images': data['images'], 'annotations': annotations}))
    return places


@pytest.fixture(scope='module', params=SAMPLES)
def sample(request, assets, tmp_path_factory):
    """A data set's samples: name, records in every order, 3D keypoints in its own or None."""
    name = request.param
    _, handedness = SAMPLES[name]
    folder = assets / 'hands' / 'samples' / name
    place = tmp_path_factory.mktemp(name)
    path, places = folder / f'test_{name}.json', None
    if name == 'interhand2.6m':
        path = place / 'hands.json'
        places = write_interhand(folder, path)
    elif name == 'rhd':
        entries = json.loads(path.read_text())['annotations']
        places = [np.array(entry['joint_cam']) for entry in entries]
    records = {}
    for order in builder.ORDERS:
        split = single(path.parent, place, path.name, folder, order=order, handedness=handedness)
        records[order] = [split.make(index) for index in range(split.records)]
    return name, records, places


def anatomy(points, known):
    """What holds for most hands in most views, as far as their keypoints are known."""

    def length(a, b):
        return np.linalg.norm(points[a] - points[b])

    thumb, *fingers = hand.FINGERS.values()
    bases = [finger[0] for finger in hand.FINGERS.values()]
    found = []
    if known[[hand.WRIST, *bases]].all():
        # The thumb begins next to the wrist.
        found.append(length(0, thumb[0]) == min(length(0, base) for base in bases))
    for finger in fingers:
        if known[[hand.WRIST, *finger]].all():
            bones = [length(a, b) for a, b in itertools.pairwise(finger)]
            # The bone in the palm is the longest of a finger.
            found.append(length(0, finger[0]) > max(bones))
            if length(finger[0], finger[3]) > 0.97 * sum(bones):
                # The tip of a stretched finger is further away than its base.
                found.append(length(0, finger[3]) > length(0, finger[0]))
    if known[[thumb[1], 5, 17]].all():
        # The thumb is on the index finger's side.
        found.append(length(thumb[1], 5) < length(thumb[1], 17))
    return found


def test_of_all_orders_the_right_one_makes_hands_of_real_samples(sample):
    name, records, _ = sample
    right = SAMPLES[name][0]
    shares = {}
    for order, p in builder.ORDERS.items():
        found = []
        for raw, own in zip(records['identity'], records[right], strict=True):
            points, known = raw['keypoints'][list(p)], raw['annotated'][list(p)]
            found += anatomy(points.astype(float), known)
            if order == right:
                assert len(found) > 0
                np.testing.assert_array_equal(own['annotated'], known)
                np.testing.assert_array_equal(own['keypoints'], points)
        shares[order] = np.mean(found)
    assert max(shares, key=shares.get) == right, shares
    assert shares[right] > 0.8


@pytest.mark.parametrize('sample', ['rhd', 'interhand2.6m'], indirect=True)
def test_fingers_of_real_samples_bend_to_the_palm_of_their_hand(sample):
    name, records, places = sample
    order = SAMPLES[name][0]
    bent = 0
    for example, place in zip(records[order], places, strict=True):
        points = place[list(builder.ORDERS[order])]
        # Seen along this direction, a right hand shows its back.
        out_of_palm = np.cross(points[5] - points[0], points[17] - points[0])
        out_of_palm /= np.linalg.norm(out_of_palm)
        fingers = [points[tip] - points[tip - 3] for tip in hand.FINGERTIPS[1:]]
        share = np.mean([finger @ out_of_palm / np.linalg.norm(finger) for finger in fingers])
        # A nearly flat hand does not tell.
        if abs(share) > 0.3:
            bent += 1
            assert (share < 0) == example['is_left'], example['image_id']
    assert bent >= 3


def test_skeletons_are_drawn_in_the_colours_of_the_fingers(sample):
    name, records, _ = sample
    checked = 0
    for example in records[SAMPLES[name][0]]:
        image = images.decode_image(example['image'], example['image_id'])
        x, y = np.maximum(np.floor(example['box'][:2]).astype(int) - 20, 0)
        right, bottom = example['box'][2:].astype(int) + 20
        image = np.ascontiguousarray(image[y:bottom, x:right])
        points = example['keypoints'].astype(np.float64) - (x, y)
        image, points = visualize.enlarge(image, points, 600)
        known = np.flatnonzero(example['annotated'])
        drawn = visualize.draw_hand(image, points, visible=example['annotated'])
        for keypoint in known:
            others = points[known[known != keypoint]] - points[keypoint]
            if np.linalg.norm(others, axis=1).min() > 20:
                x, y = np.round(points[keypoint]).astype(int)
                assert tuple(drawn[y, x]) == hand.keypoint_colour(int(keypoint))
                checked += 1
    assert checked >= 20
