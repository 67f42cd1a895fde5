"""Benchmarks and campaigns that measure this project; run from a checkout, not part of the installed package."""
