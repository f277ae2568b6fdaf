"""What a chip can do: catalogue, measured ceilings, telemetry probes."""
