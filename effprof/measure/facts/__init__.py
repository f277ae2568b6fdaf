"""What a training's own objects say of its settings: read once, read only, each fact on its own."""
