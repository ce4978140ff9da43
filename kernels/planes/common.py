"""What the kernels of this package share: halves, and products of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def after_the_last(PDL: tl.constexpr):
    """With a programmatic launch (sm_90) a kernel begins while the one before ends: behind this line that one is done.

    Each lets its own successor begin at once; what that one finds is whole, since it waits here too.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def product(a, a_low, b, b_low, acc, HALVES: tl.constexpr):
    """acc + a b, the small terms first; of the four products of two pairs, low x low is below the rounding."""
    if HALVES == 2:
        acc = tl.dot(a_low, b, acc)
        acc = tl.dot(a, b_low, acc)
    return tl.dot(a, b, acc)


@triton.jit
def halved(v, HALVES: tl.constexpr):
    """A float32 tile as halves: (high, low); low is high again where there is one half."""
    high = v.to(tl.float16)
    low = high
    if HALVES == 2:
        low = (v - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def low_parts(which, row: tl.constexpr, HALVES: tl.constexpr):
    """Of the products of two pairs, low x high, high x low, high x high: where the factors lie behind their high parts.

    A long sum takes one product after the other: a loop with one product a step is what the compiler overlaps best.
    """
    first = 0
    second = 0
    if HALVES == 2:
        first = tl.where(which == 0, row, 0)
        second = tl.where(which == 1, row, 0)
    return first, second


@triton.jit
def add_product(a, b, acc, HALVES: tl.constexpr):
    """acc + a b. The tensor cores' own sums drop bits below their largest term: fine ones are short and added up in float32."""
    if HALVES == 2:
        total = acc + tl.dot(a, b, max_num_imprecise_acc=16)  # not 0: the compiler would make it one long sum again
    else:
        total = tl.dot(a, b, acc)
    return total


@triton.jit
def load_halves(at, row: tl.constexpr, HALVES: tl.constexpr):
    """The halves at `at`, whose low parts lie `row` numbers behind."""
    high = tl.load(at)
    low = high
    if HALVES == 2:
        low = tl.load(at + row)
    return high, low


@triton.jit
def store_halves(at, v, mask, row: tl.constexpr, HALVES: tl.constexpr):
    """A float32 tile as halves at `at`; low parts lie `row` numbers behind."""
    high, low = halved(v, HALVES)
    tl.store(at, high, mask=mask)
    if HALVES == 2:
        tl.store(at + row, low, mask=mask)
