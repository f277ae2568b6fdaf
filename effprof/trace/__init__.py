"""Profiler traces → kernel account: streaming reader, interval unions, kernel families, waiting ranks."""
