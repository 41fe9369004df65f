"""The crop rule of docs/export.md: its lines, run from the page, make the crops that we make."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

import handpose_jax
from handpose_jax import export, geometry
from handpose_jax.config import CROP_SCALE
from handpose_jax.data import images, transforms
from handpose_jax.export import golden

ROOT = Path(__file__).parents[2]

# What the page promises: grey levels of difference on average, and pixels of the photograph.
MAX_GREY, MAX_SHIFT = 0.05, 0.5

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ('onnx', 'onnxruntime')),
    reason='onnx and onnxruntime are not installed',
)


def page_blocks():
    """The page's blocks of Python that cut, or call what cuts, a crop."""
    text = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    rule, check = (block for block in blocks if 'cut(' in block)
    return rule, check


@pytest.fixture(scope='module')
def cut():
    """The function of the page, made of the page's text."""
    names = {}
    exec(compile(page_blocks()[0], 'docs/export.md', 'exec'), names)
    return names['cut']


def about(size, scale=CROP_SCALE, **rule):
    """What a sidecar tells of the crop."""
    return {
        'input': {'shape': ['b', size, size, 3]},
        'crop': {'scale': scale, **transforms.CROP_RULE, **rule},
    }


NEVER_AVERAGED = {'averaging': {**transforms.CROP_RULE['averaging'], 'from_step': 1e9}}


def textured(height, width, seed=0):
    """Something with detail at every scale, like a photograph: noise of many sizes, added up."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (3, 12, 48, 192, max(height, width)):
        noise = rng.normal(0, 30, (min(cells, height), min(cells, width), 3))
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(picture + 127, 0, 255).astype(np.uint8)


def ours(photograph, box, size, scale=CROP_SCALE, left_hand=False):
    square = geometry.square_box(np.asarray(box, np.float64), scale)
    return transforms.crop_image(photograph, square, size, mirror=left_hand)


def grey_difference(one, other):
    return np.abs(one.astype(float) - other).mean()


def test_the_page_needs_twenty_lines_and_two_libraries():
    lines = [line for line in page_blocks()[0].splitlines() if line]
    assert len(lines) <= 20
    assert [line for line in lines if 'import' in line] == ['import cv2', 'import numpy as np']


@pytest.mark.parametrize('longest', [340, 640, 960, 1800, 3000])
@pytest.mark.parametrize(('size', 'left_hand'), [(112, False), (112, True), (224, False)])
def test_the_crops_of_the_page_are_ours(cut, longest, size, left_hand):
    photograph = textured(longest * 3 // 4, longest)
    # A hand in the middle, a small one in a corner, and one that ends in whole pixels.
    for part in ((0.23, 0.17, 0.71, 0.63), (-0.02, 0.55, 0.19, 0.77), (0.25, 0.25, 0.5, 0.5)):
        box = np.array(part) * longest
        crop, to_photograph = cut(photograph, box.tolist(), about(size), left_hand)
        expected, image_from_crop = ours(photograph, box, size, left_hand=left_hand)
        assert crop.dtype == np.uint8
        np.testing.assert_allclose(to_photograph, image_from_crop, rtol=0, atol=1e-6)
        assert grey_difference(crop, expected) <= MAX_GREY, part


@pytest.mark.parametrize('step', [0.5, 1, 1.999, 2, 2.001, 3, 7, 12.5])
@pytest.mark.parametrize('offset', [0, 0.1, 17.35])
def test_whole_and_half_numbers_are_no_borderline(cut, step, offset):
    """The last bits of a sum decide neither how many pixels are averaged nor where they begin."""
    size, photograph = 56, textured(700, 900)
    box = offset + np.array([20.0, 10, 20 + step * size / CROP_SCALE, 15])
    crop, _ = cut(photograph, box, about(size))
    assert grey_difference(crop, ours(photograph, box, size)[0]) <= MAX_GREY


def in_words(photograph, box, size):
    """Steps 1 to 6 of the page for a right hand, by its words alone and without OpenCV."""
    x0, y0, x1, y1 = box
    side = CROP_SCALE * max(x1 - x0, y1 - y0)
    step = side / size
    n = int(step) if step >= 2 else 1
    weights, ends = [], photograph.shape[1::-1]
    for centre, end in zip(((x0 + x1) / 2, (y0 + y1) / 2), ends, strict=True):
        first = max(0, int(np.floor(centre - side / 2)) - 2 * n)
        last = min(end - 1, int(np.ceil(centre + side / 2)) + 2 * n)
        old = last - first + 1
        new = max(1, round(old / n))
        # How much of each old pixel a new one covers.
        edges = np.arange(new + 1) * old / new
        pixels = np.arange(old)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        area = np.zeros((new, end))
        area[:, first : last + 1] = np.clip(covered, 0, 1) * new / old
        point = centre + step * (np.arange(size) - (size - 1) / 2)
        place = (point - first + 0.5) * new / old - 0.5
        # Bilinear: a pixel counts by how near it is; beside the part there is none.
        near = np.clip(1 - np.abs(place[:, None] - np.arange(new)), 0, 1)
        weights.append((area, near))
    (across, near_x), (down, near_y) = weights
    small = np.round(np.einsum('yh,xw,hwc->yxc', down, across, photograph, optimize=True))
    inside = np.einsum('Yy,Xx,yxc->YXc', near_y, near_x, small - 127, optimize=True)
    return np.round(inside + 127)


@pytest.mark.parametrize('box', [[60.3, 40, 110, 95.2], [-20, 100, 150, 280], [10, 10, 370, 290]])
def test_the_words_of_the_page_say_what_its_lines_do(cut, box):
    photograph = textured(300, 400)
    words, lines = in_words(photograph, box, 56), cut(photograph, box, about(56))[0]
    # OpenCV may round coordinates to 1/32 px, and does what is rounded in another order.
    assert grey_difference(words, lines) < 0.5
    assert np.abs(words - lines).max() <= 8


@pytest.mark.parametrize('longest', [340, 896, 900])
def test_a_network_that_is_shown_whole_photographs(cut, longest):
    photograph = textured(300, longest)
    whole = geometry.whole_image_box(300, longest)
    crop, _ = cut(photograph, whole, about(112, None))
    assert grey_difference(crop, ours(photograph, whole, 112, 1.0)[0]) <= MAX_GREY


@pytest.mark.parametrize('size', [64, 112, 128, 224])
def test_a_whole_step_is_averaged_whole(size):
    """Stripes that repeat as often as blocks do become one grey, whatever rounding leaves."""
    for step in range(2, 12):
        photograph = np.zeros((step * size, step * size, 3), np.uint8)
        photograph[:, ::step] = 240
        crop = transforms.crop_image(
            photograph, geometry.whole_image_box(*photograph.shape[:2]), size
        )[0]
        assert np.ptp(crop) == 0, step
        assert crop[0, 0, 0] == pytest.approx(240 / step, abs=0.51)


def test_the_rule_without_averaging_is_another(cut):
    """Else the tests above would prove nothing about the averaging."""
    photograph = textured(720, 960)
    box = [220, 160, 680, 600]
    crop = cut(photograph, box, about(112, **NEVER_AVERAGED))[0]
    assert grey_difference(crop, ours(photograph, box, 112)[0]) > 10


@pytest.mark.parametrize('scale', [CROP_SCALE, None])
def test_the_golden_picture_tells_the_rule_from_others(cut, scale):
    made = golden.make(112, scale)
    assert made.photograph.shape == (336, 392, 3)
    crop = cut(made.photograph, made.box, about(112, scale))[0]
    assert grey_difference(crop, made.crop) <= MAX_GREY
    for other in (
        cut(made.photograph, made.box, about(112, scale, **NEVER_AVERAGED))[0],
        cut(made.photograph, made.box, about(112, scale), left_hand=True)[0],
        cut(made.photograph, made.box + 1.5, about(112, scale))[0],
        cut(made.photograph, made.box, about(112, scale, outside_the_image=0))[0],
        crop[..., ::-1],
    ):
        assert grey_difference(other, made.crop) > 2


def test_a_sidecar_of_another_rule_is_refused(tmp_path):
    told = {'checkpoint_step': 7, **about(32, averaging={'from_step': 3})}
    (tmp_path / 'x.onnx.json').write_text(json.dumps(told))
    with pytest.raises(
        ValueError, match=r"x\.onnx\.json: crop\.averaging: expected .*'from_step': 2.*again"
    ):
        handpose_jax.load(tmp_path / 'x.onnx')


# --- a real network -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def exported(assets, tmp_path_factory):
    """The folder of a real network's export to ONNX."""
    workdir = assets / 'models' / 'paper_112_4000'
    if not workdir.is_dir():
        pytest.skip(f'{workdir} is not there')
    own = tmp_path_factory.mktemp('export') / 'W'
    shutil.copytree(workdir, own)
    settings = json.loads((own / 'config.json').read_text())
    # The gate compares on drawings: what is measured here is not the gate.
    settings['data'] = {'name': 'sketch', 'count': 10, 'size': settings['size']}
    export.export(str(own), only=['onnx'], num_images=4, config=ConfigDict(settings))
    return own / export.FOLDER


@pytest.fixture(scope='module')
def network(exported):
    """(keypoints found in a crop; the sidecar) of the exported file, without this package."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(exported / 'handpose.onnx'), providers=['CPUExecutionProvider']
    )

    def find(crop):
        return session.run(['keypoints'], {'images': crop[None].astype('float32')})[0][0]

    return find, json.loads((exported / 'handpose.onnx.json').read_text())


@needs_onnx
@pytest.mark.slow
def test_the_pages_check_finds_the_golden_keypoints(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported)
    exec(compile('\n'.join(page_blocks()), 'docs/export.md', 'exec'), {})
    off, shift = map(float, re.findall(r'\d\S*', capsys.readouterr().out))
    assert off <= MAX_GREY
    assert shift <= MAX_SHIFT
    assert (exported / 'golden' / 'photograph.png').stat().st_size < 200_000


@needs_onnx
@pytest.mark.slow
def test_the_golden_keypoints_are_those_of_this_file_and_of_jax(exported, network):
    find, told = network
    crop = images.read_image(exported / told['golden']['crop'])
    found = find(crop)
    np.testing.assert_allclose(found[:, :2], told['golden']['keypoints_in_crop'], atol=0.01)
    np.testing.assert_allclose(found[:, 2], told['golden']['confidence'], atol=1e-3)
    summary = json.loads((exported / export.SUMMARY_FILE).read_text())
    np.testing.assert_allclose(
        summary['golden']['keypoints'], told['golden']['keypoints'], atol=0.05
    )
    # Uncertain keypoints would jump for other reasons than a wrong crop.
    assert min(told['golden']['confidence']) > 0.3
    assert {**told['crop'], **transforms.CROP_RULE} == told['crop']


@needs_onnx
@pytest.mark.slow
def test_without_averaging_the_golden_keypoints_are_far_off(cut, exported, network):
    find, told = network
    photograph = images.read_image(exported / told['golden']['photograph'])
    wrong = {**told, 'crop': {**told['crop'], **NEVER_AVERAGED}}
    crop, to_photograph = cut(photograph, told['golden']['box'], wrong)
    found = geometry.apply_affine(to_photograph, find(crop)[:, :2].astype(np.float64))
    assert np.linalg.norm(found - told['golden']['keypoints'], axis=1).mean() > 10


@needs_onnx
@pytest.mark.slow
def test_the_page_finds_the_keypoints_that_we_find_in_photographs(cut, assets, exported, network):
    find, told = network
    load = handpose_jax.load(exported / 'handpose.onnx')
    records = json.loads((assets / 'scenes' / 'annotations.json').read_text())
    records = [record for record in records if record['width'] >= 340 and record['hands']]
    for record in records[::150]:
        picture = images.read_image(assets / 'scenes' / record['file'])
        for longest in (340, 640, 960, 3000):
            factor = longest / max(picture.shape[:2])
            photograph = cv2.resize(
                picture,
                None,
                fx=factor,
                fy=factor,
                interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA,
            )
            whole = np.array(record['hands'][0]['box'], float) * factor
            # Half of the box: a square that ends within the photograph.
            for box in (whole, geometry.square_box(whole, 0.4)):
                for side in ('left', 'right'):
                    crop, to_photograph = cut(photograph, box, told, side == 'left')
                    points = find(crop)[:, :2].astype(np.float64)
                    expected = load(photograph, box, side=side).keypoints
                    shift = geometry.apply_affine(to_photograph, points) - expected
                    assert np.linalg.norm(shift, axis=1).max() <= MAX_SHIFT, (record, longest)
