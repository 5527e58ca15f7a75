"""Rigid motions and similarities of space, and how far cameras are from where they should be."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['align', 'pose_errors', 'rigid_motion']


def rigid_motion(twist: Tensor) -> Tensor:
    r"""Return the exponential of twists, (..., 3, 4): a rotation and a shift.

    .. math:: R = I + A [\omega]_\times + B [\omega]_\times^2, \qquad
        t = (I + B [\omega]_\times + C [\omega]_\times^2) u

    with :math:`A = \sin\theta / \theta`, :math:`B = (1 - \cos\theta) / \theta^2`,
    :math:`C = (\theta - \sin\theta) / \theta^3` and :math:`\theta = |\omega|`. Below one radian they are series, so that all
    derivatives exist at zero.

    Args:
        twist: :math:`(\omega, u)`, (..., 6).
    """
    omega, shift = twist[..., :3], twist[..., 3:]
    square = omega.square().sum(-1)[..., None, None]
    small = square < 1
    # What is not taken must not divide by zero, because the gradient goes through both.
    theta = torch.where(small, 1, square).sqrt()
    near = torch.where(small, square, 0)
    factors = (
        torch.where(small, _series(near, 1), theta.sin() / theta),
        torch.where(small, _series(near, 2), (1 - theta.cos()) / theta**2),
        torch.where(small, _series(near, 3), (theta - theta.sin()) / theta**3),
    )
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=twist.dtype, device=twist.device)
    rotation = eye + factors[0] * cross + factors[1] * (cross @ cross)
    reach = eye + factors[1] * cross + factors[2] * (cross @ cross)
    return torch.cat((rotation, reach @ shift[..., None]), dim=-1)


def _series(square: Tensor, start: int) -> Tensor:
    """Return the sum of (-square)^k / (2k + start)! over k; ten terms are exact in float64 below one."""
    total = term = torch.ones_like(square)
    for k in range(1, start + 1):
        total = term = term / k
    for k in range(1, 10):
        term = -term * square / ((2 * k + start - 1) * (2 * k + start))
        total = total + term
    return total


def align(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale (), rotation (3, 3) and shift (3,) of the similarity that takes points nearest to others.

    It is the solution by Procrustes, in float64, a rotation and never a reflection.

    Args:
        source: (n, 3).
        target: (n, 3).
    """
    a, b = source.double(), target.double()
    a_mean, b_mean = a.mean(0), b.mean(0)
    a, b = a - a_mean, b - b_mean
    u, s, vh = torch.linalg.svd(b.T @ a)
    sign = torch.ones(3, dtype=a.dtype, device=a.device)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = u @ torch.diag(sign) @ vh
    scale = (s * sign).sum() / a.square().sum().clamp_min(1e-30)
    return scale, rotation, b_mean - scale * rotation @ a_mean


def pose_errors(found: Tensor, true: Tensor) -> tuple[float, float]:
    """Return the mean angle in degrees and the mean distance between cameras, after their best alignment.

    Args:
        found: (V, 3, 4).
        true: (V, 3, 4), in whose units the distance is.
    """
    scale, rotation, shift = align(found[..., 3], true[..., 3])
    axes, centers = rotation @ found[..., :3].double(), scale * found[..., 3].double() @ rotation.T + shift
    cosine = ((axes.transpose(-1, -2) @ true[..., :3].double()).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean()
    return float(angle), float((centers - true[..., 3].double()).norm(dim=-1).mean())
