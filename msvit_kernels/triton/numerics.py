"""Products and roundings of the kernels, with what the interpreter gets wrong about bf16 put right.

Compiled, `dot` and `rounded` are one instruction each. The interpreter keeps bf16 as 16-bit integers, which it
would multiply as such, and cuts fp32 off instead of rounding it.
"""

import triton
import triton.language as tl

from msvit_kernels.triton.common import interpreting

INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def dot(a, b, acc=None):
    """acc + a @ b in fp32, without TF32."""
    if INTERPRETING:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 `x` in `dtype`, to nearest even."""
    if INTERPRETING and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)
