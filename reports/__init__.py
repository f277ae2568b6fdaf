"""How numbers are shown: terminal, Markdown, JSON."""
