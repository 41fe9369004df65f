"""What rendered pictures are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SceneOptions:
    """What the pictures are made of.

    Attributes:
        size: side of the picture, pixels.
        rigs: glTF rigs (see gltf_rig.GltfRig), drawn at random; none for the bundled body.
        textures: folder of textures for the rigs (see materials.read_textures), or None.
        backgrounds: 'procedural' (drawn), 'photos' (from `photos`, one in six drawn), or 'plain'.
        photos: folder of photographs.
        poses: file of captured poses (see captures.read_webxr), or None for the library alone.
        lighting: 'full' (surroundings and lamps) or 'flat' (the same light from everywhere).
        occlusion: things held and in front, and other hands.
        skin_variety: all skin tones, gloves, sleeves, rings; otherwise one bare hand.
        left_share: part of the hands that are left.
        samples: light paths a pixel; up to four times as many in pictures taken at low resolution.
        resolution: range of the part of its final size at which a picture is taken, before it is
            enlarged as a crop of a photograph is.
        without_hand: part of the pictures that show things where a hand would be, and no hand.
    """

    size: int = 224
    rigs: tuple[str, ...] = ()
    textures: str | None = None
    backgrounds: str = 'procedural'
    photos: str | None = None
    poses: str | None = None
    lighting: str = 'full'
    occlusion: bool = True
    skin_variety: bool = True
    left_share: float = 0.5
    samples: int = 1
    resolution: tuple[float, float] = (0.4, 0.8)
    without_hand: float = 0.0

    def __post_init__(self) -> None:
        # Configs read from JSON bring lists.
        object.__setattr__(self, 'rigs', tuple(self.rigs))
        object.__setattr__(self, 'resolution', tuple(self.resolution))
        choices = {'backgrounds': ('procedural', 'photos', 'plain'), 'lighting': ('full', 'flat')}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'SceneOptions.{name} must be one of {allowed}, got {getattr(self, name)!r}'
                )
        low, high = self.resolution
        if not 0 < low <= high <= 1:
            raise ValueError(
                f'SceneOptions.resolution must be a range within 0..1, got {self.resolution}'
            )
        if self.backgrounds == 'photos' and self.photos is None:
            raise ValueError("SceneOptions.backgrounds is 'photos': set photos to their folder")
        if not self.size >= 32 or not self.samples >= 1 or not 0 <= self.left_share <= 1:
            raise ValueError(
                'SceneOptions: size must be at least 32, samples at least 1 and left_share in '
                f'0..1, got {self.size}, {self.samples}, {self.left_share}'
            )
        if not 0 <= self.without_hand <= 1:
            raise ValueError(f'SceneOptions.without_hand must be in 0..1, got {self.without_hand}')
