"""What happened, on the hot path: step profiler, clocks, token counts, telemetry sampler."""
