"""Kernels of the ConvNet student that keeps activations as halves and fuses a block by planes.

An image's plane of some channels is one program's tile: convolution, instance norm, ReLU and pooling (and their derivatives)
need no memory in between. `mct_fast.students.planes` says in which order they run and owns the memory.

Names. S students of B images each; an image i belongs to student i // B. C channels (the width), K outputs. A plane of
H x W pixels is pooled to PP = H/2 * W/2; its pixels are counted quad-major: quad q = (row parity, column parity), pooled
pixel p. "Halves" are fp16 numbers that stand for a float32: one (HALVES = 1, `fast`), or the sum of two (HALVES = 2, `fine`),
which lie side by side: a row of C numbers is C high parts, then C low parts.

Layouts:

========== ===================================== =====================================================
patches    (S B, tiles, 4, 64, HALVES * KP)       3x3 windows of the augmented images, quad-major; halves
image      (S B, H + 2, W + 2, HALVES * C)        activations and cotangents that a convolution reads; halves, zero border
xhat       (S B, 4, PP, C)                        the norm's output, quad-major; float16 or float32
pooled     (S B, PP, C)                           cotangents of a pooled plane; float16 or float32
sums       (S B, C)                               a number a plane; float32
========== ===================================== =====================================================
"""
