"""The record on disk: schema, writer, reader, importers of foreign logs."""
