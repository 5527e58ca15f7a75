"""What the analysis tools share: measuring, reading kernels and fields, and drawing them."""
