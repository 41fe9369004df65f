"""The paper's network and its training step in PyTorch, as the peer to measure ours against.

The same layers, widths, loss, optimizer and average as configs/real_hands.py; only the padding of
strided convolutions is PyTorch's own (symmetric), which costs the same. `pip install torch`.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from handpose_jax.models import NUM_HEATMAPS, STRIDE
from handpose_jax.models.decoder import DecoderWidths
from handpose_jax.models.mobilenet import BLOCKS, STEM_FEATURES, UNSTRIDED_BLOCK
from handpose_jax.process import allocator

BN_EPSILON = 1e-3


def build(bn_momentum: float = 0.03) -> Any:
    """The network as a torch.nn.Module: f32[b 3 h w] normalised to f32[b 22 h/4 w/4]."""
    from torch import nn

    def block(
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        transposed: bool = False,
        activation: bool = True,
    ) -> Any:
        convolution: Any
        if transposed:
            convolution = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        else:
            groups = inputs if depthwise else 1
            convolution = nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
            )
        layers = [convolution, nn.BatchNorm2d(outputs, eps=BN_EPSILON, momentum=bn_momentum)]
        return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if activation else []))

    class InvertedResidual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            layers = [] if expansion == 1 else [block(inputs, hidden)]
            layers.append(block(hidden, hidden, kernel=3, stride=stride, depthwise=True))
            layers.append(block(hidden, outputs, activation=False))
            self.layers = nn.Sequential(*layers)
            self.skips = inputs == outputs and stride == 1

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.skips else self.layers(x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = STEM_FEATURES
            encoder = [block(3, width, kernel=3, stride=2)]
            for number, spec in enumerate(BLOCKS, start=1):
                stride = 1 if number == UNSTRIDED_BLOCK else spec.stride
                encoder.append(InvertedResidual(width, spec.features, stride, spec.expansion))
                width = spec.features
            self.encoder = nn.Sequential(*encoder)
            w = DecoderWidths()
            self.main = nn.Sequential(
                block(width, w.reduce),
                block(w.reduce, w.reduce, kernel=3, depthwise=True),
                block(w.reduce, w.separable),
                block(w.separable, w.residual, activation=False),
            )
            self.skip = block(width, w.residual, activation=False)
            self.activation = nn.LeakyReLU(0.01, inplace=True)
            self.head = nn.Sequential(
                block(w.residual, w.squeeze),
                block(w.squeeze, w.squeeze, kernel=3, depthwise=True),
                block(w.squeeze, w.bottleneck),
                block(w.bottleneck, w.expand),
                block(w.expand, w.upsample, transposed=True),
                block(w.upsample, w.upsample, transposed=True),
                block(w.upsample, w.upsample, kernel=3, depthwise=True),
                block(w.upsample, w.refine),
                nn.Conv2d(w.refine, NUM_HEATMAPS, 1),
            )

        def forward(self, x: Any) -> Any:
            features = self.encoder(x)
            return self.head(self.activation(self.main(features) + self.skip(features)))

    return Network()


def train_round(
    size: int, batch_size: int, steps: int, channels_last: bool, ema: float = 0.998
) -> Callable[[], float]:
    """A function that takes some training steps and returns images per second.

    Args:
        size: side of the input, pixels.
        batch_size: images in a step.
        steps: in a round.
        channels_last: PyTorch's memory format that is faster on CPUs.
        ema: weight of the old average of the parameters.
    """
    import torch

    allocator.keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    network = build().train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    parameters = list(network.parameters())
    kernels = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': kernels, 'weight_decay': 1e-4}, {'params': others, 'weight_decay': 0.0}],
        lr=1.5e-3,
        foreach=True,
    )
    average = [parameter.detach().clone() for parameter in parameters]
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch_size, size, size, 3), np.uint8))
    keypoints = torch.from_numpy(rng.uniform(0, size, (batch_size, 21, 2)).astype(np.float32))
    sigma = 7.0 * size / 224

    def targets() -> Any:
        centres = torch.arange(size // STRIDE) * STRIDE + (STRIDE - 1) / 2
        dx = (centres - keypoints[..., 0, None]) ** 2
        dy = (centres - keypoints[..., 1, None]) ** 2
        maps = torch.exp(-(dy[..., :, None] + dx[..., None, :]) / (2 * sigma**2))
        return torch.cat([maps, 1 - maps.max(dim=1, keepdim=True).values], dim=1)

    def step() -> None:
        x = ((images.to(torch.float32) - 127.5) / 127.5).permute(0, 3, 1, 2)
        maps = network(x.contiguous(memory_format=layout))
        loss = 0.5 * ((maps - targets()) ** 2).sum() / batch_size
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - ema)

    for _ in range(2):
        step()

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        return batch_size * steps / (time.perf_counter() - begin)

    return measure
