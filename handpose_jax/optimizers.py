"""Optimizers and learning-rate schedules by name. `build(name, **kwargs)` is how configs choose."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax


def schedule(
    name: str, *, learning_rate: float, num_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
        name: 'constant', or 'cosine' (down to zero at num_steps).
        learning_rate: the highest rate.
        num_steps: length of the whole training.
        warmup_steps: steps of linear rise from zero, part of num_steps.

    Raises:
        ValueError: for an unknown name, or a warm-up as long as the training.
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(
            f'optimizer.warmup_steps must be in 0..{num_steps - 1} (num_steps - 1), '
            f'got {warmup_steps}'
        )
    if name == 'constant':
        after: optax.Schedule = optax.constant_schedule(learning_rate)
    elif name == 'cosine':
        after = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    else:
        raise ValueError(f"optimizer.schedule: expected 'constant' or 'cosine', got {name!r}")
    if not warmup_steps:
        return after
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])


def adadelta(
    rate: optax.Schedule, *, rho: float = 0.95, eps: float = 1e-7
) -> optax.GradientTransformation:
    """ADADELTA with the numbers of Keras, which optax does not share.

    Source: Gouidis et al. 2019 name the method; Keras's defaults are lr 1.0, rho 0.95, eps 1e-7.
    """
    return optax.adadelta(rate, rho=rho, eps=eps)


def adamw(
    rate: optax.Schedule, *, weight_decay: float = 1e-4, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels only: biases and BN scales are left alone."""
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=is_kernel)


def sgd(rate: optax.Schedule, *, momentum: float = 0.0) -> optax.GradientTransformation:
    """Stochastic gradient descent, as the tutorial uses it (without momentum)."""
    return optax.sgd(rate, momentum=momentum or None)


def is_kernel(params: Any) -> Any:
    """A tree of booleans: True for convolution kernels, False for biases and BN parameters."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'adadelta': adadelta,
    'adamw': adamw,
    'sgd': sgd,
}


def build(
    name: str,
    *,
    learning_rate: float,
    num_steps: int,
    schedule_name: str = 'constant',
    warmup_steps: int = 0,
    **kwargs: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Makes an optimizer.

    Args:
        name: a key of OPTIMIZERS.
        learning_rate: the highest rate.
        num_steps: length of the training.
        schedule_name: 'constant' or 'cosine'.
        warmup_steps: steps of linear rise from zero.
        **kwargs: the optimizer's own.

    Returns:
        The transformation, and the schedule it follows, for logging.

    Raises:
        ValueError: for an unknown name, or an option that the optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f'optimizer.name: expected one of {sorted(OPTIMIZERS)}, got {name!r}')
    _check_options(name, kwargs)
    rate = schedule(
        schedule_name,
        learning_rate=learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
    )
    return OPTIMIZERS[name](rate, **kwargs), rate


def _check_options(name: str, options: Iterable[str]) -> None:
    own = inspect.signature(OPTIMIZERS[name]).parameters.values()
    known = sorted(
        {'learning_rate', 'schedule_name', 'warmup_steps'}
        | {parameter.name for parameter in own if parameter.kind is parameter.KEYWORD_ONLY}
    )
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ValueError(
                f'optimizer.{option}: {name!r} has no such option; expected some of {known}{hint}'
            )
