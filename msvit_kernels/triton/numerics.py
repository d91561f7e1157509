"""Matrix products and roundings, with corrections for bf16 in Triton's interpreter.

Compiled kernels need no correction: `dot` is `tl.dot` and `rounded` is a conversion. The interpreter stores bf16 as
16-bit integers; it would multiply these integers, and it truncates fp32 instead of rounding it.
"""

import triton
import triton.language as tl

from msvit_kernels.triton.common import interpreting

INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def dot(a, b, acc=None):
    """acc + a @ b as fp32 [M, N], for a [M, K] and b [K, N]; fp32 operands are not rounded to TF32."""
    if INTERPRETING:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 `x` of any shape in `dtype`, rounded to nearest even."""
    if INTERPRETING and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)
