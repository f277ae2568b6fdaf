"""One file per accelerator vendor, each answering with readings."""
