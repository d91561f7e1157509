"""Attention over packed tokens and the fused gather of mixed-scale tokens, each with a pure-PyTorch reference.

The four operators are `varlen_attention`, `mixed_scale_layout`, `mixed_scale_embed` and `unpack_to_grid`. `explain()`
lists the backends of this machine. The import needs torch, but neither Triton, nor a GPU, nor the compiled modules.
"""

from msvit_kernels.dispatch import BACKENDS, OPERATORS, explain
from msvit_kernels.layout import MixedScaleLayout, Packing
from msvit_kernels.mixed_scale_embed import mixed_scale_embed
from msvit_kernels.mixed_scale_layout import mixed_scale_layout
from msvit_kernels.scales import Scales
from msvit_kernels.unpack_to_grid import unpack_to_grid
from msvit_kernels.varlen_attention import varlen_attention

__all__ = [
    "BACKENDS",
    "OPERATORS",
    "MixedScaleLayout",
    "Packing",
    "Scales",
    "explain",
    "mixed_scale_embed",
    "mixed_scale_layout",
    "unpack_to_grid",
    "varlen_attention",
]
