"""Optimizers and learning-rate schedules by name. `build(name, **kwargs)` is how configs choose."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

SCHEDULES = ('constant', 'cosine', 'plateau')


def schedule(
    name: str, *, learning_rate: float, num_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
        name: 'constant', 'cosine' (down to zero at num_steps), or 'plateau' (constant here; what
            lowers it is in the optimizer's state, see `plateau`).
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
    if name not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule_name: expected 'constant', 'cosine' or 'plateau', got {name!r}"
        )
    return functools.partial(
        _rate, name=name, highest=learning_rate, num_steps=num_steps, warmup_steps=warmup_steps
    )


def _rate(step: Any, *, name: str, highest: float, num_steps: Any, warmup_steps: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    rise = step / jnp.maximum(warmup_steps, 1)
    done = jnp.clip((step - warmup_steps) / jnp.maximum(num_steps - warmup_steps, 1), 0, 1)
    after = 0.5 * (1 + jnp.cos(jnp.pi * done)) if name == 'cosine' else jnp.ones(())
    return highest * jnp.where(step < warmup_steps, rise, after)


class ScheduleState(NamedTuple):
    """Where a schedule is, and how long it is, i32[] each.

    The length belongs to the state and not to the compiled step, so that one program serves any
    length: that of a training is known only after some steps where it is given as minutes.
    """

    step: jax.Array
    num_steps: jax.Array
    warmup_steps: jax.Array


def _follow(
    name: str, highest: float, num_steps: int, warmup_steps: int
) -> optax.GradientTransformation:
    """Scales updates by the schedule's rate."""

    def init(params: Any) -> ScheduleState:
        del params
        return ScheduleState(*(jnp.array(n, jnp.int32) for n in (0, num_steps, warmup_steps)))

    def update(updates: Any, state: ScheduleState, params: Any = None) -> tuple[Any, ScheduleState]:
        del params
        rate = _rate(
            state.step,
            name=name,
            highest=highest,
            num_steps=state.num_steps,
            warmup_steps=state.warmup_steps,
        )
        scaled = jax.tree.map(lambda leaf: (rate * leaf).astype(leaf.dtype), updates)
        return scaled, state._replace(step=optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def with_length(opt_state: optax.OptState, num_steps: int, warmup_steps: int) -> optax.OptState:
    """The state of an optimizer whose schedule is laid out for another number of steps.

    Args:
        opt_state: of an optimizer from `build`.
        num_steps: see `schedule`.
        warmup_steps: see `schedule`.
    """

    def lay_out(node: Any) -> Any:
        if not isinstance(node, ScheduleState):
            return node
        # As they were placed, on however many devices.
        values = (num_steps, node.num_steps), (warmup_steps, node.warmup_steps)
        lengths = (jax.device_put(jnp.full_like(old, new), old.sharding) for new, old in values)
        return ScheduleState(node.step, *lengths)

    return jax.tree.map(lay_out, opt_state, is_leaf=lambda node: isinstance(node, ScheduleState))


def plateau(
    *,
    plateau_steps: int = 50,
    plateau_patience: int = 10,
    plateau_factor: float = 0.5,
    plateau_threshold: float = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    """Lowers the learning rate whenever the training loss has stopped falling.

    Args:
        plateau_steps: steps whose average loss counts as one value (an epoch).
        plateau_patience: values without a better one that are borne; the next lowers the rate.
        plateau_factor: what it is multiplied by then.
        plateau_threshold: relative improvement that counts.

    Source: the FreiHAND U-Net tutorial halves its rate so; its epochs have 50 batches.
    """
    return optax.contrib.reduce_on_plateau(
        factor=plateau_factor,
        # optax lowers the rate at this value without a better one, PyTorch after it.
        patience=plateau_patience + 1,
        rtol=plateau_threshold,
        accumulation_size=plateau_steps,
    )


def adadelta(*, rho: float = 0.95, eps: float = 1e-7) -> optax.GradientTransformation:
    """ADADELTA with the numbers of Keras, which optax does not share.

    Source: Gouidis et al. 2019 name the method; Keras's defaults are lr 1.0, rho 0.95, eps 1e-7.
    """
    return optax.adadelta(1.0, rho=rho, eps=eps)


def adamw(
    *, weight_decay: float = 1e-4, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels only: biases and BN scales are left alone."""
    return optax.adamw(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_kernel)


def sgd(*, momentum: float = 0.0) -> optax.GradientTransformation:
    """Stochastic gradient descent, as the tutorial uses it (without momentum)."""
    return optax.sgd(1.0, momentum=momentum or None)


def _is_kernel(params: Any) -> Any:
    """A tree of booleans: True for convolution kernels, False for biases and BN parameters."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'adadelta': adadelta,
    'adamw': adamw,
    'sgd': sgd,
}
"""Each gives steps at a rate of 1.0, which the schedule's then scales."""


def build(
    name: str,
    *,
    learning_rate: float,
    num_steps: int,
    schedule_name: str = 'constant',
    warmup_steps: int = 0,
    clip_norm: float = 0.0,
    **kwargs: Any,
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Makes an optimizer. Its update wants the loss as `value`, for schedules that follow it.

    Args:
        name: a key of OPTIMIZERS.
        learning_rate: the highest rate.
        num_steps: length of the training.
        schedule_name: see `schedule`.
        warmup_steps: steps of linear rise from zero.
        clip_norm: gradients of a larger global norm are scaled down to it; 0 for no clipping.
        **kwargs: the optimizer's own, and with 'plateau' those of `plateau`.

    Returns:
        The transformation, and the schedule it follows, for `current_rate`.

    Raises:
        ValueError: for an unknown name, or an option that the optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f'optimizer.name: expected one of {sorted(OPTIMIZERS)}, got {name!r}')
    if clip_norm < 0:
        raise ValueError(f'optimizer.clip_norm must be 0 (no clipping) or more, got {clip_norm}')
    on_plateau = _options(plateau) if schedule_name == 'plateau' else set()
    _check_options(name, kwargs, on_plateau)
    rate = schedule(
        schedule_name,
        learning_rate=learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
    )
    own = {key: value for key, value in kwargs.items() if key not in on_plateau}
    parts: list[optax.GradientTransformation] = [
        OPTIMIZERS[name](**own),
        _follow(schedule_name, learning_rate, num_steps, warmup_steps),
    ]
    if clip_norm:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if schedule_name == 'plateau':
        parts.append(plateau(**{key: kwargs[key] for key in kwargs.keys() & on_plateau}))
    return optax.with_extra_args_support(optax.chain(*parts)), jax.jit(rate)


def current_rate(rate: optax.Schedule, opt_state: optax.OptState, step: int) -> float:
    """The learning rate of a step, lowered by what a plateau has cost so far.

    Args:
        rate: from `build`.
        opt_state: of the optimizer from the same `build`, after the step.
        step: number of the step, from 0.
    """

    def is_plateau(node: Any) -> bool:
        return isinstance(node, optax.contrib.ReduceLROnPlateauState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_plateau)
    scales = [float(node.scale) for node in nodes if is_plateau(node)]
    return float(rate(step)) * math.prod(scales)


def _options(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_options(name: str, options: Iterable[str], more: set[str]) -> None:
    known = sorted(
        {'learning_rate', 'schedule_name', 'warmup_steps', 'clip_norm'}
        | _options(OPTIMIZERS[name])
        | more
    )
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ValueError(
                f'optimizer.{option}: {name!r} has no such option; expected some of {known}{hint}'
            )
