"""Dataset distillation by trajectory matching: MCT (arXiv 2406.19827), with MTT (CVPR 2022) as a special case.

The stages are modules: :mod:`mct_fast.experts`, :mod:`mct_fast.compress`, :mod:`mct_fast.distill`,
:mod:`mct_fast.evaluate`, :mod:`mct_fast.view.report`. Importing this package imports none of them.
"""

__version__ = "0.1.0"
