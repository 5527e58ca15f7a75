"""Measure the dense CRF against the direct double loop over pixels, on one CPU thread, against the targets of the project.

    python tools/analysis_tools/benchmark_dense_crf.py [--rounds 5] [--out work_dirs/benchmark_dense_crf]

One update of 4 labels at 64 x 64. The double loop goes through all pairs of pixels in Python, once. Both must agree with
each other. Writes OUT.json and OUT.png and prints one table.
"""

from __future__ import annotations

import math
import sys
import time
from functools import partial

import torch
from torch import Tensor

from mmext.analysis.timing import Report, check, interleave, main
from mmext.heads.dense_crf import DenseCRF

LABELS, SIZE = 4, 64
CRF = dict(iterations=1, normalization=None)


def double_loop(logits: Tensor, image: Tensor, crf: DenseCRF) -> Tensor:
    """Return one update of mean field, pair by pair."""
    (w1, alpha, beta), (w2, gamma) = crf.appearance, crf.smoothness
    colors = image.flatten(1).T.tolist()
    beliefs = logits.flatten(1).softmax(0).T.tolist()
    places = [(y, x) for y in range(SIZE) for x in range(SIZE)]
    out = logits.flatten(1).T.tolist()
    a, b, c = -0.5 / alpha**2, -0.5 / beta**2, -0.5 / gamma**2
    for (y, x), (r, g, b_), total in zip(places, colors, out, strict=True):
        for (v, u), (s, h, d), q in zip(places, colors, beliefs, strict=True):
            place = (y - v) ** 2 + (x - u) ** 2
            color = (r - s) ** 2 + (g - h) ** 2 + (b_ - d) ** 2
            k = w1 * math.exp(a * place + b * color) + w2 * math.exp(c * place)
            for label in range(LABELS):
                total[label] += k * q[label]
    return torch.tensor(out, dtype=torch.float64).T.log_softmax(0).view_as(logits)


def scene(report: Report, rounds: int) -> None:
    """The whole filter over all pairs, and the one on the lattice, against the double loop."""
    image = 255 * torch.rand(3, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    image = (image + 10 * torch.randn_like(image)).clamp(0, 255)
    logits = 2 * torch.randn(LABELS, SIZE, SIZE)
    exact, lattice = (DenseCRF(filtering=f, **CRF) for f in ('exact', 'lattice'))
    start = time.thread_time()
    want = double_loop(logits.double(), image.double(), exact)
    slow = (time.thread_time() - start) * 1e3
    check('exact, float64', exact(logits.double(), image.double()), want, 1e-12)
    check('exact, float32', exact(logits, image), want, 1e-3)
    times = interleave(
        {name: partial(f, logits, image) for name, f in (('exact', exact), ('lattice', lattice))}, rounds
    )
    for name, target in (('exact', 20.0), ('lattice', 20.0)):
        report.ratio(f'one update, {name}, against the double loop', times[name], dict(min=slow, median=slow), target)


if __name__ == '__main__':
    sys.exit(main({'scene': scene}, __doc__ or '', 'benchmark_dense_crf', 5))
