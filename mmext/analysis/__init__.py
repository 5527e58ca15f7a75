"""What the analysis tools share: timing, and later drawing."""
