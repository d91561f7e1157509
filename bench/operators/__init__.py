"""The harness of the operator benches: cases with competing methods, the check before them, rows and tables."""
