"""The rules, one file per area. A rule is a function under `@rule`; a new area is a new file here."""
