"""Files -> checked arrays: IDX files, downloads, the tensorflow-datasets builder, splits."""
