"""The specification: every operator in eager PyTorch, on any device, also in fp64. No other backend imports it."""
