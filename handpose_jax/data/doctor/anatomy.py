"""Whether 21 points look like a hand, and whether they would look more like one in another order.

What a hand looks like is learned from the project's own skeleton: posed at random, seen from
anywhere, projected. A hand is moved, turned, scaled and if need be mirrored onto a flat one; then
the palm and each finger has a density of its own, and the hand's is their product. The questions
are put as likelihood ratios: how much likelier would the points be if these two, or these two
fingers, or all of them had been exchanged; or if this one lay anywhere? Ratios stand conventions
that differ from our skeleton's (where exactly a wrist is) better than distances do.

Mirroring loses nothing: in two dimensions the back of a right hand and the palm of a left one look
alike.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from handpose_jax import hand
from handpose_jax.data.doctor import gaussians
from handpose_jax.synthetic.body import poses, skeleton

PARTS: dict[str, tuple[int, ...]] = {'palm': (0, 1, 5, 9, 13, 17), **hand.FINGERS}
"""Keypoints that have a density together; the fingers' first ones lie in two parts."""

MIN_BONES = 8
"""Fewer annotated bones than this do not settle place, size and turn of a hand."""

_FINGERS = list(hand.FINGERS.values())
_NAMES = list(hand.FINGERS)
_BONES = np.array(hand.BONES)
_IDENTITY = tuple(range(hand.NUM_KEYPOINTS))

_FLAT = skeleton.forward_kinematics(skeleton.AVERAGE, skeleton.FLAT).keypoints
_LENGTHS = np.linalg.norm(_FLAT[_BONES[:, 0]] - _FLAT[_BONES[:, 1]], axis=1)
# Lengths are in units of the bones' root mean square from here on.
_UNIT = float(np.sqrt((_LENGTHS**2).mean()))
_RELATIVE = _LENGTHS / _UNIT
_TEMPLATE = (_FLAT[:, 0] + 1j * _FLAT[:, 1]) / _UNIT

_POSES, _VIEWS, _COMPONENTS = 400, 12, 24
# Annotators' noise and differing conventions, in units of a bone.
_SPREAD = 0.05
# A keypoint that is elsewhere is anywhere in an area of so many squared units.
_AREA = 50.0
# A smaller gain is no cause to look again.
_DOUBTFUL = 3.0


class Hypothesis(NamedTuple):
    """What may be wrong with a hand.

    Attributes:
        kind: 'order' (all keypoints), 'fingers', 'keypoints' (two exchanged) or 'place' (one is
            elsewhere).
        text: completes "the keypoints look like a hand if ..."; of kind 'place', the keypoint's
            name; of kind 'order', the order.
        order: the right keypoint i is the given keypoint order[i].
        misplaced: of kind 'place', the keypoint.
    """

    kind: str
    text: str
    order: tuple[int, ...]
    misplaced: int | None = None


def known_orders() -> dict[str, tuple[int, ...]]:
    """Orders of 21 keypoints that data sets have: ours is source[p[i]].

    Source: Zimmermann and Brox 2017 (RHD) and Zhang et al. 2016 (STB, called SHP by Gouidis et al.)
    as their published files have them; the others as commonly found (confidence C).
    """
    tip_first = (0, *(k for finger in _FINGERS for k in reversed(finger)))
    little_first = (0, *(k for finger in reversed(_FINGERS) for k in finger))
    return {
        'every finger runs from tip to base (as in RHD)': tip_first,
        'thumb and little finger, index and ring finger exchanged (as in STB, or by a flip)': (
            little_first
        ),
        'little finger first, from tip to base': tuple(little_first[k] for k in tip_first),
        'all bases first, then joint by joint to the tips': (
            0,
            *(1 + 5 * joint + finger for finger in range(5) for joint in range(4)),
        ),
        'the wrist comes last': (20, *range(20)),
        'the wrist comes last, fingers from tip to base (as in InterHand2.6M)': (
            20,
            *(4 * finger + 3 - joint for finger in range(5) for joint in range(4)),
        ),
        "MANO's: thumb after the little finger, fingertips last": (
            *(0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20),
        ),
    }


def _hypotheses() -> tuple[Hypothesis, ...]:
    """All that are tried."""
    found = [Hypothesis('order', text, order) for text, order in known_orders().items()]
    for name, finger in hand.FINGERS.items():
        pairs = list(zip(finger, reversed(finger), strict=True))[:2]
        text = f'the {name} ran from base to tip: it runs from tip to base'
        found.append(Hypothesis('fingers', text, _exchange(pairs)))
        found += [_exchanged_keypoints(a, b) for a, b in itertools.combinations(finger, 2)]
    for (i, one), (j, other) in itertools.combinations(enumerate(_FINGERS), 2):
        pairs = list(zip(one, other, strict=True))
        text = f'{_NAMES[i]} and {_NAMES[j]} were exchanged'
        found.append(Hypothesis('fingers', text, _exchange(pairs)))
        found += [_exchanged_keypoints(a, b) for a, b in pairs]
    for keypoint, name in enumerate(hand.KEYPOINT_NAMES):
        found.append(Hypothesis('place', name, _IDENTITY, keypoint))
    return tuple(found)


def _exchanged_keypoints(a: int, b: int) -> Hypothesis:
    text = f'{hand.KEYPOINT_NAMES[a]} and {hand.KEYPOINT_NAMES[b]} were exchanged'
    return Hypothesis('keypoints', text, _exchange([(a, b)]))


def _exchange(pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    order = list(_IDENTITY)
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)


def _orbits(order: tuple[int, ...]) -> Bool[np.ndarray, '21 21']:
    """Which keypoints take each other's places, in as many steps as it takes."""
    step = np.eye(hand.NUM_KEYPOINTS)[list(order)]
    reached = np.eye(hand.NUM_KEYPOINTS)
    for _ in order:
        reached = ((reached + reached @ step) > 0).astype(float)
    return reached > 0


HYPOTHESES = _hypotheses()
_ORBITS = np.stack([_orbits(hypothesis.order) for hypothesis in HYPOTHESES])
IS_PLACE = np.array([hypothesis.kind == 'place' for hypothesis in HYPOTHESES])
IS_ORDER = np.array([hypothesis.kind == 'order' for hypothesis in HYPOTHESES])


def countable(annotated: Bool[np.ndarray, 'n 21']) -> Bool[np.ndarray, 'n']:
    """Hands with enough annotated bones to say anything about."""
    return (annotated[:, _BONES[:, 0]] & annotated[:, _BONES[:, 1]]).sum(axis=1) >= MIN_BONES


def _unit_lengths(
    keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
) -> Float[np.ndarray, 'n']:
    """The size of each hand as it is seen: root mean square of its bones over a flat hand's."""
    steps = keypoints[:, _BONES[:, 1]] - keypoints[:, _BONES[:, 0]]
    known = annotated[:, _BONES[:, 0]] & annotated[:, _BONES[:, 1]]
    seen = ((steps**2).sum(axis=2) * known).sum(axis=1)
    return np.sqrt(seen / np.maximum((known * _RELATIVE**2).sum(axis=1), 1e-9))


def bone_lengths(
    keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
) -> Float[np.ndarray, 'n 20']:
    """The seen length of each bone over what it would be on a flat hand of that size."""
    steps = keypoints[:, _BONES[:, 1]] - keypoints[:, _BONES[:, 0]]
    unit = np.maximum(_unit_lengths(keypoints, annotated), 1e-9)
    return np.linalg.norm(steps, axis=2) / (unit[:, None] * _RELATIVE)


def align(
    keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
) -> Float[np.ndarray, 'n 21 2']:
    """Moves hands onto a flat one: shifted, turned, scaled, mirrored where that fits better.

    Only annotated keypoints decide how; the others move along.
    """
    unit = np.maximum(_unit_lengths(keypoints, annotated), 1e-9)
    z = (keypoints[..., 0] + 1j * keypoints[..., 1]) / unit[:, None]
    weights = annotated / np.maximum(annotated.sum(axis=1, keepdims=True), 1)
    z = z - (weights * z).sum(axis=1, keepdims=True)
    middle = (weights * _TEMPLATE).sum(axis=1, keepdims=True)
    target = _TEMPLATE - middle
    plain = (weights * z.conj() * target).sum(axis=1)
    mirrored = (weights * z * target).sum(axis=1)
    flip = np.abs(mirrored) > np.abs(plain)
    turn = np.where(flip, mirrored, plain)
    turn = turn / np.maximum(np.abs(turn), 1e-12)
    z = np.where(flip[:, None], z.conj(), z) * turn[:, None] + middle
    return np.stack([z.real, z.imag], axis=-1)


def sample_hands(
    rng: np.random.Generator, *, count: int, views: int
) -> Float[np.ndarray, 'n 21 2']:
    """Projections of randomly posed hands: `count` poses, each from `views` sides."""
    seen = []
    for _ in range(count):
        posed = skeleton.forward_kinematics(skeleton.sample_shape(rng), poses.sample_pose(rng))
        q = rng.normal(size=(views, 4))
        w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
        # The first two rows of a random rotation: what a camera sees of it.
        first = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], 1)
        second = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], 1)
        third = np.cross(first, second)
        points = posed.keypoints - posed.keypoints.mean(axis=0)
        distance = np.exp(rng.uniform(np.log(0.35), np.log(1.5), views))
        depth = 1 + (third @ points.T) / distance[:, None]
        seen.append(np.stack([first @ points.T / depth, second @ points.T / depth], axis=-1))
    return np.concatenate(seen)


class Anatomy:
    """What hands look like. Fitting takes some seconds; `default()` does it once a process.

    Args:
        partial: for hands that lack some keypoints. The others settle size and turn less well, so
            that what is usual differs.
        seed: of the hands that are posed for it.
        poses: how many; each is seen from several sides.
        components: Gaussians for each part.
    """

    def __init__(
        self,
        *,
        partial: bool = False,
        seed: int = 0,
        poses: int = _POSES,
        components: int = _COMPONENTS,
    ):
        rng = np.random.default_rng(seed)
        hands, annotated = _posed(rng, poses, partial)
        hands = align(hands, annotated)
        self._mixtures = {
            name: gaussians.fit(
                rng, hands[:, part].reshape(len(hands), -1), components=components, floor=_SPREAD
            )
            for name, part in PARTS.items()
        }
        self._densities: dict[tuple[str, tuple[bool, ...]], gaussians.Density] = {}
        fresh, annotated = _posed(np.random.default_rng(seed + 1), poses // 4, partial)
        self.usual = np.quantile(self.scaled_density(fresh, annotated), [0.001, 0.5, 0.6])
        """Scaled density of hands: what one in a thousand, half, and three in five fall below."""
        self.usual_parts = np.quantile(self.part_densities(fresh, annotated), 0.001, axis=0)
        """Gives for each part what one in a thousand falls below."""
        lengths = bone_lengths(fresh, np.ones(fresh.shape[:2], bool))
        self.usual_bones = np.quantile(lengths, [0.001, 0.999], axis=0)
        """Seen lengths of the bones as in bone_lengths(): one in a thousand is shorter, longer."""

    def part_densities(
        self, keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
    ) -> Float[np.ndarray, 'n 6']:
        """Log density of each of PARTS, of its annotated keypoints alone; 0 where it has none."""
        return self._of_aligned(align(keypoints, annotated), annotated)

    def _of_aligned(
        self, aligned: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
    ) -> Float[np.ndarray, 'n 6']:
        aligned = aligned.astype(np.float32)
        values = np.zeros((len(aligned), len(PARTS)))
        for column, (name, part) in enumerate(PARTS.items()):
            known = annotated[:, part]
            # Hands that know the same keypoints of the part are asked together.
            codes = known @ (1 << np.arange(len(part)))
            for code in np.unique(codes):
                pattern = tuple(bool(code >> k & 1) for k in range(len(part)))
                if any(pattern):
                    rows = codes == code
                    points = aligned[rows][:, np.array(part)[np.array(pattern)]]
                    density = self._density(name, pattern)
                    values[rows, column] = density(points.reshape(len(points), -1))
        return values

    def log_density(
        self, keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
    ) -> Float[np.ndarray, 'n']:
        """Log density of whole hands, natural logarithm."""
        return self.part_densities(keypoints, annotated).sum(axis=1)

    def scaled_density(
        self, keypoints: Float[np.ndarray, 'n 21 2'], annotated: Bool[np.ndarray, 'n 21']
    ) -> Float[np.ndarray, 'n']:
        """Log density as if of 21 keypoints, so that hands that lack some can be compared."""
        share = np.maximum(annotated.mean(axis=1), 1 / hand.NUM_KEYPOINTS)
        return self.log_density(keypoints, annotated) / share

    def gains(
        self,
        keypoints: Float[np.ndarray, 'n 21 2'],
        annotated: Bool[np.ndarray, 'n 21'],
        among: Bool[np.ndarray, 'q'] | None = None,
    ) -> Float[np.ndarray, 'n q']:
        """How much likelier each of HYPOTHESES makes each hand: log of the ratio of likelihoods.

        Args:
            keypoints: (x, y), any frame.
            annotated: which of them are known.
            among: the hypotheses to try; of the others the gain is minus infinity.
        """
        given = self.log_density(keypoints, annotated)
        values = np.full((len(keypoints), len(HYPOTHESES)), -np.inf)
        for column, hypothesis in enumerate(HYPOTHESES):
            if among is not None and not among[column]:
                continue
            if hypothesis.misplaced is not None:
                left = annotated.copy()
                left[:, hypothesis.misplaced] = False
                times = sum(hypothesis.misplaced in part for part in PARTS.values())
                other = self.log_density(keypoints, left) - times * np.log(_AREA)
                values[:, column] = other - given
                continue
            # A likelihood of some keypoints cannot be compared with one of others: those that would
            # be exchanged for unknown ones are left out of both.
            closed = ~(~annotated @ _ORBITS[column])
            complete = (closed == annotated).all(axis=1)
            partial = np.flatnonzero(~complete & countable(closed))
            own = given.copy()
            own[partial] = self.log_density(keypoints[partial], closed[partial])
            rows = np.union1d(np.flatnonzero(complete), partial)
            order = np.array(hypothesis.order)
            moved = align(keypoints[rows][:, order], closed[rows])
            gain = self._of_aligned(moved, closed[rows]).sum(axis=1) - own[rows]
            # Where the other order only turns the hand better, the given one may be turned so too.
            doubtful = np.flatnonzero(gain > _DOUBTFUL)
            back = moved[doubtful][:, np.argsort(order)]
            turned = self._of_aligned(back, closed[rows[doubtful]]).sum(axis=1)
            gain[doubtful] -= np.maximum(turned - own[rows[doubtful]], 0)
            values[rows, column] = gain
        return values

    def _density(self, name: str, pattern: tuple[bool, ...]) -> gaussians.Density:
        key = name, pattern
        if key not in self._densities:
            kept = [c for k, known in enumerate(pattern) if known for c in (2 * k, 2 * k + 1)]
            marginal = gaussians.marginal(self._mixtures[name], kept)
            self._densities[key] = gaussians.Density(marginal, np.float32)
        return self._densities[key]


def _posed(
    rng: np.random.Generator, count: int, partial: bool
) -> tuple[Float[np.ndarray, 'n 21 2'], Bool[np.ndarray, 'n 21']]:
    hands = sample_hands(rng, count=count, views=_VIEWS)
    if not partial:
        return hands, np.ones(hands.shape[:2], bool)
    annotated = rng.random(hands.shape[:2]) < rng.uniform(0.5, 1, (len(hands), 1))
    enough = countable(annotated)
    return hands[enough], annotated[enough]


def default(partial: bool = False) -> Anatomy:
    """The ones that the doctor uses; each is fitted once a process."""
    return _fitted(bool(partial))


@functools.cache
def _fitted(partial: bool) -> Anatomy:
    return Anatomy(partial=partial)


def best(
    gains: Float[np.ndarray, 'n q'], among: Bool[np.ndarray, 'q']
) -> tuple[Int[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
    """The best hypothesis of each hand among some, and its gain."""
    chosen = np.where(among, gains, -np.inf).argmax(axis=1)
    return chosen, gains[np.arange(len(gains)), chosen]
