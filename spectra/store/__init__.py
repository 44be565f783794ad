"""The zarr store of a run or a scan: its schema, writer, reader, and the check that it is whole."""
