"""The specification: every operator in eager PyTorch, on any device, in fp64 too. No other backend imports it."""
