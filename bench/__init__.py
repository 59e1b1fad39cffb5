"""Measurements. Figures are ratios and percentiles of one run on one machine, never tests."""
