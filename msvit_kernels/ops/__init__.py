"""The operators as torch sees them, one module each: schema, fake implementation, backward formula, choice of backend.

Importing the package registers them as torch.ops.msvit.
"""

from msvit_kernels.ops.varlen_attention import varlen_attention_unrecorded

__all__ = ["varlen_attention_unrecorded"]
