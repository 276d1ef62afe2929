"""
Noise per row for local reparameterization, ``sqrt((x^2)(sigma^2)) * zeta``, with gradients in closed form.

Each function makes the fewest passes over its tensors that eager PyTorch allows; the plain formula, left to automatic
differentiation, makes about twice as many.
"""

from __future__ import annotations

from typing import Any

import torch as th

# Keeps the gradient of the square root finite for a row of zeros.
TINY_VARIANCE = 1e-12


class _FullNoise(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, sigma: th.Tensor, zeta: th.Tensor) -> th.Tensor:
        variance = sigma * sigma
        std = th.matmul(x * x, variance).add_(TINY_VARIANCE).sqrt_()
        ctx.save_for_backward(x, sigma, variance, std, zeta)
        return std * zeta

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor | None, th.Tensor, None]:
        x, sigma, variance, std, zeta = ctx.saved_tensors
        # d std / d x = x variance / std and d std / d sigma = x^2 sigma / std
        slope = (grads[0] * zeta).div_(std)
        grad_x = th.matmul(slope, variance.mT).mul_(x) if ctx.needs_input_grad[0] else None
        return grad_x, th.matmul((x * x).mT, slope).mul_(sigma), None


class _TiedNoise(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, a: th.Tensor, b: th.Tensor, zeta: th.Tensor) -> th.Tensor:
        scaled = x * a
        length = th.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        length = length.square_().add_(TINY_VARIANCE).sqrt_()
        noise = zeta * length
        ctx.save_for_backward(x, a, b, scaled, length, noise)
        return noise * b

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, None]:
        x, a, b, scaled, length, noise = ctx.saved_tensors
        slope = grads[0] * noise
        grad_b = slope.sum(-2, keepdim=True)
        # d length / d x = x a^2 / length; one more length because the noise already holds it
        per_row = slope.mul_(b).sum(-1, keepdim=True).div_(length.square())
        scaled = scaled * per_row
        return scaled * a, scaled.mul_(x).sum(-2, keepdim=True), grad_b, None


def full_noise(x: th.Tensor, sigma: th.Tensor, zeta: th.Tensor) -> th.Tensor:
    """
    For one standard deviation per weight.

    :param x: (*K, T, B, I)
    :param sigma: (*K, T, I, O)
    :param zeta: (*K, T, B, O) unit noise
    :return: (*K, T, B, O)
    """
    noise: th.Tensor = _FullNoise.apply(x, sigma, zeta)
    return noise


def tied_noise(x: th.Tensor, a: th.Tensor, b: th.Tensor, zeta: th.Tensor) -> th.Tensor:
    """
    For ``sigma[i, o] = a[i] * b[o]``: a length per row and no weight-sized product.

    :param x: (*K, T, B, I)
    :param a: (*K, T, I)
    :param b: (*K, T, O)
    :param zeta: (*K, T, B, O) unit noise
    :return: (*K, T, B, O)
    """
    noise: th.Tensor = _TiedNoise.apply(x, a[..., None, :], b[..., None, :], zeta)
    return noise


def fixed_noise(x: th.Tensor, sigma: th.Tensor, zeta: th.Tensor) -> th.Tensor:
    """
    For one standard deviation in all weights.

    :param x: (*K, T, B, I)
    :param sigma: () of every weight
    :param zeta: (*K, T, B, O) unit noise
    :return: (*K, T, B, O)
    """
    variance = (x * x).sum(-1, keepdim=True) * sigma.square()
    return zeta * (variance + TINY_VARIANCE).sqrt()
