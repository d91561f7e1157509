"""The operators as torch sees them, one module each: schema, fake implementation, backward formula, choice of backend.

Importing a module registers its operators as torch.ops.msvit.*. The functions of a module take the records of `calls`.
"""
