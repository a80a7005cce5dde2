"""Arrays in, numbers out: accuracy with its interval, the area under a curve, calibration. NumPy only, no torch."""
