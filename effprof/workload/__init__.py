"""What a model asks for: architecture, FLOPs, memory, expert routing."""
